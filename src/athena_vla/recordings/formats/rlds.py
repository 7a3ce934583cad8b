"""Reads RLDS/TFDS tfrecord sets (Open X, Bridge, OpenVLA) without TensorFlow: one record per episode, CRC checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Frames, Origin, RecordingInfo, Segment
from athena_vla.recordings.formats.common import (
    NOT_RGB,
    BaseRecording,
    OpenOptions,
    StillFrames,
    broken_note,
    depth_note,
    guarded,
    image_size,
    is_depth_image,
    natural_key,
    read_json_object,
    refuse_lfs,
    success_of,
    text_list,
)
from athena_vla.recordings.formats.tfrecord import Value, parse_example, read_record, record_offsets
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import all_texts, from_frames, said, texts_from_json

NAME = "rlds"
SIDECAR = "athena.json"
# DROID has three wordings of a task: language_instruction, language_instruction_2 and _3.
TEXTS = re.compile(r"(?:natural_)?(?:language_)?instruction(?:_\d+)?|language|task|task_description|goal_text")
STATES = ("state", "proprio", "joint_pos", "joint_position", "joint_positions", "joint_states", "qpos")
ACTIONS = ("action", "action_dict/joint_position", "actions")
SUCCESS = ("success", "is_success", "episode_success")
OF_STEPS = ("is_first", "is_last", "is_terminal", "reward", "discount")  # what RLDS itself adds to every step
DEEP = ("uint16", "int32", "float32", "float64")  # types of images that are depth


def detect(path: Path) -> bool:
    """True for a version folder (dataset_info.json + features.json), or a folder that holds one below it."""
    return _version_folder(path) is not None


def open_path(path: Path, options: OpenOptions) -> "RLDS":
    folder = _version_folder(path)
    if folder is None:
        raise RecordingError(f"'{path}' has no dataset_info.json with features.json.")
    return RLDS(folder, options)


def _version_folder(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    for pattern in ("", "*/", "*/*/"):
        found = sorted(
            p.parent for p in path.glob(f"{pattern}dataset_info.json") if (p.parent / "features.json").is_file()
        )
        if found:
            if len(found) > 1:
                raise RecordingError(f"'{path}' holds several RLDS sets: {[str(f) for f in found][:5]}. Choose one.")
            return found[0]
    return None


@dataclass(frozen=True)
class Leaf:
    """One feature of a step: its shape below the time axis and what kind it is."""

    kind: str  # number | image | text
    shape: tuple[int, ...]
    dtype: str = ""  # of tensors stored as bytes


class RLDS(BaseRecording):
    """One version folder of a TFDS dataset."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        self.raw = read_json_object(path / "dataset_info.json")
        kind = str(self.raw.get("fileFormat") or "tfrecord")
        if kind != "tfrecord":
            raise RecordingError(
                f"'{path}' is stored as {kind}; only tfrecord is read. Rebuild it with file_format=tfrecord."
            )
        with guarded(f"'{path / 'features.json'}'"):
            self.leaves = _leaves(read_json_object(path / "features.json"))
        self.notes: list[Note] = []
        side = path / SIDECAR
        self.sidecar = read_json_object(side) if side.is_file() else {}
        self.records: dict[str, tuple[Path, int, int, str]] = {}
        self.counts: dict[str, int] = {}  # split -> readable records
        for file in sorted(path.glob("*.tfrecord*"), key=lambda p: natural_key(p.name)):
            self._scan(file)
        self._declared()

    def ids(self) -> tuple[str, ...]:
        return tuple(self.records)

    def whole_notes(self) -> tuple[Note, ...]:
        return tuple(self.notes)

    def read(self, episode_id: str, /) -> Episode:
        if episode_id not in self.records:
            raise RecordingError(f"There is no episode '{episode_id}' in '{self.path}'.")
        file, offset, length, reason = self.records[episode_id]
        if reason:
            raise RecordingError(reason)
        with guarded(f"episode {episode_id} of '{self.path}'"):
            return self._episode(episode_id, parse_example(read_record(file, offset, length, f"episode {episode_id}")))

    def info(self) -> RecordingInfo:
        notes, frames, episodes = list(self.notes), 0, 0
        tasks: dict[str, None] = {}
        first: Episode | None = None
        successes: list[bool] = []
        for episode in self.episodes():
            if isinstance(episode, BrokenEpisode):
                notes.append(broken_note(episode))
                continue
            first = first or episode
            episodes, frames = episodes + 1, frames + len(episode)
            tasks |= dict.fromkeys(episode.instructions[:1])
            successes += [episode.success] if episode.success is not None else []
        fps = first.clock.rate(0.0) if first else 0.0
        if first and not fps:
            notes.append(Note("clock.missing", "no rate is recorded; --fps HZ says how fast frames follow each other"))
        cameras: dict[str, tuple[int, int]] = {}
        for name, stream in (first.cameras if first else {}).items():
            assert isinstance(stream, StillFrames)
            cameras[name] = image_size(stream.encoded(0), stream.describe(0))
        return RecordingInfo(
            format=NAME,
            version=str(self.raw.get("version") or self.path.name),
            robot=str(self.sidecar.get("robot") or ""),
            joint_names=first.joint_names if first else (),
            state_names=first.state_names if first else (),
            cameras=cameras,
            fps=fps,
            episodes=episodes,
            frames=frames,
            tasks=tuple(tasks),
            duration=frames / fps if fps else 0.0,
            successes=sum(successes) if successes else None,
            notes=tuple(notes),
        )

    def _scan(self, file: Path) -> None:
        refuse_lfs(file)
        split = re.sub(r"^.*-([a-zA-Z_]+)\.tfrecord.*$", r"\1", file.name)
        with guarded(f"'{file}'"):
            try:
                found = record_offsets(file)
            except RecordingError as error:
                found = []
                self.records[f"{file.name}"] = (file, 0, 0, str(error))
        counted = self.counts.setdefault(split, 0)
        for number, (offset, length) in enumerate(found, counted):
            self.records[f"{split}_{number:05d}"] = (file, offset, length, "")
        self.counts[split] = counted + len(found)

    def _declared(self) -> None:
        for split in self.raw.get("splits") or ():
            with guarded(f"splits of '{self.path}'"):
                declared = sum(int(n) for n in split.get("shardLengths") or ())
            true = self.counts.get(str(split.get("name")), 0)
            if declared != true:
                name = split.get("name")
                says = f"dataset_info declares {declared} episodes in split '{name}', there are {true}"
                self.notes.append(Note("count.declared", says))

    def _episode(self, episode_id: str, features: Mapping[str, Value]) -> Episode:
        steps = {k.removeprefix("steps/"): v for k, v in features.items() if k.startswith("steps/")}
        flags = steps.get("is_first", steps.get("is_last"))
        if flags is None or not len(flags):
            raise RecordingError(f"Episode {episode_id} of '{self.path}' has no steps.")
        length = len(flags)
        columns: dict[str, NDArray[Any]] = {}
        cameras: dict[str, Frames] = {}
        words: list[list[str]] = []  # columns of one text per step
        notes: list[Note] = []
        unread: list[str] = []
        success: bool | None = None
        for name, leaf in self.leaves.items():
            value = steps.get(name)
            if value is None:
                continue
            short = _leaf(name)
            if leaf.kind == "image" and (leaf.dtype in DEEP or NOT_RGB.search(short)):
                unread += [name] if "seg" in short else []
                notes += [] if "seg" in short else [depth_note(name, episode_id)]
            elif leaf.kind == "image" and isinstance(value, list):
                if len(value) != length:
                    raise RecordingError(f"Episode {episode_id}: {len(value)} images of '{short}' for {length} steps.")
                if any(value) and is_depth_image(next(v for v in value if v)):
                    notes.append(depth_note(name, episode_id))
                elif any(value):
                    cameras[short] = EncodedFrames(tuple(value), f"camera '{short}' of episode {episode_id}")
            elif leaf.kind == "text" and isinstance(value, list):
                texts = [v.decode("utf-8", "replace").strip() for v in value]
                if TEXTS.fullmatch(short):
                    words.append(texts * length if len(texts) == 1 else texts)
                elif any(texts):
                    unread.append(name)
            elif isinstance(value, list):
                columns[name] = _from_bytes(value, leaf, length, f"'{name}' of episode {episode_id}")
            else:
                columns[name] = self._shaped(value, leaf, length, f"'{name}' of episode {episode_id}")
        if not any(any(w) for w in words):  # some sets keep the words beside the steps
            words += [texts * length for texts in self._beside(features) if texts]
        for key in (*(f"steps/{k}" for k in SUCCESS), *(f"episode_metadata/{k}" for k in SUCCESS)):
            success = success_of(features.get(key)) if success is None else success
        unread += sorted(k for k in features if not k.startswith("steps/") and _leaf(k) not in SUCCESS)
        if unread:
            what = f"{len(unread)} recorded features are no part of an episode: {', '.join(unread)}"
            notes.append(Note("stream.unused", what, tuple(unread), episode_id))
        action_key = next((k for k in ACTIONS if k in columns), None)
        action = columns.pop(action_key) if action_key else None
        for key in (*OF_STEPS, *SUCCESS):
            columns.pop(key, None)
        state_key = next((f"observation/{k}" for k in STATES if f"observation/{k}" in columns), None)
        states = columns.pop(state_key) if state_key else np.zeros((length, 0), np.float32)
        actions = np.zeros((length, 0), np.float32) if action is None else action
        side = self.sidecar.get("episodes", {}).get(episode_id, {}) if isinstance(self.sidecar, dict) else {}
        clock = self._clock(columns, side, length)
        spans = from_frames(words)
        segments = tuple(Segment(**s) for s in side.get("segments", ()))
        if not segments and len(spans) > 1:
            segments = tuple(Segment(s.start, s.stop, "task", s.alternatives[0], "human", 1.0) for s in spans)
        if side.get("texts"):
            spans = texts_from_json(side["texts"])
        elif len(spans) <= 1:
            spans = said(text_list([*all_texts(spans), *side.get("instructions", ())]), length)
        marks = Marks(success if side.get("success") is None else success_of(side["success"]))
        if side.get("marks"):
            marks = replace(Marks.from_dict(side["marks"]), success=marks.success)
        return Episode(
            id=episode_id,
            clock=clock,
            joint_names=self.names("action", actions.reshape(length, -1).shape[1], self.sidecar.get("joint_names")),
            actions=actions.reshape(length, -1),
            state_names=self.names("state", states.reshape(length, -1).shape[1], self.sidecar.get("state_names")),
            states=states.reshape(length, -1),
            cameras=cameras,
            texts=spans,
            marks=marks,
            segments=segments,
            source=f"{NAME}:{self.path}#{episode_id}",
            streams={k: Stream(v) for k, v in self._streams(columns, side).items()},
            origin=Origin(
                robot=str(self.sidecar.get("robot") or ""),
                kind=str(side.get("kind") or ""),
                recorded_id=str(side.get("id") or ""),
            ),
            notes=tuple(notes),
        )

    def _beside(self, features: Mapping[str, Value]) -> list[list[str]]:
        """Words that stand once for an episode, in its metadata."""
        found = [v for k, v in sorted(features.items()) if not k.startswith("steps/") and TEXTS.fullmatch(_leaf(k))]
        return [
            [v[0].decode("utf-8", "replace").strip()] for v in found if isinstance(v, list) and len(v) == 1 and v[0]
        ]

    def _clock(self, columns: dict[str, NDArray[Any]], side: Mapping[str, Any], length: int) -> Clock:
        """The episode's clock; takes its column out of `columns`."""
        fps = self.options.fps or self.sidecar.get("fps")
        stamps = columns.pop("observation/timestamp", None)
        if side.get("timestamps"):
            stamps = np.array(side["timestamps"], np.float64)
        if stamps is None:
            return Clock.at_rate(length, float(fps)) if fps else Clock.counted(length)
        stamps = stamps.reshape(-1).astype(np.float64)
        if fps is None and length > 1:
            fps = float(1.0 / np.median(np.diff(stamps)))
        return Clock(stamps, float(fps or 1.0))

    def _streams(self, columns: Mapping[str, NDArray[Any]], side: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        names = side.get("streams", {})
        plain = {k.removeprefix("observation/"): v for k, v in columns.items()}
        if not names:
            return plain
        return {names[k]["name"]: v for k, v in plain.items() if k in names}

    def _shaped(self, value: NDArray[Any], leaf: Leaf, length: int, what: str) -> NDArray[Any]:
        size = int(np.prod(leaf.shape)) if leaf.shape else 1
        if size <= 0 or len(value) != length * size:
            if length and len(value) % length == 0:
                return value.reshape(length, -1)
            raise RecordingError(f"{what} has {len(value)} values for {length} steps of shape {list(leaf.shape)}.")
        return value.reshape(length, *leaf.shape)


def _leaf(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _from_bytes(value: list[bytes], leaf: Leaf, length: int, what: str) -> NDArray[Any]:
    """A tensor whose steps are stored as raw bytes, which keeps types that a float_list would round."""
    if not leaf.dtype or len(value) != length:
        raise RecordingError(f"{what} holds bytes where numbers are declared.")
    return np.frombuffer(b"".join(value), np.dtype(leaf.dtype).newbyteorder("<")).reshape(length, *leaf.shape)


@dataclass(frozen=True)
class EncodedFrames(StillFrames):
    """Images kept as the encoded bytes of a record."""

    pictures: tuple[bytes, ...]
    what: str

    def __len__(self) -> int:
        return len(self.pictures)

    def describe(self, index: int, /) -> str:
        return f"frame {index} of {self.what}"

    def encoded(self, index: int, /) -> bytes:
        return self.pictures[index]


def _leaves(node: Mapping[str, Any]) -> dict[str, Leaf]:
    """Features of one step, by their path below `steps/`."""
    top = node.get("featuresDict", {}).get("features", {})
    steps = top.get("steps")
    if not isinstance(steps, Mapping):
        raise RecordingError(f"features.json has no 'steps'; it has {sorted(top)}.")
    found: dict[str, Leaf] = {}
    _walk(steps.get("sequence", {}).get("feature", steps), "", found)
    return found


def _walk(node: Mapping[str, Any], name: str, found: dict[str, Leaf]) -> None:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            _walk(child, f"{name}/{key}" if name else key, found)
    elif "image" in node:
        found[name] = Leaf("image", (), str(node["image"].get("dtype") or ""))
    elif "text" in node or "Text" in str(node.get("pythonClassName", "")):
        found[name] = Leaf("text", ())
    elif "tensor" in node:
        dimensions = node["tensor"].get("shape", {}).get("dimensions", [])
        dtype = str(node["tensor"].get("dtype", ""))
        as_bytes = str(node["tensor"].get("encoding", "none")).lower() == "bytes"
        kind = "text" if dtype == "string" else "number"
        found[name] = Leaf(kind, tuple(int(d) for d in dimensions), dtype if as_bytes else "")
