"""Reads LeRobot sets v2.0, v2.1 and v3.0: native, converted, GR00T-flavoured, and our own with their sidecar.

Follows what the files hold; where metadata and files disagree, the files win and a note says so.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from athena_vla.errors import AthenaError, LfsPointer, RecordingError
from athena_vla.recordings.episode import Episode, Frames, Origin, RecordingInfo, Segment
from athena_vla.recordings.formats.arrow import numbers, pictures
from athena_vla.recordings.formats.common import (
    DEPTH_NAME,
    NOT_RGB,
    BaseRecording,
    OpenOptions,
    StillFrames,
    depth_note,
    guarded,
    image_size,
    is_depth_image,
    optional_bool,
    refuse_lfs,
    success_of,
    text_list,
)
from athena_vla.recordings.formats.lerobot_columns import (
    INDICES,
    SINGLE,
    STRINGS,
    Columns,
    joined_parts,
    language_columns,
    names_of,
    parts_of,
    read_columns,
)
from athena_vla.recordings.formats.lerobot_meta import LeRobotMeta
from athena_vla.recordings.formats.lerobot_names import language_segments, runs
from athena_vla.recordings.formats.lerobot_schema import SUBTASK, Feature
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.media.joined import by_time, joined
from athena_vla.recordings.media.video import VideoFrames
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock, Stream
from athena_vla.recordings.texts import Texts, from_frames, said, texts_from_json

NAME = "lerobot"
SUCCESS = ("next.success", "success", "is_episode_successful", "episode_success", "is_success")
SEGMENTS = re.compile(r"segment|subtask|skill|(?:coarse|fine)_action", re.IGNORECASE)  # of a part of the task
DEEP_PIXELS = ("gray10", "gray12", "gray14", "gray16", "gray9", "grayf", "gray32")
IMAGE_PREFIX = "observation.images."
EXACT_TIME = "athena.timestamp"  # the recorder's own time stamps, where the format's float32 would round them


def detect(path: Path) -> bool:
    """True where meta/info.json is there; what it says is checked on opening."""
    return path.is_dir() and (path / "meta" / "info.json").is_file()


def open_path(path: Path, options: OpenOptions) -> "LeRobot":
    return LeRobot(path, options)


class LeRobot(BaseRecording):
    """One LeRobot set."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        self.meta = LeRobotMeta(path, options.fps)
        self._cached: tuple[Path, Any] | None = None

    def ids(self) -> tuple[str, ...]:
        return tuple(str(i) for i in sorted(self.meta.rows))

    def whole_notes(self) -> tuple[Note, ...]:
        return (*self.meta.notes, *self.meta.shared_spans())

    def read(self, episode_id: str, /) -> Episode:
        if not episode_id.isdigit() or int(episode_id) not in self.meta.rows:
            raise RecordingError(f"There is no episode '{episode_id}' in '{self.path}'.")
        index = int(episode_id)
        with guarded(f"episode {index} of '{self.path}'"):
            return self._read(index)

    def info(self) -> RecordingInfo:
        notes = list(self.whole_notes())
        files: dict[Path, int] = {}
        readable = frames = 0
        for index in sorted(self.meta.rows):
            try:
                path = self.meta.data_file(index)
                if path not in files:
                    refuse_lfs(path)
                    with guarded(f"'{path}'"):
                        files[path] = pq.ParquetFile(path).metadata.num_rows
                readable += 1
            except RecordingError as error:
                notes.append(Note(note_code(error), str(error), episode=str(index)))
        frames = sum(files.values())
        for what, declared, true in (
            ("total_episodes", self.meta.raw.get("total_episodes"), readable),
            ("total_frames", self.meta.raw.get("total_frames"), frames),
        ):
            if declared != true:
                notes.append(Note("count.declared", f"info.json declares {what} {declared}, the files hold {true}"))
        first, cameras = self._first(notes)
        successes = [e.get("success") for e in self.meta.sidecar.values()]
        said = [s for s in successes if isinstance(s, bool)]
        if first is not None and first.success is not None and not said:
            said = [e.success is True for e in self.episodes() if isinstance(e, Episode)]
        tasks = tuple(t for i, t in sorted(self.meta.tasks.items()) if i in self._used_tasks())
        return RecordingInfo(
            format=NAME,
            version=self.meta.version,
            robot=str(self.meta.raw.get("robot_type") or ""),
            joint_names=first.joint_names if first else (),
            state_names=first.state_names if first else (),
            cameras=cameras,
            fps=self.meta.fps,
            episodes=readable,
            frames=frames,
            tasks=tasks or (first.instructions if first else ()),
            duration=frames / self.meta.fps,
            successes=sum(said) if said else None,
            notes=tuple(notes),
        )

    def _first(self, notes: list[Note]) -> tuple[Episode | None, dict[str, tuple[int, int]]]:
        """The first readable episode and the true size of its cameras."""
        for index in sorted(self.meta.rows):
            try:
                first = self.read(str(index))
            except RecordingError as error:
                notes.append(Note(note_code(error), str(error), episode=str(index)))
                continue
            notes += [replace(n, text=f"episode {index}: {n.text}") for n in first.notes]
            cameras: dict[str, tuple[int, int]] = {}
            for name, stream in first.cameras.items():
                if isinstance(stream, VideoFrames):
                    cameras[name] = (stream.height, stream.width)
                elif isinstance(stream, StillFrames):
                    cameras[name] = image_size(stream.encoded(0), f"camera '{name}'")
                else:
                    cameras[name] = (stream[0].shape[0], stream[0].shape[1])
            return first, cameras
        return None, {}

    def _used_tasks(self) -> set[int]:
        """Task indices that frames refer to; tasks.jsonl of GR00T sets also holds validity labels."""
        used: set[int] = set()
        seen: set[Path] = set()
        for index in sorted(self.meta.rows):
            try:
                path = self.meta.data_file(index)
                if path in seen:
                    continue
                seen.add(path)
                with guarded(f"'{path}'"):
                    table = pq.read_table(path, columns=["task_index"])
                used |= set(np.unique(numbers(table["task_index"], str(path))).tolist())
            except RecordingError:
                continue  # named by info() already
        return used

    def _read(self, index: int) -> Episode:
        path = self.meta.data_file(index)
        table = self._table(path, index)
        length = table.num_rows
        read = read_columns(table, self.meta.features, str(path), str(index))
        columns, notes = read.numbers, read.notes
        images = self._cameras(index, table, columns, notes)
        actions, states = (
            parts_of(kind, columns, self.meta.features, self.meta.modality.get(kind)) for kind in ("action", "state")
        )
        notes += [
            Note("column.missing", f"column '{k}' is promised, but missing", (k,), str(index))
            for k in SINGLE["action"]
            if k in self.meta.features and not actions
        ]
        action_values, state_values = joined_parts(actions, columns, length), joined_parts(states, columns, length)
        texts, segments = self._language(index, read, table, length)
        side = self.meta.sidecar.get(index, {})
        if side.get("segments"):
            segments = tuple(Segment(**s) for s in side["segments"])
        success = optional_bool(side.get("success"))
        for told in (columns, read.words, self.meta.rows[index]):
            for name in SUCCESS:
                success = success_of(told.get(name)) if success is None else success
        marks = Marks(success)
        if side.get("marks"):
            marks = replace(Marks.from_dict(side["marks"]), success=success)
        used = INDICES | {p.column for p in (*actions, *states)} | {EXACT_TIME, *SUCCESS}
        used |= {SUBTASK} if self.meta.subtasks else set()
        streams, names = {k: v for k, v in columns.items() if k not in used}, side.get("streams") or {}
        return Episode(
            id=str(index),
            clock=self._clock(columns, length),
            joint_names=self.names("action", action_values.shape[1], names_of(actions)),
            actions=action_values,
            state_names=self.names("state", state_values.shape[1], names_of(states)),
            states=state_values,
            cameras=images,
            texts=texts,
            marks=marks,
            segments=segments,
            source=f"{NAME}:{self.path}#{index}",
            streams={
                names.get(k, {}).get("name", k): Stream(v.reshape(length, *names[k]["shape"]) if k in names else v)
                for k, v in streams.items()
            },
            origin=Origin(
                robot=str(self.meta.raw.get("robot_type") or ""),
                kind=str(side.get("kind") or ""),
                recorded_id=str(side.get("id") or ""),
                declared_length=declared if isinstance(declared := self.meta.rows[index].get("length"), int) else None,
            ),
            notes=tuple(notes),
        )

    def _clock(self, columns: Mapping[str, NDArray[Any]], length: int) -> Clock:
        for name in (EXACT_TIME, "timestamp"):
            if name in columns:
                return Clock(columns[name].reshape(-1).astype(np.float64), self.meta.fps)
        return Clock.at_rate(length, self.meta.fps)

    def _cameras(
        self, index: int, table: Any, columns: Mapping[str, NDArray[Any]], notes: list[Note]
    ) -> dict[str, Frames]:
        """The colour images of each row; what is promised and not there, or is depth, is noted."""
        found: dict[str, Frames] = {}
        for key, feature in self.meta.features.items():
            kind, name = feature.get("dtype"), key.removeprefix(IMAGE_PREFIX)
            if kind not in ("image", "video"):
                continue
            if kind == "image" and key not in table.column_names:
                lacks = f"camera '{key}' is promised, but the data file has no such column"
                notes.append(Note("camera.missing", lacks, (key,), str(index)))
                continue
            try:
                if kind == "image":
                    stream: Frames = pictures(table[key], self.path, f"{key} of episode {index}")
                    is_depth = says_depth(feature) or first_is_depth(stream)
                else:
                    path, start, stop = self.meta.video_span(index, key)
                    video = VideoFrames(path, start, stop)
                    is_depth = says_depth(feature) or video.pixels.startswith(DEEP_PIXELS)
                    stream = self._joined(index, key, video, start, columns, notes)
            except RecordingError as error:
                code = "file.lfs_pointer" if isinstance(error, LfsPointer) else "camera.missing"
                notes.append(Note(code, f"camera '{key}': {error}", (key,), str(index)))
                continue
            if is_depth or DEPTH_NAME.search(name):
                notes.append(depth_note(key, str(index)))
            elif NOT_RGB.search(name):
                labels = f"'{key}' holds labels of a renderer, not colour, and is left out"
                notes.append(Note("stream.unused", labels, (key,), str(index)))
            else:
                found[name] = stream
        for key in table.column_names:  # images that no feature declares
            if key not in self.meta.features and pa.types.is_struct(table.schema.field(key).type):
                found[key.removeprefix(IMAGE_PREFIX)] = pictures(table[key], self.path, f"{key} of episode {index}")
        return found

    def _joined(
        self,
        index: int,
        key: str,
        video: VideoFrames,
        start: float | None,
        columns: Mapping[str, NDArray[Any]],
        notes: list[Note],
    ) -> Frames:
        """The frames of a video by the time stamps of the rows, which is how the format pairs them."""
        stamps = columns.get("timestamp")
        if stamps is None or not np.isfinite(stamps).all() or not len(video):
            return video
        seconds = video.seconds - (video.seconds[0] if start is None else start)
        place, said_of = by_time(
            stamps.reshape(-1).astype(np.float64), np.asarray(seconds, np.float64), key, str(index)
        )
        notes += said_of
        return joined(video, place, f"camera '{key}' of episode {index}")

    def _language(self, index: int, read: Columns, table: Any, length: int) -> tuple[Texts, tuple[Segment, ...]]:
        """(texts of each frame, segments where the text changes within the episode)."""
        columns = read.numbers
        said_at = [[t.strip() for t in words] for name, words in sorted(read.words.items()) if STRINGS.match(name)]
        segments: list[Segment] = []
        for name in ("task_index", *([SUBTASK] if self.meta.subtasks else []), *language_columns(columns)):
            if name not in columns or columns[name].dtype.kind not in "iu":
                continue
            texts_by_number = self.meta.subtasks if name == SUBTASK else self.meta.tasks
            words = [texts_by_number.get(int(i), "").strip() for i in columns[name].reshape(-1)]
            said_at += [] if SEGMENTS.search(name) else [words]
            spans = runs(np.array(words))
            if len(spans) > 1 or name == SUBTASK:
                segments += [Segment(a, b, "task", text, "human", 1.0) for a, b, text in spans if text]
        if "language_persistent" in table.column_names and length:
            known = {(s.start, s.text) for s in segments}  # the table knows where a subtask ends, utterances do not
            told = language_segments(table["language_persistent"][0].as_py(), columns.get("timestamp"), length)
            segments += [s for s in told if (s.start, s.text) not in known]
        texts = from_frames(said_at)
        side = self.meta.sidecar.get(index, {})
        if side.get("texts"):
            texts = texts_from_json(side["texts"])
        elif len(texts) <= 1 and side.get("instructions") is not None:
            texts = said(text_list(side["instructions"]), length)
        elif not texts:  # the episode's own list also holds validity labels, so it only speaks where frames do not
            texts = said(text_list(self.meta.rows[index].get("tasks")), length)
        return texts, tuple(segments)

    def _table(self, path: Path, index: int) -> Any:
        refuse_lfs(path)
        if self.meta.version != "v3.0":
            table = pq.read_table(path)
            if "episode_index" in table.column_names:
                values = np.unique(numbers(table["episode_index"], str(path)))
                if len(values) and values.tolist() != [index]:
                    holds = f"'{path.name}' holds episode_index {values.tolist()[:3]}, expected {index}"
                    self.meta.notes.append(Note("count.declared", holds, episode=str(index)))
            return table
        if self._cached is None or self._cached[0] != path:
            self._cached = (path, _EpisodeRows(path))
        return self._cached[1].table(self.meta.number(index))


