"""What both LeRobot versions are written with: features, column types, and the bookkeeping of tasks and indices.

Column types follow what lerobot 0.4 itself writes, so that `lerobot` and `datasets` open the result.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import Required, TypedDict

from athena_vla.recordings.formats.lerobot_statistics import Stats, StatsTotal, column_stats

SUBTASK = "subtask_index"  # into meta/subtasks.parquet
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
Details = TypedDict(
    "Details",
    {
        "video.height": int,
        "video.width": int,
        "video.codec": str,
        "video.pix_fmt": str,
        "video.is_depth_map": bool,
        "video.fps": int | float,
        "video.channels": int,
        "video.crf": int,
        "video.g": int,
        "has_audio": bool,
    },
    total=False,
)


class Feature(TypedDict, total=False):
    """What info.json says of one column or camera."""

    dtype: Required[str]
    shape: Required[Sequence[int]]
    names: Sequence[str] | Mapping[str, Sequence[str]] | None
    info: Details
    video_info: Details  # version 2.0 names it so


Features = Mapping[str, Feature]
DEFAULT_FEATURES: dict[str, Feature] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


def numbers_feature(names: Sequence[str], dtype: str = "float32") -> Feature:
    return {"dtype": dtype, "shape": [len(names)], "names": list(names)}


def image_feature(height: int, width: int) -> Feature:
    return {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}


def video_feature(height: int, width: int, fps: float, codec: str) -> Feature:
    details: Details = {"video.height": height, "video.width": width, "video.codec": codec, "video.pix_fmt": "yuv420p"}
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


def arrow_type(feature: Feature) -> pa.DataType:
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


def _huggingface_feature(feature: Feature) -> dict[str, Any]:
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


def arrow_schema(features: Features) -> pa.Schema:
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


class SetWriter(ABC):
    """Appends episodes to a set in `folder`; nothing is readable as a set before `finish`."""

    version = ""

    def __init__(self, folder: Path, features: Features, fps: float, robot_type: str) -> None:
        self.folder = folder
        own = {k: v.copy() for k, v in features.items() if k not in DEFAULT_FEATURES}
        self.features: dict[str, Feature] = {**own, **DEFAULT_FEATURES}
        self.fps = fps
        self.robot_type = robot_type
        self.tasks: dict[str, int] = {}
        self.episodes = self.frames = 0
        self.total = StatsTotal()

    @abstractmethod
    def finish(self) -> None:
        """Write what makes it a set, info.json last."""

    @abstractmethod
    def abandon(self) -> None:
        """Close what is open; the caller removes the folder."""

    def number_tasks(self, *texts: Sequence[str] | None) -> None:
        """Give every text that is new its number."""
        for task in (t for group in texts for t in group or ()):
            self.tasks.setdefault(task, max(self.tasks.values(), default=-1) + 1)

    def indices(
        self, length: int, tasks: Sequence[str], task_of_frame: Sequence[str] | None
    ) -> dict[str, NDArray[np.int64]]:
        """The columns that number the rows of the next episode."""
        per_frame = task_of_frame if task_of_frame is not None else [tasks[0]] * length
        return {
            "episode_index": np.full(length, self.episodes, np.int64),
            "index": np.arange(self.frames, self.frames + length, dtype=np.int64),
            "task_index": np.array([self.tasks[t] for t in per_frame], np.int64),
        }

    @staticmethod
    def labels(length: int, spans: Sequence[tuple[int, int, str]], number: Mapping[str, int]) -> NDArray[np.int64]:
        """[length] The number of what is said of each frame, that of "" (or -1) where nothing is; a later span wins."""
        labels = np.full(length, number.get("", -1), np.int64)
        for start, stop, text in spans:
            labels[start:stop] = number[text]
        return labels

    def table(self, schema: pa.Schema, columns: Mapping[str, Any], numbers: Mapping[str, NDArray[Any]]) -> pa.Table:
        """Rows of one episode; `numbers` go before `columns`."""
        arrays = [numbers_column(numbers[f.name]) if f.name in numbers else columns[f.name] for f in schema]
        cast = [a if a.type == f.type else a.cast(f.type) for a, f in zip(arrays, schema, strict=True)]
        return pa.Table.from_arrays(cast, schema=schema)

    def count(self, length: int, stats: Stats, indices: Mapping[str, NDArray[np.int64]]) -> Stats:
        """Add the written episode to the totals; returns its statistics with those of the indices."""
        stats = {**stats, **{k: column_stats(v) for k, v in indices.items()}}
        self.total.add(stats)
        self.episodes += 1
        self.frames += length
        return stats

    def write_info(self, chunk: int, data_path: str, video_path: str, **more: Any) -> None:
        has_videos = any(f["dtype"] == "video" for f in self.features.values())
        info = {
            "codebase_version": self.version,
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            **more,
            "chunks_size": chunk,
            "fps": whole(self.fps),
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": data_path,
            "video_path": video_path if has_videos else None,
            "features": self.features,
        }
        (self.folder / "meta" / "info.json").write_text(json.dumps(info, indent=1))
