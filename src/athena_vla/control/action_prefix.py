"""Which rows of the chunk being played the next one has to go on from: those played by the time it arrives.

Knows actors that can be given rows, and delays; nothing of curves, clocks or models.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from athena_vla.control.trajectory import rows_passed
from athena_vla.embodiment import Array

RECENT = 8  # answers; the next one is expected to take as long as the slowest of them


@runtime_checkable
class ReadsActionPrefix(Protocol):
    """An actor that reads `Observation.action_prefix`."""

    @property
    def prefix(self) -> int:
        """Most rows it can be given now; 0: none."""
        ...


def prefix_of(actor: object) -> int:
    """Most rows an actor can be given; 0 for one that says nothing about it."""
    return actor.prefix if isinstance(actor, ReadsActionPrefix) else 0


def prefix_times(now: float, step: float, most: int, delays: Sequence[float], blend: float) -> Array:
    """Times [p] [s] of the rows that will be passed over when a chunk asked for at `now` arrives; at most `most`.

    `delays` [s] are those of earlier answers. An answer that is later than all of them costs no more than some help:
    rows it was not given and that are in the past are passed over as always. One that is earlier begins with the rows
    it was given, so nothing changes until they are played.
    """
    times = now + step * np.arange(1, most + 1, dtype=np.float64)
    arrival = now + max(delays[-RECENT:], default=0.0)
    return times[: rows_passed(times, arrival, blend)]
