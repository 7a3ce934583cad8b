"""Writes LeRobot v2.1 sets with meta/modality.json, as GR00T and openpi read them: one parquet per episode."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from athena_vla.data.formats.lerobot_write import DEFAULT_FEATURES, arrow_schema, numbers_column, whole
from athena_vla.data.formats.statistics import Stats, StatsTotal, column_stats
from athena_vla.data.motion import limbs

CHUNK = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
SEGMENT_COLUMN = "annotation.human.action.segment"
TASK_COLUMN = "annotation.human.action.task_description"


class LeRobotV21Writer:
    """Appends episodes to a v2.1 set in `folder`; info.json, which makes it a set, comes last."""

    def __init__(self, folder: Path, features: Mapping[str, Mapping[str, Any]], fps: float, robot_type: str) -> None:
        self.folder = folder
        self.features = {**{k: dict(v) for k, v in features.items() if k not in DEFAULT_FEATURES}, **DEFAULT_FEATURES}
        # GR00T reads text through columns of task indices.
        for column in (TASK_COLUMN, SEGMENT_COLUMN):
            self.features.setdefault(column, {"dtype": "int64", "shape": [1], "names": None})
        self.fps = fps
        self.robot_type = robot_type
        self.schema = arrow_schema(self.features)
        self.tasks: dict[str, int] = {}
        self.episodes = self.frames = self.videos = 0
        self._total = StatsTotal()
        meta = folder / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        self._lines = open(meta / "episodes.jsonl", "w")  # noqa: SIM115 open while episodes come
        self._stats = open(meta / "episodes_stats.jsonl", "w")  # noqa: SIM115 the same

    def add(
        self,
        columns: Mapping[str, pa.Array],
        length: int,
        tasks: Sequence[str],
        stats: Stats,
        videos: Mapping[str, tuple[Path, float]] | None = None,
        task_of_frame: Sequence[str] | None = None,
        segments: Sequence[tuple[int, int, str]] = (),
    ) -> None:
        """Append one episode; `segments` become a column of task indices, -1 where nothing is said."""
        episode = self.episodes
        texts = [text for _, _, text in segments]
        for task in (*tasks, *(task_of_frame or ()), *texts):
            self.tasks.setdefault(task, max(self.tasks.values(), default=-1) + 1)
        per_frame = task_of_frame if task_of_frame is not None else [tasks[0]] * length
        labels = np.full(length, -1, np.int64)
        for start, stop, text in segments:
            labels[start:stop] = self.tasks[text]
        task_index = np.array([self.tasks[t] for t in per_frame], np.int64)
        indices = {
            "episode_index": np.full(length, episode, np.int64),
            "index": np.arange(self.frames, self.frames + length, dtype=np.int64),
            "task_index": task_index,
        }
        labelled = {TASK_COLUMN: task_index, SEGMENT_COLUMN: labels}
        arrays = []
        for field in self.schema:
            source = indices.get(field.name)
            if source is None and field.name not in columns:
                source = labelled[field.name]
            array = numbers_column(source) if source is not None else columns[field.name]
            arrays.append(array if array.type == field.type else array.cast(field.type))
        chunk = episode // CHUNK
        path = self.folder / DATA_PATH.format(episode_chunk=chunk, episode_index=episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_arrays(arrays, schema=self.schema), path)
        for key, (file, _) in (videos or {}).items():
            target = self.folder / VIDEO_PATH.format(episode_chunk=chunk, video_key=key, episode_index=episode)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target)
            self.videos += 1
        stats = {**stats, **{k: column_stats(v) for k, v in indices.items()}}
        self._total.add(stats)
        self._lines.write(json.dumps({"episode_index": episode, "tasks": list(tasks), "length": length}) + "\n")
        self._stats.write(json.dumps({"episode_index": episode, "stats": stats}) + "\n")
        self.episodes += 1
        self.frames += length

    def finish(self) -> None:
        self.abandon()
        meta = self.folder / "meta"
        with open(meta / "tasks.jsonl", "w") as file:
            for task, index in self.tasks.items():
                file.write(json.dumps({"task_index": index, "task": task}) + "\n")
        (meta / "stats.json").write_text(json.dumps(self._total.finish(), indent=1))  # GR00T reads this one
        (meta / "modality.json").write_text(json.dumps(modality(self.features), indent=1))
        has_videos = any(f["dtype"] == "video" for f in self.features.values())
        info = {
            "codebase_version": "v2.1",
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "total_videos": self.videos,
            "total_chunks": -(-self.episodes // CHUNK),
            "chunks_size": CHUNK,
            "fps": whole(self.fps),
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if has_videos else None,
            "features": self.features,
        }
        (meta / "info.json").write_text(json.dumps(info, indent=1))

    def abandon(self) -> None:
        self._lines.close()
        self._stats.close()


def modality(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """GR00T's slices: runs of neighbouring columns of one limb, by name; one slice where names say nothing."""
    found: dict[str, Any] = {"state": {}, "action": {}, "video": {}, "annotation": {}}
    for kind, key in (("state", "observation.state"), ("action", "action")):
        if key in features:
            found[kind] = _slices(features[key]["names"] or [], int(features[key]["shape"][0]))
    for key, feature in features.items():
        if feature["dtype"] in ("video", "image"):
            found["video"][key.removeprefix("observation.images.")] = {"original_key": key}
        if key.startswith("annotation."):
            found["annotation"][key.removeprefix("annotation.")] = {}
    return found


def _slices(names: Sequence[str], width: int) -> dict[str, dict[str, int]]:
    body = limbs(names)
    part_of = {c: f"{side}_{part}" if side else part for (part, side), cs in body.columns.items() for c in cs}
    slices: dict[str, dict[str, int]] = {}
    start = 0
    for column in range(1, width + 1):
        if column < width and part_of.get(column) == part_of.get(start):
            continue
        name = part_of.get(start, "joints")
        name = name if name not in slices else f"{name}_{sum(k.startswith(name) for k in slices) + 1}"
        slices[name] = {"start": start, "end": column}
        start = column
    return slices
