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
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note
from athena_vla.recordings.simulator_truth import SimulatorTruth
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import Texts, all_texts, problem_of

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
class Origin:
    """What a recorder says of an episode as a whole, beside its data."""

    robot: str = ""
    kind: str = ""  # kind of task, for balanced drawing
    recorded_id: str = ""  # its id before a conversion
    version: str = ""  # of the recorder
    declared_length: int | None = None  # [frames]
    positions_relative: bool | None = None  # joint observations were relative to the default pose; None: not known
    default_pose: tuple[float, ...] | None = None  # [rad] found from the relative observations
    quaternion_order: str = ""  # wxyz | xyzw
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON that nothing here reads; written back as it came


@dataclass(frozen=True)
class Episode:
    """One recorded episode: named columns on one clock, images beside them, and where it came from.

    All arrays have the same first dimension `T`, that of `clock`; a camera has one image for each row. Angles in
    [rad] as far as the recorder wrote radians: units are checked by `check`, never silently changed.
    """

    id: str
    clock: Clock
    joint_names: tuple[str, ...]  # D names of the action columns
    actions: NDArray[np.floating[Any]]  # [T, D] joint position targets, the recorder's own dtype
    state_names: tuple[str, ...]  # S names of the state columns; () where no state was recorded
    states: NDArray[np.floating[Any]]  # [T, S]
    cameras: Mapping[str, Frames] = field(default_factory=dict)
    texts: Texts = ()  # as recorded; alternatives and successive ones apart
    marks: Marks = Marks()  # noqa: RUF009 frozen, and empty
    segments: tuple[Segment, ...] = ()
    source: str = ""  # "format:path#episode", for messages
    streams: Mapping[str, Stream] = field(default_factory=dict)  # carried along, not trained on
    truth: SimulatorTruth | None = None
    origin: Origin = Origin()
    notes: tuple[Note, ...] = ()  # what its reader has to say of it

    def __post_init__(self) -> None:
        length = len(self.clock)
        where = f"Episode {self.id} ({self.source})"
        for name, array, width in (
            ("actions", self.actions, len(self.joint_names)),
            ("states", self.states, len(self.state_names)),
        ):
            if array.shape != (length, width):
                raise RecordingError(
                    f"{where}: {name} have shape {list(array.shape)}, "
                    f"expected [{length}, {width}] from its clock and column names."
                )
        if not 0 < self.fps < MOST_FPS:
            raise RecordingError(f"{where}: the rate {self.fps:g} Hz is none; say the true one with --fps HZ.")
        problem = problem_of(self.texts, length) or self.marks.problem(length)
        if problem:
            raise RecordingError(f"{where}: {problem}.")
        for name, stream in self.streams.items():
            rows = length if stream.clock is None else len(stream.clock)
            if len(stream.values) != rows:
                raise RecordingError(f"{where}: stream '{name}' has {len(stream.values)} rows, its clock has {rows}.")

    @property
    def fps(self) -> float:
        """[Hz], the declared rate; the true one is in `timestamps`."""
        return self.clock.fps

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """[T] [s]"""
        return self.clock.stamps

    @property
    def instructions(self) -> tuple[str, ...]:
        """Every text that holds somewhere, in order; which holds where is in `texts`."""
        return all_texts(self.texts)

    @property
    def success(self) -> bool | None:
        """None: the recording does not say."""
        return self.marks.success

    def __len__(self) -> int:
        return len(self.clock)


@dataclass(frozen=True)
class BrokenEpisode:
    """An episode that could not be read: named and counted, never skipped in silence."""

    id: str
    source: str
    reason: str
    code: str = "episode.unreadable"  # of the error that says it; see `errors`


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
    notes: tuple[Note, ...] = ()


class Recording(Protocol):
    """A set of episodes on disk in one format."""

    path: Path

    def info(self) -> RecordingInfo: ...

    def ids(self) -> tuple[str, ...]: ...

    def whole_notes(self) -> tuple[Note, ...]:
        """What opening the recording said of it as a whole."""
        ...

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
