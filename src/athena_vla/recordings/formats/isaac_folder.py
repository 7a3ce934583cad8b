"""The user's folder layout: one folder per episode with metadata.json, an npz file and images/.

Reads both variants (trajectory.npz with `observations`, episode_data.npz with `states`) and writes the first, with
joint names, rate and segments added to metadata.json. Knows nothing of robots: columns without names get placeholders.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from athena_vla import files
from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Frames, Origin, RecordingInfo, Segment
from athena_vla.recordings.formats.common import (
    BaseRecording,
    OpenOptions,
    StillFrames,
    ask_for_names,
    broken_note,
    colour_only,
    guarded,
    image_files,
    image_size,
    natural_key,
    npz_arrays,
    npz_headers,
    read_json_object,
    save_arrays,
    success_of,
    text_list,
    unused,
)
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note
from athena_vla.recordings.simulator_truth import TRUTH_KEYS, SimulatorTruth
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import is_whole, said, texts_from_json, texts_json

NAME = "isaac_folder"
ARRAYS = ("trajectory.npz", "episode_data.npz")
DEFAULT_TASK = "perform a task"  # the layout's own default, so an instruction equal to it says nothing
STREAM, STREAM_CLOCK = "stream/", "stream_clock/"  # arrays that our own writer adds
ROWS = ("actions", "observations", "states", "timestamps")
KNOWN = {
    "instructions", "task_descriptions", "task_description", "success", "fps", "joint_names", "state_names",
    "segments", "cameras", "extras", "texts", "marks",
}  # fmt: skip
DEFAULT_CAMERA = "head"  # the layout has one unnamed camera, which its specification puts on the head


def detect(path: Path) -> bool:
    """True for an episode folder, or a folder of which at least one child is one."""
    if not path.is_dir():
        return False
    if any((path / name).is_file() for name in ARRAYS):
        return True
    return any(e.is_dir() and _looks_like_episode(Path(e.path)) for e in os.scandir(path))


def open_path(path: Path, options: OpenOptions) -> "IsaacFolder":
    return IsaacFolder(path, options)


class IsaacFolder(BaseRecording):
    """A root folder of episode folders, or one episode folder."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        self._single = any((path / name).is_file() for name in ARRAYS)

    def ids(self) -> tuple[str, ...]:
        if self._single:
            return (self.path.name,)
        folders = [e.name for e in os.scandir(self.path) if e.is_dir() and not e.name.startswith(".")]
        return tuple(sorted((n for n in folders if _looks_like_episode(self.path / n)), key=natural_key))

    def read(self, episode_id: str, /) -> Episode:
        folder = self.path if self._single else self.path / episode_id
        source = f"{NAME}:{folder}"
        if Path(episode_id).name != episode_id or not folder.is_dir():
            raise RecordingError(f"There is no episode '{episode_id}' in '{self.path}'.")
        metadata = read_json_object(folder / "metadata.json")
        arrays_path = _arrays_path(folder)
        arrays = npz_arrays(arrays_path, list(npz_headers(arrays_path)))
        actions = _matrix(arrays.get("actions"), arrays_path, "actions")
        length = len(actions)
        raw_states = arrays.get("states", arrays.get("observations"))
        states = np.zeros((length, 0), np.float32)
        if raw_states is not None:
            states = _matrix(raw_states, arrays_path, "states")
            if len(states) != length:
                raise RecordingError(f"'{arrays_path}': {length} actions but {len(states)} states.")
        joint_names = self.names("action", actions.shape[1], _names(metadata, "joint_names", actions.shape[1], folder))
        state_names = self.names("state", states.shape[1], _names(metadata, "state_names", states.shape[1], folder))
        clock = self._clock(metadata, arrays, length, folder)
        instructions = text_list(metadata.get("instructions"))
        instructions += text_list(metadata.get("task_descriptions")) + text_list(metadata.get("task_description"))
        texts = said(dict.fromkeys(instructions), length)
        if metadata.get("texts"):
            with guarded(f"texts in '{folder / 'metadata.json'}'"):
                texts = texts_from_json(metadata["texts"])
        marks = Marks(success_of(metadata.get("success")))
        if isinstance(metadata.get("marks"), dict):
            marks = replace(Marks.from_dict(metadata["marks"]), success=marks.success)
        origin, truth = _recorded_beside(metadata)
        streams = _streams(arrays, metadata, length)
        notes: list[Note] = []
        cameras = colour_only(_cameras(folder, metadata, length), episode_id, notes)
        others = (k for k in arrays if k not in ROWS and not k.startswith(STREAM_CLOCK))
        left = {k for k in others if k.removeprefix(STREAM) not in streams}
        left |= {"observations"} if {"states", "observations"} <= set(arrays) else set()
        notes += unused(left, f"arrays of {arrays_path.name}", episode_id)
        return Episode(
            id=episode_id,
            clock=clock,
            joint_names=joint_names,
            actions=actions,
            state_names=state_names,
            states=states,
            cameras=cameras,
            texts=texts,
            marks=marks,
            segments=_segments(metadata, length, folder),
            source=source,
            streams=streams,
            truth=truth,
            origin=origin,
            notes=tuple(notes),
        )

    def info(self) -> RecordingInfo:
        episodes = frames = 0
        first: Episode | None = None
        tasks: dict[str, None] = {}
        duration, successes, said, broken = 0.0, 0, False, 0
        notes: list[Note] = []
        for episode in self.episodes():
            if isinstance(episode, BrokenEpisode):
                broken += 1
                notes.append(broken_note(episode))
                continue
            if first is None:
                first = episode
                notes += episode.notes
            episodes += 1
            frames += len(episode)
            tasks |= dict.fromkeys(episode.instructions[:1])
            duration += len(episode) / episode.fps if episode.clock.has_rate else 0.0
            said |= episode.success is not None
            successes += episode.success is True
        if first is None:
            reason = notes[0] if notes else "there is no episode folder"
            raise RecordingError(f"'{self.path}' holds no readable episode: {reason}")
        unnamed = "joint_names" not in read_json_object(self._folder(first.id) / "metadata.json")
        if unnamed and not self.options.joints:
            width = len(first.joint_names)
            asks = f"the {width} action columns have no names; --robot NAME asserts their order, or "
            notes.append(Note("column.unnamed", asks + ask_for_names(width)))
        if first.state_names and unnamed:
            notes.append(Note("column.unnamed", f"the {len(first.state_names)} state columns have no names"))
        if not first.clock.has_rate:
            notes.append(Note("clock.missing", "no clock is recorded; --fps HZ says how fast frames follow each other"))
        if not first.cameras:
            notes.append(Note("camera.missing", "no images are recorded"))
        cameras = {name: _size_of(stream) for name, stream in first.cameras.items()}
        return RecordingInfo(
            format=NAME,
            version=_arrays_path(self._folder(first.id)).stem,
            robot=first.origin.robot,
            joint_names=first.joint_names,
            state_names=first.state_names,
            cameras=cameras,
            fps=first.fps if first.clock.has_rate else 0.0,
            episodes=episodes,
            frames=frames,
            tasks=tuple(tasks),
            duration=duration,
            successes=successes if said else None,
            notes=tuple(notes),
        )

    def _folder(self, episode_id: str) -> Path:
        return self.path if self._single else self.path / episode_id

    def _clock(self, metadata: dict[str, Any], arrays: dict[str, Any], length: int, folder: Path) -> Clock:
        """Recorded time stamps, else a rate, else the frame index alone."""
        fps = self.options.fps or metadata.get("fps")
        if fps is not None and not (isinstance(fps, int | float) and np.isfinite(fps) and fps > 0):
            raise RecordingError(f"'{folder / 'metadata.json'}': fps is {fps!r}, expected a positive number.")
        stamps = arrays.get("timestamps")
        if stamps is not None:
            if stamps.shape != (length,) or stamps.dtype.kind not in "fiu":
                raise RecordingError(
                    f"'{folder}': timestamps have shape {list(stamps.shape)}, expected [{length}] numbers."
                )
            stamps = stamps.astype(np.float64)
            is_index = np.array_equal(stamps, np.arange(length, dtype=np.float64)) and length > 1
            if not is_index:
                if fps is None:
                    steps = np.diff(stamps)
                    steps = steps[np.isfinite(steps) & (steps > 0)]
                    if not len(steps):
                        raise RecordingError(f"'{folder}': the time stamps never advance and no fps is recorded.")
                    fps = float(1.0 / np.median(steps))
                return Clock(stamps, float(fps))
        return Clock.counted(length) if fps is None else Clock.at_rate(length, float(fps))


