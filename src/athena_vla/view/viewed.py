"""What is looked at: a recording or a built set, as episodes with their findings, and how a build leaves some out."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from athena_vla.annotate.segments import episode_segments
from athena_vla.check.cameras import scan_camera
from athena_vla.check.checking import CheckConfig, check
from athena_vla.check.episode_checks import episode_findings
from athena_vla.check.findings import Finding
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.sidecar import SIDECAR
from athena_vla.embodiment import Embodiment
from athena_vla.progress import Progress
from athena_vla.recordings.annotations import read_annotations
from athena_vla.recordings.episode import Episode, Image, Recording, Segment
from athena_vla.recordings.reading import Reading
from athena_vla.recordings.streams import Clock
from athena_vla.view.view_config import Checks, ViewConfig

HORIZON = 8  # rows of a chunk that an episode should fill, as for athena data check


class Viewed(Protocol):
    """Episodes to look at."""

    @property
    def robot(self) -> Embodiment | None: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def build(self) -> tuple[str, ...]:
        """Words of the build command that --exclude is added to."""
        ...

    def read(self, episode_id: str, /) -> Episode:
        """Raises `RecordingError`, `DatasetError`."""
        ...

    def segments(self, episode: Episode, /) -> tuple[Segment, ...]: ...

    def findings(self, episode: Episode, /) -> Sequence[Finding]:
        """Those of the episode, and those of all of them."""
        ...


def opened(config: ViewConfig, robot: Embodiment | None, progress: Progress) -> Viewed:
    """A built set where INPUT is one, else the recording there. Raises `RecordingError`, `DatasetError`."""
    if (config.input / "meta" / SIDECAR).is_file():
        return ViewedSet(Dataset.open(config.input))
    segments = read_annotations(config.annotations) if config.annotations else None
    return ViewedRecording(config, config.open(config.input), robot, segments, progress)


@dataclass(frozen=True)
class ViewedRecording:
    """A recording in its own format; it is checked while it is looked at."""

    config: ViewConfig
    recording: Recording
    robot: Embodiment | None
    annotated: Mapping[str, tuple[Segment, ...]] | None
    progress: Progress

    @property
    def ids(self) -> tuple[str, ...]:
        return self.recording.ids()

    @property
    def build(self) -> tuple[str, ...]:
        robot = self.config.robot or (self.robot.name if self.robot else "ROBOT")
        words = ("athena", "data", "build", str(self.config.input), "OUT", "--robot", robot)
        said = {f.name: getattr(self.config, f.name) for f in fields(Reading)}
        given = {n: str(v) for n, v in said.items() if v != getattr(Reading(), n)}
        return (*words, *(w for n, v in given.items() for w in (f"--{n.replace('_', '-')}", v)))

    def read(self, episode_id: str, /) -> Episode:
        return self.recording.read(episode_id)

    def segments(self, episode: Episode, /) -> tuple[Segment, ...]:
        if self.annotated is not None:
            return self.annotated.get(episode.id, ())
        return episode_segments(episode, self.robot)

    def findings(self, episode: Episode, /) -> Sequence[Finding]:
        checks: Checks = self.config.checks
        if checks == "none":
            return ()
        if checks == "recording":
            return [f for f in self._whole if f.episode in (episode.id, None)]
        found = list(episode_findings(episode, self.robot, HORIZON))
        for name, stream in sorted(episode.cameras.items()):
            found += scan_camera(episode, name, stream, None, sampled=True).findings
        return found

    @functools.cached_property
    def _whole(self) -> tuple[Finding, ...]:
        asked = {f.name: getattr(self.config, f.name) for f in fields(Reading)}
        return check(CheckConfig(**asked, input=self.config.input, robot=self.config.robot), self.progress).findings


class ViewedSet:
    """A built set: what is trained on, in the robot's units, under the names that its recording had."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.robot: Embodiment | None = dataset.robot
        self._place = {str(e["id"]): i for i, e in enumerate(dataset.episodes)}

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._place)

    @property
    def build(self) -> tuple[str, ...]:
        return ("athena", "data", "build", "RECORDING", "OUT", "--robot", self.dataset.robot.name)

    def read(self, episode_id: str, /) -> Episode:
        number, robot = self._place[episode_id], self.dataset.robot
        states, actions = self.dataset.numbers(number)
        return Episode(
            id=episode_id,
            clock=Clock.at_rate(len(states), robot.control_hz),
            joint_names=robot.action_names,
            actions=actions,
            state_names=robot.state_names,
            states=states,
            cameras={c: SetFrames(self.dataset, c, number, len(states)) for c in robot.camera_names},
            texts=self.dataset.spans(number),
            marks=self.dataset.marks[number],
            segments=tuple(Segment(**s) for s in self.dataset.episodes[number]["segments"]),
            source=f"{self.dataset.path}#{episode_id}",
        )

    def segments(self, episode: Episode, /) -> tuple[Segment, ...]:
        return episode.segments

    def findings(self, episode: Episode, /) -> Sequence[Finding]:
        """What the build found, at the steps that the recorded frames became."""
        record = self.dataset.episodes[self._place[episode.id]]["alignment"]
        first, ratio = int(record["first"]), float(record["recorded_fps"]) / float(record["control_hz"])
        found = []
        for f in self.dataset.findings:
            if f.episode == episode.id and f.frames is not None:
                start, stop = ((frame - first) / ratio for frame in f.frames)
                if stop <= 0 or start >= len(episode):
                    continue  # said of frames that the build left out
                f = replace(f, frames=(int(np.floor(max(start, 0))), int(np.ceil(stop))))
            found += [f] if f.episode in (episode.id, None) else []
        return found


@dataclass(frozen=True)
class SetFrames:
    """Images of one camera in one episode of a set, wherever they are stored."""

    dataset: Dataset
    camera: str
    episode: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Image:
        image: NDArray[np.uint8] = self.dataset.store.image(self.camera, self.episode, index)
        return image
