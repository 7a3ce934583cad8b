"""Run in the environment of the real lerobot: opens sets we wrote, and writes one for the timing. Prints JSON."""

import contextlib
import json
import sys
import time
from pathlib import Path

import av
import numpy as np
import torch
from lerobot.datasets import lerobot_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def decode(path, timestamps, tolerance_s, backend=None):
    """PyAV in place of torchcodec, which has no binary here: seek to the key frame before, decode to the last stamp."""
    wanted = np.asarray(timestamps, np.float64)
    times, frames = [], []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int(max(wanted.min() - tolerance_s, 0) / stream.time_base), stream=stream, backward=True)
        for frame in container.decode(stream):
            times.append(frame.time)
            frames.append(frame)
            if frame.time >= wanted.max() - tolerance_s:
                break
    distance = np.abs(np.asarray(times)[None, :] - wanted[:, None])
    assert (distance.min(axis=1) < tolerance_s).all(), "no frame within the tolerance of a time stamp"
    pictures = np.stack([frames[i].to_ndarray(format="rgb24") for i in distance.argmin(axis=1)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


try:
    import torchcodec  # noqa: F401
except Exception:  # whatever keeps its binary from loading
    lerobot_dataset.decode_video_frames = decode


def opens(root: Path) -> dict:
    """What lerobot makes of a set: counts, names, and a digest-like sum of the first and last rows."""
    data = LeRobotDataset("local/set", root=root)
    first, last = data[0], data[len(data) - 1]
    cameras = [k for k in first if k.startswith("observation.images.")]
    return {
        "episodes": data.num_episodes,
        "frames": data.num_frames,
        "fps": data.fps,
        "task": first["task"],
        "first_action": np.asarray(first["action"], np.float64).tolist(),
        "last_action": np.asarray(last["action"], np.float64).tolist(),
        "pictures": {k: [list(first[k].shape), float(first[k].mean())] for k in cameras},
        "tasks": sorted(data.meta.tasks.index),
        "episode_lengths": [int(x) for x in data.meta.episodes["length"]],
        "names": data.meta.features["action"]["names"],
    }


def upgrades(root: Path) -> int:
    """lerobot's own v2.1 -> v3.0 converter, in place; how many episodes it leaves."""
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    with contextlib.redirect_stdout(sys.stderr):
        convert_dataset(root.name, root=root, push_to_hub=False, force_conversion=True)
    return LeRobotDataset("local/set", root=root).num_episodes


def writes(source: Path, out: Path, kind: str) -> float:
    """[s] that add_frame and save_episode take for the frames in an npz of arrays; `kind`: image or video."""
    arrays = np.load(source)
    images, actions, states, lengths = (arrays[k] for k in ("images", "actions", "states", "lengths"))
    features = {
        "observation.state": {"dtype": "float32", "shape": (states.shape[1],), "names": None},
        "action": {"dtype": "float32", "shape": (actions.shape[1],), "names": None},
        "observation.images.head": {
            "dtype": kind,
            "shape": images.shape[1:],
            "names": ["height", "width", "channels"],
        },
    }
    start = time.perf_counter()
    data = LeRobotDataset.create("local/w", fps=10, features=features, root=out, use_videos=kind == "video")
    row = 0
    for length in lengths:
        for _ in range(length):
            frame = {"observation.state": states[row], "action": actions[row], "observation.images.head": images[row]}
            data.add_frame({**frame, "task": "touch the red box"})
            row += 1
        data.save_episode()
    data.finalize()
    return time.perf_counter() - start


def reads(root: Path, count: int, horizon: int) -> float:
    """Random training samples per second with chunks of `horizon`."""
    data = LeRobotDataset("local/set", root=root)
    deltas = {"action": [i / data.fps for i in range(horizon)]}
    data = LeRobotDataset("local/set", root=root, delta_timestamps=deltas)
    order = np.random.default_rng(0).integers(0, len(data), count)
    start = time.perf_counter()
    for i in order:
        data[int(i)]
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "opens":
        print(json.dumps(opens(Path(rest[0]))))
    elif what == "upgrades":
        print(json.dumps(upgrades(Path(rest[0]))))
    elif what == "writes":
        print(json.dumps(writes(Path(rest[0]), Path(rest[1]), rest[2])))
    elif what == "reads":
        print(json.dumps(reads(Path(rest[0]), int(rest[1]), int(rest[2]))))
