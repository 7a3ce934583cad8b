"""Small LeRobot sets written by hand, with pyarrow and PyAV alone: images carry their own number, motion is known."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

HEIGHT, WIDTH, FPS = 48, 64, 10
NAMES = ["base", "shoulder", "finger"]
FRONT = "observation.images.front"


def numbered(number: int, episode: int = 0) -> NDArray[np.uint8]:
    """[48, 64, 3] whose 4 x 4 blocks write a 12 bit number and a 4 bit episode in bright and dark."""
    bits = [(number >> i) & 1 for i in range(12)] + [(episode >> i) & 1 for i in range(4)]
    blocks = np.array(bits, np.uint8).reshape(4, 4) * 180 + 40
    return np.repeat(np.repeat(blocks, 12, 0), 16, 1)[..., None].repeat(3, 2)


def number_of(image: NDArray[np.uint8]) -> tuple[int, int]:
    """(number, episode) that an image carries; survives any codec."""
    bright = image.mean(-1).reshape(4, 12, 4, 16).mean((1, 3)).reshape(-1) > 130
    return sum(int(b) << i for i, b in enumerate(bright[:12])), sum(int(b) << i for i, b in enumerate(bright[12:]))


def video(path: Path, images: Sequence[NDArray[np.uint8]], fps: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"crf": "10", "g": "2", "bf": "0"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@dataclass
class Take:
    """One episode: `kept` are the rows of a take of `length` whose images are all there."""

    index: int
    length: int = 60
    kept: NDArray[np.intp] | None = None
    tasks: NDArray[np.int64] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # more columns
    images: Sequence[NDArray[np.uint8]] | None = None
    seed: int | None = None  # of the motion; the index where not given

    def rows(self) -> NDArray[np.intp]:
        return np.arange(self.length) if self.kept is None else self.kept

    def motion(self) -> NDArray[np.float32]:
        """[length + 1, 3] [rad]"""
        phase = np.random.default_rng(self.index if self.seed is None else self.seed).uniform(0, 6, 3)
        t = np.arange(self.length + 1)[:, None] / FPS
        swing = np.array([1.0, 0.8, 0.3]) * np.sin(2 * np.pi * np.array([0.23, 0.31, 0.4]) * t + phase)
        return (swing + np.array([0.0, 0.1, 0.3])).astype(np.float32)

    def columns(self, first: int) -> dict[str, Any]:
        rows, path = self.rows(), self.motion()
        count = len(rows)
        tasks = np.zeros(count, np.int64) if self.tasks is None else self.tasks
        return {
            "observation.state": fixed(path[:-1][rows]),
            "action": fixed(path[1:][rows]),
            "timestamp": pa.array((rows / FPS).astype(np.float32)),
            "frame_index": pa.array(rows.astype(np.int64)),
            "episode_index": pa.array(np.full(count, self.index, np.int64)),
            "index": pa.array(np.arange(first, first + count)),
            "task_index": pa.array(tasks),
            **self.extra,
        }

    def pictures(self) -> Sequence[NDArray[np.uint8]]:
        return [numbered(i, self.index) for i in range(self.length)] if self.images is None else self.images


def fixed(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def features(extra: Mapping[str, Any], camera: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        k: {"dtype": "float32", "shape": [3], "names": NAMES} for k in ("observation.state", "action")
    }
    if camera:
        found[camera] = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channel"]}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        kind = "float32" if key == "timestamp" else "int64"
        found[key] = {"dtype": kind, "shape": [1], "names": None}
    return found | dict(extra)


def write_v21(
    root: Path,
    takes: Sequence[Take],
    tasks: Sequence[str],
    *,
    extra: Mapping[str, Any] | None = None,
    camera: str | None = FRONT,
) -> Path:
    (root / "meta").mkdir(parents=True, exist_ok=True)
    total, lines = 0, []
    for take in takes:
        path = root / f"data/chunk-000/episode_{take.index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(take.columns(total)), path)
        if camera:
            video(root / f"videos/chunk-000/{camera}/episode_{take.index:06d}.mp4", take.pictures())
        total += len(take.rows())
        lines.append({"episode_index": take.index, "tasks": list(tasks)[:1], "length": len(take.rows())})
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    _info(root, "v2.1", len(takes), total, features(extra or {}, camera), paths)
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"task_index": i, "task": t} for i, t in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return root


def write_v30(
    root: Path,
    takes: Sequence[Take],
    tasks: Sequence[str],
    *,
    extra: Mapping[str, Any] | None = None,
    rows: Mapping[int, Mapping[str, Any]] | None = None,
) -> Path:
    """All takes in one data file and one video; `rows` changes lines of the episode table."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    tables, table, images, total, at = [], [], [], 0, 0.0
    for number, take in enumerate(takes):
        tables.append(pa.table(take.columns(total)))
        count, seconds = len(take.rows()), take.length / FPS
        line = {
            "episode_index": take.index, "tasks": list(tasks)[:1], "length": count, "data/chunk_index": 0,
            "data/file_index": 0, "dataset_from_index": total, "dataset_to_index": total + count,
            f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": 0,
            f"videos/{FRONT}/from_timestamp": at, f"videos/{FRONT}/to_timestamp": at + seconds,
        }  # fmt: skip
        table.append({**line, **(rows or {}).get(number, {})})
        images += list(take.pictures())
        total, at = total + count, at + seconds
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(table), root / "meta/episodes/chunk-000/file-000.parquet")
    video(root / f"videos/{FRONT}/chunk-000/file-000.mp4", images)
    texts = pa.table({"task_index": list(range(len(tasks))), "__index_level_0__": list(tasks)})
    pq.write_table(texts, root / "meta/tasks.parquet")
    paths = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    _info(root, "v3.0", len(takes), total, features(extra or {}, FRONT), paths)
    return root


def _info(
    root: Path, version: str, episodes: int, frames: int, columns: Mapping[str, Any], paths: Mapping[str, str]
) -> None:
    raw = {
        "codebase_version": version, "robot_type": "toy", "total_episodes": episodes, "total_frames": frames,
        "chunks_size": 1000, "fps": FPS, "splits": {"train": f"0:{episodes}"}, "features": columns, **paths,
    }  # fmt: skip
    (root / "meta/info.json").write_text(json.dumps(raw))
