"""What a LeRobot set says of itself, in any version: features, tasks, episodes, and in which file each episode lies.

Follows the files where the metadata disagrees with them, and notes it. Reads no frames.
"""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from athena_vla.errors import RecordingError
from athena_vla.recordings.formats.common import (
    guarded,
    inside,
    natural_key,
    read_json_lines,
    read_json_object,
    refuse_lfs,
)
from athena_vla.recordings.formats.lerobot_schema import Feature
from athena_vla.recordings.notes import Note

ROWS_OF_EPISODE = ("data/chunk_index", "data/file_index", "dataset_from_index")  # where its rows lie
VERSIONS = ("v2.0", "v2.1", "v3.0")
FIELD = re.compile(r"\{(\w+)(?::0(\d{1,2})d)?\}")
SAME_FIELD = {"episode_chunk": "chunk_index", "chunk_index": "episode_chunk"}  # names of one thing in v2 and v3
TEXT_COLUMNS = ("task", "subtask", "__index_level_0__", "instruction", "text", "name", "description")


class LeRobotMeta:
    """The metadata of one set."""

    def __init__(self, path: Path, asserted_fps: float | None = None) -> None:
        self.path = path
        self.raw = read_json_object(path / "meta" / "info.json")
        self.version = str(self.raw.get("codebase_version", ""))
        if self.version not in VERSIONS:
            raise RecordingError(
                f"'{path / 'meta/info.json'}' says codebase_version '{self.version}'; versions that can be read are "
                f"{', '.join(VERSIONS)}. {_other_version(self.version, self.raw)}"
            )
        features = self.raw.get("features")
        if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
            raise RecordingError(f"'{path / 'meta/info.json'}' has no table of features.")
        self.features: dict[str, Feature] = features
        self.fps = asserted_fps or _rate(self.raw.get("fps"), path)
        self.notes: list[Note] = []
        self._files: dict[int, Path] | None = None  # number of an episode -> its data file, where nothing names it
        modality = path / "meta" / "modality.json"
        self.modality = read_json_object(modality) if modality.is_file() else {}
        self.tasks = self._texts("tasks", "task_index")
        self.subtasks = self._texts("subtasks", "subtask_index")
        self.sidecar = self._sidecar()
        self.rows = self._episodes_v3() if self.version == "v3.0" else self._episodes_v2()

    def number(self, index: int) -> int:
        """The number that the rows of an episode carry."""
        return int(self.rows[index].get("episode_index", index))

    def shared_spans(self) -> list[Note]:
        """Cameras of which two episodes show the same stretch of video: the files of one of them were mixed up."""
        seen: dict[tuple[str, Path], list[tuple[float, float, int]]] = {}
        for index in self.rows if self.version == "v3.0" else ():
            for key, feature in self.features.items():
                try:
                    span = self.video_span(index, key) if feature.get("dtype") == "video" else None
                except (RecordingError, KeyError, TypeError, ValueError):
                    continue  # named when the episode is read
                if span is not None and span[1] is not None and span[2] is not None:
                    seen.setdefault((key, span[0]), []).append((span[1], span[2], index))
        notes: list[Note] = []
        for (key, path), spans in seen.items():
            spans.sort()
            for (start, stop, one), (again, _, two) in itertools.pairwise(spans):
                if again < stop - 0.5 / self.fps and start <= again:
                    said = f"episodes {one} and {two} show one stretch of '{path.name}' on camera '{key}'"
                    notes.append(Note("camera.shared_span", said, (key, str(one)), str(two)))
        return notes

    def data_file(self, index: int) -> Path:
        """The parquet file of an episode. Raises `RecordingError` where none exists."""
        if self.version == "v3.0":
            row = self.rows[index]
            values = {"chunk_index": row.get("data/chunk_index"), "file_index": row.get("data/file_index")}
            if None in values.values():
                return self._holding(index)
        else:
            values = self._v2_values(index)
        path = self._file("data_path", values)
        if not path.is_file() and self.version != "v3.0":
            found = sorted(self.path.glob(f"data/*/episode_{index:06d}.parquet"))
            path = found[0] if len(found) == 1 else path
        if not path.is_file():
            raise RecordingError(f"Episode {index} of '{self.path}' has no data file; expected '{path}'.")
        return path

    def video_span(self, index: int, key: str) -> tuple[Path, float | None, float | None]:
        """(file, from [s], to [s]) of a camera of an episode; the file may be missing."""
        if self.version == "v3.0":
            row = self.rows[index]
            asked = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            where = {k: v for k in asked if (v := row.get(f"videos/{key}/{k}")) is not None}
            lacking = [k for k in asked if k not in where]
            if lacking:
                number = self.number(index)
                raise RecordingError(
                    f"The episode table of '{self.path}' does not say where episode {number} lies in the video of "
                    f"'{key}': it lacks {', '.join(lacking)}."
                )
            path = self._file("video_path", {**where, "video_key": key})
            return path, float(where["from_timestamp"]), float(where["to_timestamp"])
        path = self._file("video_path", {**self._v2_values(index), "video_key": key})
        if not path.is_file():
            found = sorted(self.path.glob(f"videos/*/{key}/episode_{index:06d}.mp4"))
            path = found[0] if len(found) == 1 else path
        return path, None, None

    def _holding(self, index: int) -> Path:
        """The data file whose rows carry an episode's number, where the episode table does not name it."""
        if self._files is None:
            self._files = {}
            unsaid = "the episode table does not say which data file holds an episode: the files were asked"
            self.notes.append(Note("metadata.missing", unsaid))
            for file in sorted(self.path.glob("data/*/*.parquet"), key=lambda p: natural_key(str(p))):
                with guarded(f"'{file}'"):
                    held = pq.read_table(file, columns=["episode_index"])["episode_index"].unique().to_pylist()
                for number in held:
                    self._files.setdefault(int(number), file)
        number = self.number(index)
        if number not in self._files:
            raise RecordingError(f"No data file of '{self.path}' holds rows of episode {number}.")
        return self._files[number]

    def _texts(self, name: str, index: str) -> dict[int, str]:
        """Number -> text of meta/NAME.parquet or .jsonl; a set without tasks is noted, subtasks are optional."""
        table, lines = self.path / "meta" / f"{name}.parquet", self.path / "meta" / f"{name}.jsonl"
        if table.is_file():
            refuse_lfs(table)
            with guarded(f"'{table}'"):
                rows = pq.read_table(table).to_pylist()
        elif lines.is_file():
            rows = read_json_lines(lines)
        else:
            if name == "tasks":
                self.notes.append(Note("metadata.missing", "there is no table of tasks"))
            return {}
        with guarded(f"'{table if table.is_file() else lines}'"):
            return {int(r[index]): _text_of(r, index) for r in rows}

    def _sidecar(self) -> dict[int, dict[str, Any]]:
        names = [n for n in ("athena.json", "athena_recording.json") if (self.path / "meta" / n).is_file()]
        if not names:
            return {}
        path = self.path / "meta" / names[0]
        episodes = read_json_object(path).get("episodes", [])
        is_ours = isinstance(episodes, list) and all(isinstance(e, dict) for e in episodes)
        return dict(enumerate(episodes)) if is_ours else {}

    def _episodes_v2(self) -> dict[int, dict[str, Any]]:
        path = self.path / "meta" / "episodes.jsonl"
        rows: dict[int, dict[str, Any]] = {}
        if path.is_file():
            with guarded(f"'{path}'"):
                rows = {int(r["episode_index"]): r for r in read_json_lines(path)}
        else:
            missing = "meta/episodes.jsonl is missing: episodes are those with a data file"
            self.notes.append(Note("metadata.missing", missing))
        found = {int(m[1]) for f in self.path.glob("data/*/*.parquet") if (m := re.fullmatch(r"episode_(\d+)", f.stem))}
        if not path.is_file():
            return {i: {} for i in sorted(found)}
        for index in sorted(found - set(rows)):
            left = f"episode {index} has a data file, but no line in episodes.jsonl: it is left out"
            self.notes.append(Note("episode.unlisted", left, episode=str(index)))
        return rows

    def _episodes_v3(self) -> dict[int, dict[str, Any]]:
        found: list[dict[str, Any]] = []
        files = sorted(self.path.glob("meta/episodes/*/*.parquet"), key=lambda p: natural_key(str(p)))
        if not files:
            raise RecordingError(f"'{self.path}' has no episode table under meta/episodes.")
        for file in files:
            refuse_lfs(file)
            with guarded(f"'{file}'"):
                names = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
                found += pq.read_table(file, columns=names).to_pylist()
        rows: dict[int, dict[str, Any]] = {}
        again: list[dict[str, Any]] = []
        for row in found:
            number = int(row["episode_index"])
            if rows.setdefault(number, row) is row:
                continue
            same = all(row.get(k) == rows[number].get(k) for k in ROWS_OF_EPISODE)
            if same:
                twice = f"episode {number} is in the episode table twice"
                self.notes.append(Note("episode.duplicate_number", twice, episode=str(number)))
            else:
                again.append(row)
        for row in again:  # a session that was numbered from 0 again: its episodes are others
            number, name = int(row["episode_index"]), max(rows) + 1
            rows[name] = row
            other = f"two episodes have number {number}; the second is read as episode {name}"
            self.notes.append(Note("episode.duplicate_number", other, episode=str(name)))
        return rows

    def _v2_values(self, index: int) -> dict[str, Any]:
        size = self.raw.get("chunks_size")
        size = size if isinstance(size, int) and size > 0 else 1000
        return {"episode_chunk": index // size, "episode_index": index}

    def _file(self, key: str, values: Mapping[str, Any]) -> Path:
        """A path template filled in by hand: `str.format` would let metadata reach into objects."""
        template = self.raw.get(key)
        if not isinstance(template, str):
            raise RecordingError(f"'{self.path / 'meta/info.json'}' has no {key}.")

        def fill(match: re.Match[str]) -> str:
            name = match[1] if match[1] in values else SAME_FIELD.get(match[1], "")
            if name not in values:
                if self.version != "v3.0":
                    asks = (
                        f"{key} asks for '{match[1]}', which is no field of the format: files are found by their number"
                    )
                    if not any(n.text == asks for n in self.notes):
                        self.notes.append(Note("metadata.template", asks))
                    return match[0]
                raise RecordingError(f"{key} of '{self.path}' asks for '{match[1]}'; known: {', '.join(values)}.")
            value = values[name]
            return f"{int(value):0{int(match[2])}d}" if match[2] else str(value)

        return inside(self.path, FIELD.sub(fill, template), key)


def _text_of(row: Mapping[str, Any], index: str) -> str:
    """The column that is known to hold the text, else the only string beside the index, else nothing."""
    named = next((row[k] for k in TEXT_COLUMNS if isinstance(row.get(k), str)), None)
    strings = [v for k, v in row.items() if k != index and isinstance(v, str)]
    return named if named is not None else strings[0] if len(strings) == 1 else ""


def _other_version(version: str, raw: Mapping[str, Any]) -> str:
    if not version or "features" not in raw:
        return (
            "It is no LeRobot set: its info.json has no codebase_version and no features "
            f"({', '.join(sorted(raw)[:8]) or 'it is empty'})."
        )
    newer = re.fullmatch(r"v(\d+)\.(\d+)", version)
    if newer and (int(newer[1]), int(newer[2])) > (3, 0):
        return (
            "It was written by a newer tool; lerobot itself writes v3.0. Where only the number differs, set it to v3.0."
        )
    return "Convert it with lerobot's own script for that version first."


def _rate(value: Any, path: Path) -> float:
    if not isinstance(value, int | float) or not np.isfinite(value) or not 0 < value < 1e5:
        raise RecordingError(f"'{path / 'meta/info.json'}' says fps {value!r}, expected a positive number.")
    return float(value)
