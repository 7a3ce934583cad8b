"""Writes LeRobot v3.0 sets: row groups per episode, episode table with statistics, tasks, info.json.

Takes finished tables and videos; knows nothing of robots, alignment or splits. Layout and column types follow what
lerobot 0.4 itself writes, so that `lerobot` and `datasets` open the result.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from athena_vla.data.formats.statistics import Stats, StatsTotal, column_stats

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_FILES = 1000
DATA_FILE_BYTES = 100 * 2**20
EPISODES_PER_GROUP = 200
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# A persistent language column: the same list of utterances in every row of an episode.
LANGUAGE_TYPE = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("style", pa.string()),
            ("timestamp", pa.float32()),
            ("camera", pa.string()),
        ]
    )
)
DEFAULT_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


def numbers_feature(names: Sequence[str], dtype: str = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [len(names)], "names": list(names)}


def image_feature(height: int, width: int) -> dict[str, Any]:
    return {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}


def video_feature(height: int, width: int, fps: float, codec: str) -> dict[str, Any]:
    details = {"video.height": height, "video.width": width, "video.codec": codec, "video.pix_fmt": "yuv420p"}
    details |= {"video.is_depth_map": False, "video.fps": whole(fps), "video.channels": 3, "has_audio": False}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": details,
    }


def whole(fps: float) -> int | float:
    """An integer rate as an integer, as the format wants it."""
    return int(fps) if float(fps).is_integer() else float(fps)


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    """The parquet type of a feature, as `lerobot` stores it."""
    dtype, shape = feature["dtype"], tuple(feature["shape"])
    if dtype == "image":
        return IMAGE_TYPE
    if dtype == "string":
        return pa.string()
    if dtype == "language":
        return LANGUAGE_TYPE
    kind = pa.bool_() if dtype == "bool" else pa.type_for_alias(dtype)
    for size in reversed(shape) if shape != (1,) else ():
        kind = pa.list_(kind, size)
    return kind


def _huggingface_feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    dtype, shape = feature["dtype"], tuple(feature["shape"])
    if dtype == "image":
        return {"_type": "Image"}
    if dtype == "language":
        text = {"dtype": "string", "_type": "Value"}
        entry = dict.fromkeys(("role", "content", "style", "camera"), text)
        return {"feature": {**entry, "timestamp": {"dtype": "float32", "_type": "Value"}}, "_type": "List"}
    value: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
    for size in reversed(shape) if shape != (1,) else ():
        value = {"feature": value, "length": size, "_type": "List"}
    return value


def arrow_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Schema of the data files; the metadata lets `datasets` decode lists and images."""
    stored = {k: f for k, f in features.items() if f["dtype"] != "video"}
    metadata = {"info": {"features": {k: _huggingface_feature(f) for k, f in stored.items()}}}
    fields = [pa.field(k, arrow_type(f)) for k, f in stored.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(metadata)})


def numbers_column(values: NDArray[Any], kind: pa.DataType | None = None) -> pa.Array:
    """A `[T]` or `[T, D, ...]` array as an arrow column without a Python object per row."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat if kind is None or flat.type == kind else flat.cast(kind)


def image_column(pictures: Sequence[bytes], stem: str = "frame") -> pa.Array:
    suffixes = ["png" if p[:4] == b"\x89PNG" else "jpg" for p in pictures]
    paths = [f"{stem}_{i:06d}.{suffix}" for i, suffix in enumerate(suffixes)]
    return pa.StructArray.from_arrays([pa.array(pictures, pa.binary()), pa.array(paths)], fields=list(IMAGE_TYPE))


class LeRobotV3Writer:
    """Appends episodes to a v3.0 set in `folder`; nothing is readable as a set before `finish`."""

    def __init__(self, folder: Path, features: Mapping[str, Mapping[str, Any]], fps: float, robot_type: str) -> None:
        self.folder = folder
        self.features = {**{k: dict(v) for k, v in features.items() if k not in DEFAULT_FEATURES}, **DEFAULT_FEATURES}
        self.fps = fps
        self.robot_type = robot_type
        self.schema = arrow_schema(self.features)
        self.tasks: dict[str, int] = {}
        self.episodes = self.frames = 0
        self._total = StatsTotal()
        self._rows: list[dict[str, Any]] = []
        self._data: pq.ParquetWriter | None = None
        self._table: pq.ParquetWriter | None = None
        self._data_file, self._data_bytes, self._videos = 0, 0, 0
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
    ) -> None:
        """Append one episode: `columns` of all features but the indices; `videos` (key -> file, [s]) are moved in."""
        episode = self.episodes
        for task in (*tasks, *(task_of_frame or ())):
            self.tasks.setdefault(task, max(self.tasks.values(), default=-1) + 1)
        per_frame = task_of_frame if task_of_frame is not None else [tasks[0]] * length
        indices = {
            "episode_index": np.full(length, episode, np.int64),
            "index": np.arange(self.frames, self.frames + length, dtype=np.int64),
            "task_index": np.array([self.tasks[t] for t in per_frame], np.int64),
        }
        arrays = [
            numbers_column(indices[f.name]) if f.name in indices else _cast(columns[f.name], f.type)
            for f in self.schema
        ]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self._rotate(table.nbytes)
        assert self._data is not None
        self._data.write_table(table, row_group_size=max(length, 1))
        stats = {**stats, **{k: column_stats(v) for k, v in indices.items()}}
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
        row |= {f"stats/{f}/{s}": stats[f][s] for f in self.features if f in stats for s in stats[f]}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, **(extra or {})}
        self._total.add(stats)
        self._rows.append(row)
        if len(self._rows) >= EPISODES_PER_GROUP:
            self._flush()
        self._videos += 1 if videos else 0
        self.episodes += 1
        self.frames += length

    def finish(self, extra_info: Mapping[str, Any] | None = None) -> None:
        """Write what makes it a set: the episode table, tasks, statistics, and info.json last."""
        self._flush()
        for writer in (self._data, self._table):
            if writer is not None:
                writer.close()
        meta = self.folder / "meta"
        tasks = pa.table(
            {
                "task_index": pa.array(list(self.tasks.values()), pa.int64()),
                "__index_level_0__": pa.array(list(self.tasks), pa.large_string()),
            }
        )
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(_TASKS_PANDAS)}), meta / "tasks.parquet")
        (meta / "stats.json").write_text(json.dumps(self._total.finish(), indent=1))
        has_videos = any(f["dtype"] == "video" for f in self.features.values())
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_BYTES // 2**20,
            "video_files_size_in_mb": 200,
            "fps": whole(self.fps),
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if has_videos else None,
            "features": self.features,
            **(extra_info or {}),
        }
        (meta / "info.json").write_text(json.dumps(info, indent=1))

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
            # Pictures are compressed already: a dictionary of them costs time and gains nothing.
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


def _cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


# The table is written by pandas upstream: the task text is the index.
_TASKS_PANDAS = {
    "index_columns": ["__index_level_0__"],
    "column_indexes": [
        {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    ],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {
            "name": None,
            "field_name": "__index_level_0__",
            "pandas_type": "unicode",
            "numpy_type": "object",
            "metadata": None,
        },
    ],
    "creator": {"library": "athena_vla", "version": "0"},
    "pandas_version": "2.2.0",
}
