"""Data path against lerobot on the same machine and recordings: writing, random reading, checking, memory.

ATHENA_LEROBOT_PYTHON names the Python of an environment with the real lerobot (`make interop` makes one); without it
only our own numbers are measured. Writes benchmarks/data.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from athena_vla import embodiment
from athena_vla.data.check import CheckConfig, check
from athena_vla.data.dataset import BuildConfig, Dataset, build
from athena_vla.data.episode import Episode
from athena_vla.data.formats.isaac_folder import write_episode
from athena_vla.data.formats.lerobot_rows import episode_rows, features_of
from athena_vla.data.formats.lerobot_write import LeRobotV3Writer
from athena_vla.data.formats.video import VideoFrames, encode_video

HERE = Path(__file__).resolve().parent
LEROBOT = os.environ.get("ATHENA_LEROBOT_PYTHON", "")
EPISODES, LENGTH, SIZE, HORIZON, READS = 10, 60, 224, 16, 400


class Held:
    """Frames in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[index]


def scene(length: int, height: int, width: int, seed: int) -> np.ndarray:
    """A smooth picture with a moving square: compresses as a rendered scene does."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([(x + seed * 7) % 256, (y * 2) % 256, (x + y) // 2 % 256], axis=-1).astype(np.uint8)
    images = np.repeat(base[None], length, axis=0)
    for t, image in enumerate(images):
        place = 5 + 2 * t % (min(height, width) - 40)
        image[place : place + 24, place : place + 24] = (240, 80, 40)
    return images


def episodes(count: int, length: int, size: int) -> list[Episode]:
    robot = embodiment.load("athena")
    made = []
    for k in range(count):
        t = np.arange(length)[:, None] / 10
        q = (robot.default + 0.1 * np.sin(t + np.arange(robot.state_dim) + k)).astype(np.float32)
        made.append(
            Episode(
                id=f"episode_{k:05d}", fps=10.0, joint_names=robot.action_joints, actions=q[:, robot.action_index],
                state_names=robot.joint_names, states=q, timestamps=np.arange(length) / 10.0,
                cameras={"head": Held(scene(length, size, size, k))}, instructions=("touch the red box",), success=True,
            )
        )  # fmt: skip
    return made


def lerobot(*words: str) -> float | None:
    if not LEROBOT:
        return None
    surroundings = {**os.environ, "PYTHONPATH": str(HERE.parent / "interop"), "HF_HUB_OFFLINE": "1"}
    script = HERE.parent / "interop" / "lerobot_opens.py"
    done = subprocess.run([LEROBOT, script, *words], capture_output=True, text=True, env=surroundings, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def write_ours(made: list[Episode], out: Path) -> float:
    start = time.perf_counter()
    features = features_of(made[0], video=False, language=False)
    writer = LeRobotV3Writer(out, features, 10.0, "athena")
    for episode in made:
        columns, stats, videos = episode_rows(episode, writer.features, out)
        writer.add(columns, len(episode), list(episode.instructions), stats, videos)
    writer.finish()
    return time.perf_counter() - start


def peak_memory(count: int, folder: Path) -> float:
    """[MiB] peak of a fresh process that builds a set of `count` episodes."""
    root = folder / f"in{count}"
    for episode in episodes(1, 20, 64):
        for k in range(count):
            write_episode(root, Episode(**{**vars(episode), "id": f"e{k:05d}", "actions": episode.actions + 1e-4 * k}))
    code = (
        "import resource,sys;from pathlib import Path;from athena_vla.data.dataset import BuildConfig,build;"
        "build(BuildConfig(input=Path(sys.argv[1]),out=Path(sys.argv[2]),robot='athena',workers=1));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)"
    )
    words = [sys.executable, "-c", code, str(root), str(folder / f"out{count}")]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, no memory measurement, prints only")
    quick = parser.parse_args().quick
    count, length, reads = (3, 30, 60) if quick else (EPISODES, LENGTH, READS)
    result: dict[str, object] = {
        "command": "python benchmarks/bench_data.py",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load_at_start": os.getloadavg()},
        "python": platform.python_version(),
        "setting": {"episodes": count, "length": length, "pixels": SIZE, "horizon": HORIZON, "pictures": "PNG"},
    }
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        made = episodes(count, length, SIZE)
        stacked = {
            "images": np.concatenate([e.cameras["head"].images for e in made]),
            "actions": np.concatenate([e.actions for e in made]),
            "states": np.concatenate([e.states for e in made]),
            "lengths": np.array([len(e) for e in made]),
        }
        np.savez(folder / "arrays.npz", **stacked)
        ours = write_ours(made, folder / "ours")
        theirs = lerobot("writes", str(folder / "arrays.npz"), str(folder / "theirs"))
        result["write_seconds"] = {"ours": ours, "lerobot": theirs, "ratio": theirs / ours if theirs else None}
        for episode in made:
            write_episode(folder / "rec", episode)
        start = time.perf_counter()
        build(BuildConfig(input=folder / "rec", out=folder / "set", robot="athena", horizon=HORIZON, annotate=False))
        result["build_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        dataset = Dataset.open(folder / "set")
        dataset.cache_frames()
        cache = time.perf_counter() - start
        order = np.random.default_rng(0).integers(0, len(dataset), 20 * reads)
        start = time.perf_counter()
        for i in order:
            dataset[int(i)]
        rate = len(order) / (time.perf_counter() - start)
        theirs = lerobot("reads", str(folder / "set"), str(reads), str(HORIZON))
        result["read_samples_per_second"] = {
            "ours": rate, "cache_seconds_once": cache, "lerobot": theirs, "ratio": rate / theirs if theirs else None,
        }  # fmt: skip
        result["check"] = check_speed(folder)
        if quick:
            print(json.dumps(result, indent=1))
            return
        few, many = peak_memory(10, folder), peak_memory(1000, folder)
        result["build_peak_mib"] = {"10 episodes": few, "1000 episodes": many, "growth": many / few - 1}
    result["own_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (HERE / "data.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def check_speed(folder: Path) -> dict[str, float]:
    """Seconds of 30 Hz 640x480 h264 video checked per second of one core."""
    from athena_vla.data.check.cameras import scan_camera

    encode_video(folder / "v.mp4", scene(600, 480, 640, 0), 30.0)
    episode = episodes(1, 600, 8)[0]
    start = time.process_time()
    scan_camera(Episode(**{**vars(episode), "fps": 30.0}), "head", VideoFrames(folder / "v.mp4"), None)
    seconds = time.process_time() - start
    start = time.process_time()
    report = check(CheckConfig(input=folder / "rec", robot="athena"))
    frames = report.frames / (time.process_time() - start)
    return {"video_times_real_time": 20.0 / seconds, "folder_224px_frames_per_second": frames}


if __name__ == "__main__":
    main()
