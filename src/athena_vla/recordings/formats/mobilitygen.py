"""MobilityGen recordings (Isaac Sim): refused where their states are pickled, read where they are npz."""

import bisect
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode, Frames, RecordingInfo
from athena_vla.recordings.formats.common import (
    DEPTH_NAME,
    IMAGE_SUFFIXES,
    BaseRecording,
    ImageFiles,
    OpenOptions,
    depth_note,
    guarded,
    image_size,
    natural_key,
    npz_arrays,
    npz_headers,
    read_json_object,
    unused,
)
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream

NAME = "mobilitygen"


def detect(path: Path) -> bool:
    """True for a folder with state/common."""
    return (path / "state" / "common").is_dir()


def open_path(path: Path, options: OpenOptions) -> "MobilityGen":
    pickled = next((path / "state" / "common").glob("*.npy"), None)
    if pickled is not None:
        raise RecordingError(
            f"'{path}' is a MobilityGen recording whose states are pickled Python objects (state/common/*.npy); "
            "reading them would run code from the file. Record or convert it with Isaac Sim 6.0, which writes "
            "state/common/*.npz."
        )
    return MobilityGen(path, options)


class MobilityGen(BaseRecording):
    """The npz form: one state file per step, images where they were rendered."""

    format = NAME

    def ids(self) -> tuple[str, ...]:
        return (self.path.name,)

    def read(self, episode_id: str, /) -> Episode:
        files = sorted((self.path / "state" / "common").glob("*.npz"), key=lambda p: natural_key(p.name))
        if not files:
            raise RecordingError(f"'{self.path}' holds no states.")
        keys = sorted(npz_headers(files[0]))
        key = next((k for k in keys if k in ("joint_positions", "robot.joint_positions")), None)
        if key is None:
            raise RecordingError(f"'{files[0]}' has no joint_positions; it has {keys}.")
        with guarded(f"'{self.path / 'state/common'}'"):
            states = np.stack([npz_arrays(f, (key,))[key].reshape(-1) for f in files]).astype(np.float64)
        fps = self.options.fps
        length = len(files)
        streams, left = self._others(files, [k for k in keys if k != key])
        cameras: dict[str, Frames] = {}
        notes = [Note("action.next_positions", "targets are the next positions: no actions are recorded")]
        kinds = {p.name for p in (self.path / "state").glob("*") if p.is_dir()} - {"rgb", "common"}
        deep = {k for k in kinds if DEPTH_NAME.search(k)}
        notes += [depth_note(k) for k in sorted(deep)]
        notes += unused(left | (kinds - deep), "states")
        folder = self.path / "state" / "rgb"
        for camera in sorted(folder.glob("*")) if folder.is_dir() else ():
            stream, missing = _held(camera, [int(f.stem) for f in files if f.stem.isdigit()])
            if len(stream) != length or missing == length:
                continue
            if missing:
                said = f"camera '{camera.name}' was rendered at {length - missing} of {length} states; images are held"
                notes.append(Note("camera.sparse", said, (camera.name,)))
            cameras[camera.name] = stream
        return Episode(
            id=self.path.name,
            clock=Clock.at_rate(length, fps) if fps else Clock.counted(length),
            joint_names=self.names("action", states.shape[1], None),
            actions=np.concatenate([states[1:], states[-1:]]),
            state_names=tuple(f"state_{i:02d}" for i in range(states.shape[1])),
            states=states,
            cameras=cameras,
            source=f"{NAME}:{self.path}",
            streams=streams,
            notes=tuple(notes),
        )

    def _others(self, files: list[Path], keys: list[str]) -> tuple[dict[str, Stream], set[str]]:
        """(numbers that every state has in one shape, names of the rest)."""
        found: dict[str, list[NDArray[Any]]] = {k: [] for k in keys}
        with guarded(f"'{self.path / 'state/common'}'"):
            for file in files:
                for key, values in npz_arrays(file, keys).items():
                    found[key].append(values)
        whole = {
            k for k, v in found.items()
            if len(v) == len(files) and v[0].dtype.kind in "fiub" and len({x.shape for x in v}) == 1
        }  # fmt: skip
        return {k: Stream(np.stack(found[k])) for k in sorted(whole)}, set(keys) - whole

    def info(self) -> RecordingInfo:
        episode = self.read(self.path.name)
        config = self.path / "config.json"
        robot = str(read_json_object(config).get("robot_type", "")) if config.is_file() else ""
        cameras: dict[str, tuple[int, int]] = {}
        for name in episode.cameras:
            file = next(p for p in sorted((self.path / "state" / "rgb" / name).iterdir()))
            cameras[name] = image_size(file, f"'{file}'")
        return RecordingInfo(
            format=NAME,
            version="npz",
            robot=robot,
            joint_names=episode.joint_names,
            state_names=episode.state_names,
            cameras=cameras,
            fps=self.options.fps or 0.0,
            episodes=1,
            frames=len(episode),
            tasks=(),
            duration=len(episode) / self.options.fps if self.options.fps else 0.0,
            successes=None,
            notes=episode.notes,
        )


def _held(folder: Path, states: list[int]) -> tuple[ImageFiles, int]:
    """(for each state the image of its step, or the last one before it; how many states have none of their own)."""
    found = {int(p.stem): p for p in folder.iterdir() if p.stem.isdigit() and p.suffix.lower() in IMAGE_SUFFIXES}
    numbers = sorted(found)
    files: list[Path | None] = []
    for state in states:
        place = bisect.bisect_right(numbers, state) - 1
        files.append(found[numbers[place]] if place >= 0 else None)
    return ImageFiles(tuple(files), f"'{folder}'"), sum(state not in found for state in states)
