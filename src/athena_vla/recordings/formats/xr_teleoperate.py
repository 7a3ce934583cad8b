"""Reads Unitree xr_teleoperate JSON recordings: episode folders with data.json and images named per frame."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Frames, Origin, RecordingInfo, Segment
from athena_vla.recordings.formats.common import (
    BaseRecording,
    ImageFiles,
    OpenOptions,
    broken_note,
    depth_note,
    guarded,
    image_size,
    inside,
    natural_key,
    read_json_object,
    text_list,
    unused,
)
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import said

NAME = "xr_teleoperate"
LOOKED_AT = 24  # images in the middle of an episode whose bytes are compared


def detect(path: Path) -> bool:
    """True for an episode folder, or a folder of them, with data.json."""
    if not path.is_dir():
        return False
    return (path / "data.json").is_file() or any(
        e.is_dir() and (Path(e.path) / "data.json").is_file() for e in os.scandir(path)
    )


def open_path(path: Path, options: OpenOptions) -> "XRTeleoperate":
    return XRTeleoperate(path, options)


class XRTeleoperate(BaseRecording):
    """A task folder of `episode_0001/` folders, or one of them."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        self._single = (path / "data.json").is_file()

    def ids(self) -> tuple[str, ...]:
        if self._single:
            return (self.path.name,)
        names = [e.name for e in os.scandir(self.path) if e.is_dir() and (Path(e.path) / "data.json").is_file()]
        return tuple(sorted(names, key=natural_key))

    def read(self, episode_id: str, /) -> Episode:
        folder = self.path if self._single else self.path / episode_id
        if Path(episode_id).name != episode_id or not folder.is_dir():
            raise RecordingError(f"There is no episode '{episode_id}' in '{self.path}'.")
        raw = read_json_object(folder / "data.json")
        with guarded(f"'{folder / 'data.json'}'"):
            return self._read(episode_id, folder, raw)

    def info(self) -> RecordingInfo:
        notes: list[Note] = []
        frames = episodes = 0
        tasks: dict[str, None] = {}
        first: Episode | None = None
        for episode in self.episodes():
            if isinstance(episode, BrokenEpisode):
                notes.append(broken_note(episode))
                continue
            first = first or episode
            episodes, frames = episodes + 1, frames + len(episode)
            tasks |= dict.fromkeys(episode.instructions[:1])
            notes += episode.notes
        if first is None:
            raise RecordingError(f"'{self.path}' holds no readable episode: {notes[0] if notes else 'it is empty'}")
        cameras: dict[str, tuple[int, int]] = {}
        for name, stream in first.cameras.items():
            assert isinstance(stream, ImageFiles)
            present = next((f for f in stream.files if f is not None and f.is_file()), None)
            if present is not None:
                cameras[name] = image_size(present, f"'{present}'")
        return RecordingInfo(
            format=NAME,
            version=first.origin.version,
            robot=first.origin.robot,
            joint_names=first.joint_names,
            state_names=first.state_names,
            cameras=cameras,
            fps=first.fps,
            episodes=episodes,
            frames=frames,
            tasks=tuple(tasks),
            duration=frames / first.fps,
            successes=None,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _read(self, episode_id: str, folder: Path, raw: Mapping[str, Any]) -> Episode:
        rows = raw.get("data")
        if not isinstance(rows, list) or not rows:
            raise RecordingError(f"'{folder / 'data.json'}' holds no frames.")
        info = raw.get("info") or {}
        names = info.get("joint_names") or {}
        actions, joint_names = _table(rows, "actions", names, folder)
        states, state_names = _table(rows, "states", names, folder)
        rate = self.options.fps or (info.get("image") or {}).get("fps") or 30.0
        notes: list[Note] = []
        if not self.options.fps and not (info.get("image") or {}).get("fps"):
            notes.append(Note("clock.guessed", "no rate is recorded: 30 Hz, which this recorder always uses"))
        cameras: dict[str, Frames] = {}
        keys = list(dict.fromkeys(k for r in rows for k in (r.get("colors") or {})))
        for key in keys:
            files: list[Path | None] = []
            for row in rows:
                name = (row.get("colors") or {}).get(key)
                path = inside(folder, name, f"frame {row.get('idx')}") if isinstance(name, str) and name else None
                files.append(path if path is not None and path.is_file() else None)
            lost = files.count(None)
            if lost:
                lacks = f"{episode_id}: camera '{key}' lacks {lost} of {len(rows)} images"
                notes.append(Note("camera.pictures_lost", lacks, (key,), episode_id))
            if lost < len(files):
                cameras[key] = ImageFiles(tuple(files), f"camera '{key}' of '{folder}'")
            held = _held(files)
            if held > 1 and not self.options.fps:
                twice = (
                    f"every image of camera '{key}' is stored {held} times in a row: rows may run at {held * rate:g} "
                    f"Hz, {held} times the camera's {rate:g} Hz, which were taken; --fps {held * rate:g} says so"
                )
                notes.append(Note("clock.guessed", twice, (key,), episode_id))
        streams, left = _streams(rows)
        notes += [depth_note(k, episode_id) for k in sorted({k for r in rows for k in (r.get("depths") or {})})]
        notes += unused(left, "values", episode_id)
        text = raw.get("text") or {}
        instructions = text_list([text.get("goal"), text.get("desc")])
        steps = _steps(str(text.get("steps") or ""))
        indices = [r.get("idx") for r in rows]
        if indices != list(range(len(rows))) and all(isinstance(i, int) for i in indices):
            said_numbers = f"{episode_id}: frame numbers are not 0..{len(rows) - 1}"
            notes.append(Note("count.gaps", said_numbers, episode=episode_id))
        return Episode(
            id=episode_id,
            clock=Clock.at_rate(len(rows), float(rate)),
            joint_names=joint_names if joint_names else self.names("action", actions.shape[1], None),
            actions=actions,
            state_names=state_names,
            states=states,
            cameras=cameras,
            texts=said(instructions, len(rows)),
            segments=_even(steps, len(rows)),
            source=f"{NAME}:{folder}",
            streams=streams,
            origin=Origin(robot="unitree", version=str(info.get("version", "")), metadata={"steps": steps}),
            notes=tuple(notes),
        )


def _streams(rows: list[Mapping[str, Any]]) -> tuple[dict[str, Stream], set[str]]:
    """(numbers of every row beside the joint positions, names of everything else that is recorded)."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in _leaves(row):
            found.setdefault(name, []).append(value)
    streams: dict[str, Stream] = {}
    left: set[str] = set()
    for name, values in found.items():
        try:
            table = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            left.add(name)
            continue
        if len(table) == len(rows) and np.isfinite(table).all():
            streams[name] = Stream(table)
        else:
            left.add(name)
    return streams, left


def _leaves(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Path and value of all that a row holds, but its number, its images and the joint positions."""
    for key, value in row.items():
        if key in ("idx", "colors", "depths"):
            continue
        for limb, part in value.items() if isinstance(value, Mapping) else ():
            for kind, numbers in part.items() if isinstance(part, Mapping) else [("", part)]:
                is_position = key in ("states", "actions") and kind == "qpos"
                if not is_position and numbers not in (None, [], {}, ""):
                    yield "/".join(filter(None, (key, limb, kind))), numbers
        if not isinstance(value, Mapping) and value not in (None, [], {}, ""):
            yield key, value


def _held(files: list[Path | None]) -> int:
    """How often each image is stored in a row, by its bytes: rows of a recorder that is faster than its camera."""
    start = max(0, len(files) // 2 - LOOKED_AT // 2)
    some = files[start : start + LOOKED_AT]
    if len(some) < LOOKED_AT or None in some:
        return 1
    data = [f.read_bytes() for f in some if f is not None]
    changes = [i for i in range(1, len(data)) if data[i] != data[i - 1]]
    apart = {b - a for a, b in itertools.pairwise(changes)}
    return apart.pop() if len(apart) == 1 else 1


def _table(
    rows: list[Mapping[str, Any]], kind: str, names: Mapping[str, Any], folder: Path
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Joint positions of all limbs side by side, in the order the first frame lists them."""
    limbs = [k for k, v in (rows[0].get(kind) or {}).items() if isinstance(v, Mapping) and v.get("qpos")]
    columns: list[NDArray[np.float64]] = []
    labels: list[str] = []
    for limb in limbs:
        values = [np.atleast_1d(np.asarray((r.get(kind) or {}).get(limb, {}).get("qpos"), np.float64)) for r in rows]
        if any(v.shape != values[0].shape or v.ndim != 1 for v in values):
            raise RecordingError(f"'{folder / 'data.json'}': {kind}.{limb}.qpos changes its length within the episode.")
        columns.append(np.stack(values))
        given = names.get(limb)
        own = given if isinstance(given, list) and len(given) == values[0].shape[0] else None
        labels += [str(n) for n in own] if own else [f"{limb}_{i}" for i in range(values[0].shape[0])]
    if len(set(labels)) != len(labels):
        labels = [f"{limb}_{i}" for limb, c in zip(limbs, columns, strict=True) for i in range(c.shape[1])]
    if not columns:
        return np.zeros((len(rows), 0)), ()
    return np.concatenate(columns, axis=1), tuple(labels)


def _steps(text: str) -> list[str]:
    """`step1: reach; step2: grasp` as its parts."""
    parts = re.split(r"[;\n]|(?=\bstep\s*\d+\s*[:.])", text)
    plain = [re.sub(r"^\s*(step\s*)?\d+\s*[:.)]\s*", "", p).strip(" ,.;") for p in parts]
    return [p for p in plain if p]


def _even(steps: list[str], length: int) -> tuple[Segment, ...]:
    """The human's steps, spread evenly: their order is certain, their boundaries are not; hence the confidence."""
    if len(steps) < 2 or length < len(steps):
        return ()
    edges = np.linspace(0, length, len(steps) + 1).astype(int).tolist()
    return tuple(Segment(edges[i], edges[i + 1], "task", s, "human", 0.3) for i, s in enumerate(steps))
