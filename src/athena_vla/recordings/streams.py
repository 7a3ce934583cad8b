"""Clocks and streams: when each row of recorded data was taken, and how that is known."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ClockSource = Literal["recorded", "rate", "published environment", "frame index"]


@dataclass(frozen=True)
class Clock:
    """When the rows of a stream were taken.

    `source` says how that is known: time stamps were recorded; a rate was recorded or asserted; the rate is that of a
    published environment; or rows are only counted, and `fps` stands for nothing.
    """

    stamps: NDArray[np.float64]  # [T] [s]
    fps: float  # [Hz] the declared rate; the true one is in `stamps`
    source: ClockSource = "recorded"

    @classmethod
    def at_rate(cls, length: int, fps: float, source: ClockSource = "rate") -> "Clock":
        """A clock of `length` rows that follow each other at `fps` [Hz]."""
        return cls(np.arange(length, dtype=np.float64) / fps, float(fps), source)

    @classmethod
    def counted(cls, length: int) -> "Clock":
        """A clock of rows that were only numbered."""
        return cls(np.arange(length, dtype=np.float64), 1.0, "frame index")

    @property
    def has_rate(self) -> bool:
        """False where rows are only counted, so that speeds and delays are unknown."""
        return self.source != "frame index"

    def rate(self, otherwise: float) -> float:
        """The declared rate [Hz], or `otherwise` where rows are only counted."""
        return self.fps if self.has_rate else otherwise

    def cut(self, start: int, stop: int) -> "Clock":
        """The clock of rows `start` to `stop`."""
        return replace(self, stamps=self.stamps[start:stop])

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass(frozen=True)
class Stream:
    """Recorded values that are neither actions nor joint states: object poses, contacts, rewards, force.

    Without a clock of its own a stream has one row for each row of its episode.
    """

    values: NDArray[Any]  # [N, ...]
    clock: Clock | None = None

    def cut(self, start: int, stop: int, episode: Clock) -> "Stream":
        """What belongs to rows `start` to `stop` of an episode with that clock."""
        if self.clock is None:
            return Stream(self.values[start:stop])
        first, last = episode.stamps[start], episode.stamps[stop - 1] + 1.0 / episode.fps
        a, b = np.searchsorted(self.clock.stamps, [first, last])
        return Stream(self.values[a:b], self.clock.cut(int(a), int(b)))