def write_episode(root: Path, episode: Episode) -> Path:
    """Write one episode folder below `root`, whole or not at all, and return it.

    Numbers keep their dtype and bits. Images that are files already are copied byte for byte, others become PNG.
    Raises `RecordingError` where a folder of that name exists.
    """
    target = root / episode.id
    if Path(episode.id).name != episode.id or episode.id.startswith("."):
        raise RecordingError(f"'{episode.id}' cannot be a folder name.")
    if target.exists():
        raise RecordingError(f"'{target}' exists already; recordings are never overwritten.")
    with files.whole_folder(target, RecordingError) as temporary:
        with open(temporary / "trajectory.npz", "wb") as file:
            # Named arrays in a fixed order: the same episode gives the same bytes.
            arrays = {"actions": episode.actions}
            if episode.state_names:
                arrays["observations"] = episode.states
            arrays["timestamps"] = episode.timestamps
            arrays |= {f"{STREAM}{k}": s.values for k, s in episode.streams.items()}
            arrays |= {f"{STREAM_CLOCK}{k}": s.clock.stamps for k, s in episode.streams.items() if s.clock}
            save_arrays(file, arrays)
        names = list(episode.cameras)
        single = names == [DEFAULT_CAMERA]
        for name, stream in episode.cameras.items():
            _write_images(temporary / "images" if single else temporary / "images" / name, stream)
        metadata = {
            "instructions": list(episode.instructions),
            "task_descriptions": list(episode.instructions),
            "task_description": episode.instructions[0] if episode.instructions else DEFAULT_TASK,
            **({} if episode.success is None else {"success": episode.success}),
            "fps": episode.fps,
            "joint_names": list(episode.joint_names),
            "state_names": list(episode.state_names),
            "cameras": names,
            "segments": [vars(s) for s in episode.segments],
            "extras": _beside(episode),
        }
        if not is_whole(episode.texts, len(episode)):
            metadata["texts"] = texts_json(episode.texts)
        if episode.marks.spans or episode.marks.sources:
            metadata["marks"] = episode.marks.to_dict()
        if not episode.instructions:
            del metadata["task_description"]
        (temporary / "metadata.json").write_text(json.dumps(metadata, indent=1))
    return target


