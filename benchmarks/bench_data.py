"""Data path against lerobot on the same machine and recordings: writing, random reading, checking, memory.

ATHENA_LEROBOT_PYTHON names the Python of an environment with the real lerobot (`make interop` makes one); without it
only our own numbers are measured. Pictures are those of a real recording where ../shared/data holds it, else drawn.
Writes benchmarks/data.json; `--only` measures a part anew and leaves the others as they are.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from athena_vla import embodiment
from athena_vla.bench.facts import device_facts
from athena_vla.check import CheckConfig, check
from athena_vla.dataset import dataset as dataset_module
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.prepare import resize
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.recordings.formats.lerobot_rows import episode_rows, features_of
from athena_vla.recordings.formats.lerobot_write import LeRobotV3Writer
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.media.video import VideoFrames
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import said

HERE = Path(__file__).resolve().parent
REAL = HERE.parents[1] / "shared/data/g1_inspire_v21"
LEROBOT = os.environ.get("ATHENA_LEROBOT_PYTHON", "")
EPISODES, LENGTH, SIZE, HORIZON, READS = 10, 60, 224, 16, 100
PARTS = ("writing", "reading", "checking", "memory")


class Held:
    """Frames in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[index]


def drawn(seed: int) -> Iterator[np.ndarray]:
    """Without the real recording: smooth shapes under camera noise, with a square that moves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:480, 0:640]
    base = np.stack([128 + 90 * np.sin((x + seed * 7) / (29 + 9 * c)) * np.cos(y / 41) for c in range(3)], axis=-1)
    for t in range(LENGTH):
        image = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
        image[200:260, 5 * t : 5 * t + 60] = (240, 80, 40)
        yield image


def pictures(count: int, length: int) -> tuple[list[np.ndarray], str]:
    """(per episode [length, 224, 224, 3], where they come from)."""
    if not REAL.is_dir():
        each = [itertools.islice(drawn(k), length) for k in range(count)]
        return [np.stack([resize(i, (SIZE, SIZE)) for i in images]) for images in each], "drawn"
    recording = open_recording(REAL)
    found = []
    for k in range(count):
        stream = recording.read(recording.ids()[k % len(recording.ids())]).cameras["cam_high"]
        first = length * (k // len(recording.ids()))
        found.append(np.stack([resize(stream[first + i], (SIZE, SIZE)) for i in range(length)]))
    return found, "a real Unitree G1, head camera, 640x480 AV1, resized to 224x224"


def episodes(images: list[np.ndarray]) -> list[Episode]:
    robot = embodiment.load("athena")
    made = []
    for k, each in enumerate(images):
        t = np.arange(len(each))[:, None] / 10
        q = (robot.default + 0.1 * np.sin(t + np.arange(robot.state_dim) + k)).astype(np.float32)
        made.append(
            Episode(
                id=f"episode_{k:05d}", clock=Clock.at_rate(len(each), 10.0, "recorded"), marks=Marks(True),
                joint_names=robot.action_joints, actions=q[:, robot.action_index], state_names=robot.joint_names,
                states=q, cameras={"head": Held(each)}, texts=said(("touch the red box",), len(each)),
            )
        )  # fmt: skip
    return made


def lerobot(*words: str) -> float | None:
    if not LEROBOT:
        return None
    surroundings = {**os.environ, "PYTHONPATH": str(HERE.parent / "interop"), "HF_HUB_OFFLINE": "1"}
    script = HERE.parent / "interop" / "lerobot_opens.py"
    done = subprocess.run([LEROBOT, script, *words], capture_output=True, text=True, env=surroundings, check=False)
    if done.returncode:
        sys.exit(f"lerobot failed on {words}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def write_ours(made: list[Episode], out: Path, video: bool = False) -> float:
    start = time.perf_counter()
    features = features_of(made[0], video=video, language=False)
    writer = LeRobotV3Writer(out, features, 10.0, "athena")
    for episode in made:
        columns, stats, videos = episode_rows(episode, writer.features, out / ".videos")
        writer.add(columns, len(episode), list(episode.instructions), stats, videos)
    writer.finish()
    return time.perf_counter() - start


def against(ours: float, theirs: float | None, is_rate: bool = False) -> dict[str, float | None]:
    ratio = None if theirs is None else ours / theirs if is_rate else theirs / ours
    return {"ours": ours, "lerobot": theirs, "ratio": ratio}


def writing(made: list[Episode], folder: Path) -> dict[str, object]:
    """[s] for the same frames; lerobot runs after ours, in its own process, its imports not counted."""
    arrays = folder / "arrays.npz"
    np.savez(
        arrays,
        images=np.concatenate([e.cameras["head"].images for e in made]),  # pyright: ignore[reportAttributeAccessIssue]
        actions=np.concatenate([e.actions for e in made]),
        states=np.concatenate([e.states for e in made]),
        lengths=np.array([len(e) for e in made]),
    )
    return {
        "single pictures": against(
            write_ours(made, folder / "ours"), lerobot("writes", str(arrays), str(folder / "theirs"), "image")
        ),
        "video, each its own default (h264 crf 18, AV1 crf 30)": against(
            write_ours(made, folder / "ours_video", video=True),
            lerobot("writes", str(arrays), str(folder / "theirs_video"), "video"),
        ),
    }


def rate(dataset: Dataset, reads: int) -> float:
    order = np.random.default_rng(0).integers(0, len(dataset), reads)
    start = time.perf_counter()
    for i in order:
        dataset[int(i)]
    return reads / (time.perf_counter() - start)


def reading(source: Path, folder: Path, reads: int) -> dict[str, object]:
    """Random training samples per second, from the set lerobot wrote: both read the same files."""
    started = time.perf_counter()
    dataset = Dataset.open(source, robot="athena", horizon=HORIZON)
    prepared = time.perf_counter() - started
    theirs = lerobot("reads", str(source), str(reads), str(HORIZON))
    share, dataset_module.DISK_SHARE = dataset_module.DISK_SHARE, -1.0
    stored = rate(dataset, reads)
    dataset_module.DISK_SHARE = share
    started = time.perf_counter()
    dataset = Dataset.open(source, robot="athena", horizon=HORIZON)
    dataset.cache_frames()
    once = time.perf_counter() - started
    shutil.rmtree(dataset.path)
    return {
        "decoded when asked for": against(stored, theirs, is_rate=True),
        "from the memory map (default)": against(rate(dataset, 20 * reads), theirs, is_rate=True),
        "seconds once": {"statistics and splits": prepared, "memory map": once},
    }


def peak_memory(count: int, folder: Path) -> float:
    """[MiB] peak of a fresh process that builds a set of `count` episodes."""
    root = folder / f"in{count}"
    small = [np.stack([resize(i, (64, 64)) for i in pictures(1, 20)[0][0]])]
    for episode in episodes(small):
        for k in range(count):
            write_episode(root, replace(episode, id=f"e{k:05d}", actions=episode.actions + 1e-4 * k))
    code = (
        "import sys;from pathlib import Path;from athena_vla.dataset.dataset import BuildConfig,build;"
        "build(BuildConfig(input=Path(sys.argv[1]),out=Path(sys.argv[2]),robot='athena',workers=1));"
        # Not getrusage: its peak is inherited from the process that started this one.
        "print(next(int(x.split()[1])/1024 for x in open('/proc/self/status') if x.startswith('VmHWM')))"
    )
    words = [sys.executable, "-c", code, str(root), str(folder / f"out{count}")]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def h264(images: Iterator[np.ndarray], path: Path) -> None:
    """As lerobot encodes h264: crf 30, a key frame every 2 frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        stream.options = {"g": "2", "crf": "30"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decode_all(path: Path) -> int:
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(container.streams.video[0]))