class _EpisodeRows:
    """Rows of one v3.0 data file by episode; only the row groups an episode lies in are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = pq.ParquetFile(path)
        self.group_of: dict[int, list[int]] = {}
        for group in range(self.file.metadata.num_row_groups):
            values = self.file.read_row_group(group, columns=["episode_index"])["episode_index"]
            for value in np.unique(numbers(values, str(path))).tolist():
                self.group_of.setdefault(int(value), []).append(group)
        self._last: tuple[tuple[int, ...], Any] | None = None

    def table(self, index: int) -> Any:
        groups = tuple(self.group_of.get(index, ()))
        if not groups:
            raise RecordingError(f"'{self.path}' holds no frames of episode {index}.")
        # Converted sets have one group for all episodes: keep it instead of reading it again for each.
        if self._last is None or self._last[0] != groups:
            self._last = (groups, self.file.read_row_groups(list(groups)))
        table = self._last[1]
        rows = np.flatnonzero(numbers(table["episode_index"], str(self.path)).reshape(-1) == index)
        if len(rows) and rows[-1] - rows[0] + 1 != len(rows):
            raise RecordingError(f"Episode {index} is scattered over '{self.path}'.")
        return table.slice(int(rows[0]), len(rows))


def note_code(error: AthenaError) -> str:
    """The code under which a file that cannot be read is noted."""
    return "file.lfs_pointer" if isinstance(error, LfsPointer) else "episode.broken"


def says_depth(feature: Feature) -> bool:
    """True where a feature declares itself a depth map."""
    details = [d for d in (feature.get("info"), feature.get("video_info")) if isinstance(d, Mapping)]
    return any(d.get(k) is True for d in details for k in ("is_depth_map", "video.is_depth_map"))


def first_is_depth(stream: StillFrames) -> bool:
    """Whether the first image of a stream has more than 8 bits a pixel."""
    return len(stream) > 0 and is_depth_image(stream.encoded(0))