def _beside(episode: Episode) -> dict[str, Any]:
    """What the recorder or the simulator said of the episode beside its data."""
    origin, truth = episode.origin, episode.truth
    found: dict[str, Any] = {"robot": origin.robot} if origin.robot else {}
    found |= {} if truth is None else truth.to_dict()
    found |= {"kind": origin.kind} if origin.kind else {}
    found |= {"recorded_id": origin.recorded_id} if origin.recorded_id else {}
    rates = {k: s.clock.fps for k, s in episode.streams.items() if s.clock is not None}
    found |= {"stream_rates": rates} if rates else {}
    return found | dict(origin.metadata)


def _recorded_beside(metadata: dict[str, Any]) -> tuple[Origin, SimulatorTruth | None]:
    """The inverse of `_beside`; keys that nothing here reads stay in the origin's metadata."""
    beside = {k: v for k, v in metadata.items() if k not in KNOWN}
    more = metadata.get("extras")
    beside |= more if isinstance(more, dict) else {}
    truth = SimulatorTruth.from_dict(beside)
    if truth is not None:
        beside = {k: v for k, v in beside.items() if k not in TRUTH_KEYS}
    origin = Origin(
        robot=str(beside.pop("robot", "")),
        kind=str(beside.pop("kind", None) or beside.pop("task_kind", None) or ""),
        recorded_id=str(beside.pop("recorded_id", "")),
        metadata={k: v for k, v in beside.items() if k != "stream_rates"},
    )
    return origin, truth


def _streams(arrays: dict[str, Any], metadata: dict[str, Any], length: int) -> dict[str, Stream]:
    """Arrays that are neither actions nor states: our own with their clocks, others where they have a row a frame."""
    more = metadata.get("extras")
    rates = more.get("stream_rates") if isinstance(more, dict) else None
    rates = rates if isinstance(rates, dict) else {}
    streams: dict[str, Stream] = {}
    for key, values in arrays.items():
        stamps = arrays.get(STREAM_CLOCK + key.removeprefix(STREAM))
        if key in ROWS or key.startswith(STREAM_CLOCK) or values.dtype.kind not in "fiub" or not values.ndim:
            continue
        if stamps is not None:
            clock = Clock(stamps.astype(np.float64), float(rates.get(key.removeprefix(STREAM), 1.0)))
            streams[key.removeprefix(STREAM)] = Stream(values, clock)
        elif len(values) == length:
            streams[key.removeprefix(STREAM)] = Stream(values)
    return streams


