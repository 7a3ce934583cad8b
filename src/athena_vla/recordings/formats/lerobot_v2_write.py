"""Writes LeRobot v2.1 sets with meta/modality.json, as GR00T and openpi read them: one parquet per episode."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from athena_vla.recordings.formats.lerobot_schema import Features, SetWriter, arrow_schema
from athena_vla.recordings.formats.lerobot_statistics import Stats
from athena_vla.recordings.limbs import limbs

CHUNK = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
SEGMENT_COLUMN = "annotation.human.action.segment"
TASK_COLUMN = "annotation.human.action.task_description"


class LeRobotV21Writer(SetWriter):
    """One data file per episode, and text through columns of task indices, as GR00T reads it."""

    version = "v2.1"

    def __init__(self, folder: Path, features: Features, fps: float, robot_type: str) -> None:
        super().__init__(folder, features, fps, robot_type)
        for column in (TASK_COLUMN, SEGMENT_COLUMN):
            self.features.setdefault(column, {"dtype": "int64", "shape": [1], "names": None})
        self.schema = arrow_schema(self.features)
        self.videos = 0
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
        self.number_tasks(tasks, task_of_frame, [text for _, _, text in segments])
        indices = self.indices(length, tasks, task_of_frame)
        labels = self.labels(length, segments, self.tasks)
        labelled = {TASK_COLUMN: indices["task_index"], SEGMENT_COLUMN: labels}
        numbers = indices | {k: v for k, v in labelled.items() if k not in columns}
        table = self.table(self.schema, columns, numbers)
        chunk = episode // CHUNK
        path = self.folder / DATA_PATH.format(episode_chunk=chunk, episode_index=episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for key, (file, _) in (videos or {}).items():
            target = self.folder / VIDEO_PATH.format(episode_chunk=chunk, video_key=key, episode_index=episode)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target)
            self.videos += 1
        stats = self.count(length, stats, indices)
        self._lines.write(json.dumps({"episode_index": episode, "tasks": list(tasks), "length": length}) + "\n")
        self._stats.write(json.dumps({"episode_index": episode, "stats": stats}) + "\n")

    def finish(self) -> None:
        self.abandon()
        meta = self.folder / "meta"
        with open(meta / "tasks.jsonl", "w") as file:
            for task, index in self.tasks.items():
                file.write(json.dumps({"task_index": index, "task": task}) + "\n")
        (meta / "stats.json").write_text(json.dumps(self.total.finish(), indent=1))  # GR00T reads this one
        (meta / "modality.json").write_text(json.dumps(modality(self.features), indent=1))
        counts = {"total_videos": self.videos, "total_chunks": -(-self.episodes // CHUNK)}
        self.write_info(CHUNK, DATA_PATH, VIDEO_PATH, **counts)

    def abandon(self) -> None:
        self._lines.close()
        self._stats.close()


def modality(features: Features) -> dict[str, Any]:
    """GR00T's slices: runs of neighbouring columns of one limb, by name; one slice where names say nothing."""
    found: dict[str, Any] = {"state": {}, "action": {}, "video": {}, "annotation": {}}
    for kind, key in (("state", "observation.state"), ("action", "action")):
        if key in features:
            found[kind] = _slices(list(features[key].get("names") or []), int(features[key]["shape"][0]))
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