def checking(folder: Path) -> dict[str, object]:
    """Seconds of recording checked per second of one core; beside it what only decoding the video would take."""
    if not REAL.is_dir():
        return {"left out": "the real recording is not here"}
    shutil.copytree(REAL, folder / "h264", ignore=shutil.ignore_patterns("videos"))
    for source in sorted(REAL.rglob("*.mp4")):
        target = folder / "h264" / source.relative_to(REAL)
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = VideoFrames(source)
        h264((stream[i] for i in range(len(stream))), target)
    found: dict[str, object] = {}
    for name, path in (("AV1", REAL), ("h264", folder / "h264")):
        info = open_recording(path).info()

        def speed(work: Callable[[], object], seconds: float = info.duration) -> float:
            start = time.process_time()
            work()
            return seconds / (time.process_time() - start)

        def run(every: bool, path: Path = path) -> None:
            assert check(CheckConfig(input=path, every_picture=every)).frames == 1617

        found[f"640x480 {name}"] = {
            "times real time": speed(lambda run=run: run(False)),
            "with --every-picture": speed(lambda run=run: run(True)),
            "only decoding": speed(lambda path=path: [decode_all(v) for v in sorted(path.rglob("*.mp4"))]),
            "seconds of recording": info.duration,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, no memory measurement, prints only")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="the parts that are measured")
    parser.add_argument("--out", type=Path, default=HERE / "data.json")
    arguments = parser.parse_args()
    quick, parts = arguments.quick, arguments.only
    count, length, reads = (3, 30, 60) if quick else (EPISODES, LENGTH, READS)
    keeps = not quick and len(parts) < len(PARTS) and arguments.out.is_file()
    result: dict[str, object] = json.loads(arguments.out.read_text()) if keeps else {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        images, origin = pictures(count, length)
        result |= {
            "command": "python benchmarks/bench_data.py",
            "machine": device_facts(),
            "versions": {"av": av.__version__, "lerobot": _lerobot_version()},
            "setting": {"episodes": count, "frames each": length, "pixels": SIZE, "chunk": HORIZON, "pictures": origin},
        }
        if "writing" in parts or "reading" in parts:
            written = writing(episodes(images), folder)
            if "writing" in parts:
                result["writing [s]"] = written
        if "reading" in parts and LEROBOT:
            result["random training samples [1/s]"] = {
                "single pictures": reading(folder / "theirs", folder, reads),
                "video (AV1), lerobot with PyAV: torchcodec does not load here": reading(
                    folder / "theirs_video", folder, reads
                ),
            }
        if "checking" in parts:
            result["checking, per core"] = checking(folder)
        if "memory" in parts and not quick:
            few, many = peak_memory(10, folder), peak_memory(1000, folder)
            growth = {"10 episodes": few, "1000 episodes": many, "growth": many / few - 1}
            result["peak memory of a build [MiB]"] = growth
    if not quick:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _lerobot_version() -> str | None:
    code = "import importlib.metadata as m; print(m.version('lerobot'))"
    return subprocess.run([LEROBOT, "-c", code], capture_output=True, text=True).stdout.strip() if LEROBOT else None


if __name__ == "__main__":
    main()