def _write_images(folder: Path, stream: Frames) -> None:
    folder.mkdir(parents=True)
    for index in range(len(stream)):
        if isinstance(stream, StillFrames):
            data = stream.encoded(index)
            suffix = "png" if data[:4] == b"\x89PNG" else "jpg"
            (folder / f"rgb_{index:04d}.{suffix}").write_bytes(data)
        else:
            PillowImage.fromarray(stream[index]).save(folder / f"rgb_{index:04d}.png", compress_level=1)


def _looks_like_episode(folder: Path) -> bool:
    has_arrays = any((folder / name).is_file() for name in ARRAYS)
    has_metadata = (folder / "metadata.json").is_file()
    return (
        has_arrays
        or (has_metadata and not (folder / "meta").exists())
        or (has_metadata and (folder / "images").is_dir())
    )


def _arrays_path(folder: Path) -> Path:
    found = [folder / name for name in ARRAYS if (folder / name).is_file()]
    if not found:
        raise RecordingError(f"'{folder}' has neither {ARRAYS[0]} nor {ARRAYS[1]}.")
    if len(found) > 1:
        raise RecordingError(f"'{folder}' has both {ARRAYS[0]} and {ARRAYS[1]}; which one is meant? Remove one.")
    return found[0]


def _matrix(array: np.ndarray[Any, Any] | None, path: Path, name: str) -> np.ndarray[Any, Any]:
    if array is None:
        raise RecordingError(f"'{path}' has no array '{name}'; it has {sorted(npz_headers(path))}.")
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] == 0:
        raise RecordingError(f"'{path}': '{name}' is {array.dtype} {list(array.shape)}, expected numbers [T, columns].")
    if len(array) == 0:
        raise RecordingError(f"'{path}': '{name}' has no rows.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _names(metadata: dict[str, Any], key: str, width: int, folder: Path) -> list[str] | None:
    names = metadata.get(key)
    if names is None or (width == 0 and not names):
        return None
    if not isinstance(names, list) or len(names) != width or not all(isinstance(n, str) for n in names):
        count = len(names) if isinstance(names, list) else "no list of"
        which = f": {', '.join(map(str, names))}" if isinstance(names, list) else ""
        raise RecordingError(f"'{folder / 'metadata.json'}': {key} has {count} names for {width} columns{which}.")
    return names


def _cameras(folder: Path, metadata: dict[str, Any], length: int) -> dict[str, StillFrames]:
    images = folder / "images"
    if not images.is_dir():
        return {}
    named = sorted((e.name for e in os.scandir(images) if e.is_dir()), key=natural_key)
    declared = metadata.get("cameras")
    order = declared if isinstance(declared, list) and sorted(map(str, declared)) == sorted(named) else named
    cameras: dict[str, StillFrames] = {str(name): image_files(images / str(name)).for_rows(length) for name in order}
    flat = image_files(images).for_rows(length)
    if len(flat):
        name = declared[0] if isinstance(declared, list) and len(declared) == 1 else DEFAULT_CAMERA
        cameras[str(name)] = flat
    return {name: stream for name, stream in cameras.items() if len(stream)}


def _segments(metadata: dict[str, Any], length: int, folder: Path) -> tuple[Segment, ...]:
    with guarded(f"segments in '{folder / 'metadata.json'}'"):
        segments = tuple(Segment(**s) for s in metadata.get("segments") or ())
    for s in segments:
        if not (isinstance(s.start, int) and isinstance(s.stop, int) and 0 <= s.start < s.stop <= length):
            raise RecordingError(f"'{folder}': segment {s.start}..{s.stop} lies outside its {length} frames.")
    return segments


def _size_of(stream: Frames) -> tuple[int, int]:
    if isinstance(stream, StillFrames):
        return image_size(stream.encoded(0), stream.describe(0))
    height, width, _ = stream[0].shape
    return height, width
