"""The nouns of recorded data: an episode with its streams and clocks, its segments, and a training sample.

Knows nothing of files: every format constructs these. Images are read lazily, frame by frame.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Observation
from athena_vla.errors import RecordingError

MOST_FPS = 1e5  # [Hz] no robot is recorded faster; windows in seconds must not become terabytes
Image = NDArray[np.uint8]  # [height, width, 3] RGB


class Frames(Protocol):
    """One camera of one episode; decodes a frame when asked for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image:
        """Frame `index` in time order. Raises `RecordingError` where it cannot be decoded."""
        ...


@dataclass(frozen=True)
class Segment:
    """Frames `start` to `stop` (exclusive) of an episode, and what happens in them."""

    start: int
    stop: int
    kind: str  # walk | balance | manipulate | prepare | coordinate | idle | task
    text: str  # an instruction; the episode's own instruction is never replaced by it
    source: str  # human | simulator | motion-rule | model
    confidence: float  # 0..1


@dataclass(frozen=True)
class Episode:
    """One recorded episode: named columns on one clock, images beside them, and where it came from.

    All arrays have the same first dimension `T`. Angles in [rad] as far as the recorder wrote radians: units are
    checked by `data.check`, never silently changed.
    """

    id: str
    fps: float  # [Hz], the declared rate; the true one is in `timestamps`
    joint_names: tuple[str, ...]  # D names of the action columns
    actions: NDArray[np.floating[Any]]  # [T, D] joint position targets, the recorder's own dtype
    state_names: tuple[str, ...]  # S names of the state columns; () where no state was recorded
    states: NDArray[np.floating[Any]]  # [T, S]
    timestamps: NDArray[np.float64]  # [T] [s]
    cameras: Mapping[str, Frames]
    instructions: tuple[str, ...]  # as recorded, in order of trust
    success: bool | None  # None: the recording does not say
    segments: tuple[Segment, ...] = ()
    source: str = ""  # "format:path#episode", for messages
    extras: Mapping[str, Any] = field(default_factory=dict)  # streams and metadata the toolkit carries but does not use

    def __post_init__(self) -> None:
        length = len(self.timestamps)
        for name, array, width in (
            ("actions", self.actions, len(self.joint_names)),
            ("states", self.states, len(self.state_names)),
        ):
            if array.shape != (length, width):
                raise RecordingError(
                    f"Episode {self.id} ({self.source}): {name} have shape {list(array.shape)}, "
                    f"expected [{length}, {width}] from its clock and column names."
                )
        if not 0 < self.fps < MOST_FPS:
            raise RecordingError(
                f"Episode {self.id} ({self.source}): the rate {self.fps:g} Hz is none; say the true one with --fps HZ."
            )

    def __len__(self) -> int:
        return len(self.timestamps)


@dataclass(frozen=True)
class BrokenEpisode:
    """An episode that could not be read: named and counted, never skipped in silence."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True)
class RecordingInfo:
    """What a recording is found to be, from its content."""

    format: str
    version: str
    robot: str  # "" where the recording does not name one
    joint_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]  # name -> (height, width)
    fps: float
    episodes: int  # true counts, not declared ones
    frames: int
    tasks: tuple[str, ...]
    duration: float  # [s]
    successes: int | None  # None: the recording does not say
    notes: tuple[str, ...] = ()


class Recording(Protocol):
    """A set of episodes on disk in one format."""

    path: Path

    def info(self) -> RecordingInfo: ...

    def ids(self) -> tuple[str, ...]: ...

    def read(self, episode_id: str, /) -> Episode:
        """Raises `RecordingError` for this episode only."""
        ...

    def episodes(self) -> Iterator[Episode | BrokenEpisode]: ...


@dataclass(frozen=True)
class Sample:
    """One training example: what was seen, and the chunk of joint targets that followed."""

    observation: Observation
    chunk: NDArray[np.float32]  # [H, D] [rad], rows past the end repeat the last one
    valid: NDArray[np.bool_]  # [H], False past the end of the episode
    episode: str
    frame: int
    kind: Literal["train", "validation"] = "train"
