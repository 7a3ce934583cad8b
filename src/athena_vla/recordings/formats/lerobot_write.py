"""Writes LeRobot v3.0 sets: row groups per episode, episode table with statistics, tasks, info.json.

Takes finished tables and videos; knows nothing of robots, alignment or splits. The layout follows what lerobot 0.4
itself writes.
"""
# pyarrow's stubs take no list of columns for `use_dictionary`.
# pyright: reportArgumentType=false

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from athena_vla.recordings.formats.lerobot_schema import SUBTASK, Features, SetWriter, arrow_schema
from athena_vla.recordings.formats.lerobot_statistics import Stats

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_FILES = 1000
DATA_FILE_BYTES = 100 * 2**20
EPISODES_PER_GROUP = 25  # their statistics wait in memory as Python numbers


class LeRobotV3Writer(SetWriter):
    """Many episodes per data file, each a row group of its own."""

    version = "v3.0"

    def __init__(self, folder: Path, features: Features, fps: float, robot_type: str) -> None:
        super().__init__(folder, features, fps, robot_type)
        self.schema = arrow_schema(self.features)
        self._rows: list[dict[str, Any]] = []
        self._data: pq.ParquetWriter | None = None
        self._table: pq.ParquetWriter | None = None
        self._data_file, self._data_bytes, self._videos = 0, 0, 0
        self.subtasks: dict[str, int] = {}
        for sub in ("data/chunk-000", "meta/episodes/chunk-000"):
            (folder / sub).mkdir(parents=True, exist_ok=True)

    def add(
        self,
        columns: Mapping[str, pa.Array | pa.ChunkedArray],
        length: int,
        tasks: Sequence[str],
        stats: Stats,
        videos: Mapping[str, tuple[Path, float]] | None = None,
        task_of_frame: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
        segments: Sequence[tuple[int, int, str]] = (),
    ) -> None:
        """Append one episode: `columns` of all features but the indices; `videos` (key -> file, [s]) are moved in.

        `segments` become LeRobot's subtasks where the features have that column and `columns` have not.
        """
        episode = self.episodes
        self.number_tasks(tasks, task_of_frame)
        indices = self.indices(length, tasks, task_of_frame)
        numbers = dict(indices)
        if SUBTASK in self.features and SUBTASK not in columns:
            # LeRobot looks a number up by its row: -1 would be the last subtask, so that nothing has a row of its own.
            for text in ("", *(text for _, _, text in segments)):
                self.subtasks.setdefault(text, len(self.subtasks))
            numbers[SUBTASK] = self.labels(length, segments, self.subtasks)
        table = self.table(self.schema, columns, numbers)
        self._rotate(table.nbytes)
        assert self._data is not None
        self._data.write_table(table, row_group_size=max(length, 1))
        row: dict[str, Any] = {
            "episode_index": episode,
            "tasks": list(tasks),
            "length": length,
            "data/chunk_index": self._data_file // CHUNK_FILES,
            "data/file_index": self._data_file % CHUNK_FILES,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + length,
        }
        for key, (path, seconds) in (videos or {}).items():
            chunk, file = divmod(self._videos, CHUNK_FILES)
            target = self.folder / VIDEO_PATH.format(video_key=key, chunk_index=chunk, file_index=file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file}
            row |= {f"videos/{key}/from_timestamp": 0.0, f"videos/{key}/to_timestamp": float(seconds)}
        stats = self.count(length, stats, indices)
        row |= {f"stats/{f}/{s}": stats[f][s] for f in self.features if f in stats for s in stats[f]}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, **(extra or {})}
        self._rows.append(row)
        if len(self._rows) >= EPISODES_PER_GROUP:
            self._flush()
        self._videos += 1 if videos else 0

    def finish(self) -> None:
        """Write what makes it a set: the episode table, tasks, statistics, and info.json last."""
        self._flush()
        for writer in (self._data, self._table):
            if writer is not None:
                writer.close()
        meta = self.folder / "meta"
        _write_texts(meta / "tasks.parquet", "task_index", "__index_level_0__", self.tasks)
        if self.subtasks:
            _write_texts(meta / "subtasks.parquet", SUBTASK, "subtask", self.subtasks)
        (meta / "stats.json").write_text(json.dumps(self.total.finish(), indent=1))
        sizes = {"data_files_size_in_mb": DATA_FILE_BYTES // 2**20, "video_files_size_in_mb": 200}
        self.write_info(CHUNK_FILES, DATA_PATH, VIDEO_PATH, **sizes)

    def abandon(self) -> None:
        """Close what is open; the caller removes the folder."""
        for writer in (self._data, self._table):
            if writer is not None:
                writer.close()

    def _rotate(self, size: int) -> None:
        if self._data is not None and self._data_bytes + size > DATA_FILE_BYTES:
            self._data.close()
            self._data, self._data_bytes, self._data_file = None, 0, self._data_file + 1
        if self._data is None:
            chunk, file = divmod(self._data_file, CHUNK_FILES)
            path = self.folder / DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Images are compressed already: a dictionary of them costs time and gains nothing.
            plain = [k for k, f in self.features.items() if f["dtype"] not in ("image", "video")]
            self._data = pq.ParquetWriter(path, self.schema, compression="snappy", use_dictionary=plain)
        self._data_bytes += size

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows)
        if self._table is None:
            path = self.folder / "meta/episodes/chunk-000/file-000.parquet"
            self._table = pq.ParquetWriter(path, table.schema, compression="snappy")
        assert self._table is not None
        self._table.write_table(table.cast(self._table.schema))
        self._rows = []
        pa.default_memory_pool().release_unused()  # what reading shards left behind would count as growth


def _write_texts(path: Path, number: str, text: str, texts: Mapping[str, int]) -> None:
    """A table of texts as pandas writes it upstream, the text being the index."""
    index: dict[str, Any] = {"name": None if text.startswith("__") else text, "field_name": text, "metadata": None}
    column = {"name": number, "field_name": number, "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    unnamed = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {
        "index_columns": [text],
        "column_indexes": [unnamed],
        "columns": [column, {**index, "pandas_type": "unicode", "numpy_type": "object"}],
        "creator": {"library": "athena_vla", "version": "0"},
        "pandas_version": "2.2.0",
    }
    rows = {number: pa.array(list(texts.values()), pa.int64()), text: pa.array(list(texts), pa.large_string())}
    pq.write_table(pa.table(rows).replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
