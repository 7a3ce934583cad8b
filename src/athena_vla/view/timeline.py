"""One episode as it is looked at: columns, cameras, spans, predicted chunks and poses, all on one clock.

Plain data, and the only thing that pages and Rerun draw: what one of them shows, the other shows too. Times are in
[s] since the episode's first frame; values are in the units of the robot, or as recorded where no robot is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.recordings.episode import Episode, Frames

SpanKind = Literal["text", "segment", "mark", "source", "finding"]
ShapeKind = Literal["box", "capsule", "cylinder", "ellipsoid"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Values at times of their own."""

    times: Array  # [N] [s]
    values: NDArray[np.floating[Any]]  # [N], NaN where nothing was recorded


@dataclass(frozen=True)
class Column:
    """One joint, channel or recorded stream over the episode."""

    name: str
    group: str
    unit: str  # "" where no robot says it
    state: Curve | None  # what was measured
    target: Curve | None  # what was commanded
    limits: tuple[float, float] | None


@dataclass(frozen=True)
class CameraTrack:
    """Images of one camera, decoded when asked for."""

    name: str
    times: Array  # [N] [s]
    frames: Frames


@dataclass(frozen=True)
class Span:
    """A stretch of the episode about which something is said."""

    kind: SpanKind
    first: int  # frame
    stop: int  # frame, exclusive
    start: float  # [s]
    end: float  # [s]
    label: str  # short: a kind, a code, a source
    text: str
    severity: str = "info"


@dataclass(frozen=True)
class Remark:
    """A finding about the episode as a whole."""

    severity: str
    code: str
    text: str


@dataclass(frozen=True)
class PredictedChunk:
    """What a policy would have commanded at one frame of the episode."""

    asked: float  # [s] time of the observation
    times: Array  # [H] [s] when each row is meant, on the clock of the recorded targets
    names: tuple[str, ...]  # D columns
    positions: Array  # [H, D]


@dataclass(frozen=True)
class Shape:
    """A primitive fixed to a link: half sizes of a box or ellipsoid, radius and half length of the others [m]."""

    kind: ShapeKind
    size: tuple[float, float, float]
    position: tuple[float, float, float]  # [m] in the link
    rotation: tuple[float, float, float, float]  # wxyz
    colour: tuple[float, float, float, float]


@dataclass(frozen=True)
class Link:
    """A body of the robot; `parent` is the place of another link, -1 for the world."""

    name: str
    parent: int
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Posed:
    """Where the links are at each frame."""

    links: tuple[Link, ...]
    positions: Array  # [T, L, 3] [m]
    rotations: Array  # [T, L, 4] wxyz
    unmoved: tuple[str, ...]  # joints of the body that nothing was recorded for


@dataclass(frozen=True)
class Timeline:
    """All that is shown of one episode."""

    id: str
    robot: str  # "" where none is named
    times: Array  # [T] [s]
    period: float  # [s] of one frame, as declared
    columns: tuple[Column, ...]
    cameras: tuple[CameraTrack, ...]
    spans: tuple[Span, ...]
    remarks: tuple[Remark, ...] = ()
    predicted: tuple[PredictedChunk, ...] = ()
    posed: Posed | None = None
    success: bool | None = None
    notes: tuple[str, ...] = ()
    instructions: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> float:
        """[s] from the first frame to the end of the last."""
        return float(self.times[-1]) + self.period if len(self.times) else 0.0

    def spans_of(self, kind: SpanKind) -> Sequence[Span]:
        return [s for s in self.spans if s.kind == kind]


def span_at(
    times: Array, period: float, kind: SpanKind, first: int, stop: int, label: str, text: str, severity: str = "info"
) -> Span:
    """Frames `first` to `stop` (exclusive) on a clock; what lies outside it is cut off, and one frame always stays."""
    last = max(len(times) - 1, 0)
    first = min(max(first, 0), last)
    stop = min(max(stop, first + 1), last + 1)
    end = float(times[stop]) if stop <= last else float(times[last]) + period
    return Span(kind, first, stop, float(times[first]), end, label, text, severity)


class Posing(Protocol):
    """What draws a robot's body."""

    def posed(self, timeline: Timeline, /) -> Timeline:
        """The timeline with the links at each frame, or with a note why there are none."""
        ...


class Predicting(Protocol):
    """What knows a policy."""

    @property
    def robot(self) -> Embodiment: ...

    def added(self, timeline: Timeline, episode: Episode, count: int, /) -> Timeline:
        """The timeline with chunks at `count` frames, evenly spaced."""
        ...
