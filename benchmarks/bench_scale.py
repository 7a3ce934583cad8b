"""1,000 episodes of two cameras at different rates: build, check and open, against a quarter of them.

    python benchmarks/bench_scale.py --out benchmarks/scale.json

Each episode is one MCAP bag: joint states at 20 Hz, a camera at 15 Hz and one at 8 Hz, six seconds. Every stage runs in
a process of its own on one core: CPU seconds, the peak of its resident memory, and what of it is its own at the end: an
opened set maps its decoded images, which the system may drop again. Wanted: time in proportion to the episodes, memory
that does not grow, and checks within a tenth of the build.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from athena_vla.bags.mcap_file import McapWriter
from athena_vla.bench.facts import device_facts
from athena_vla.embodiment import load
from athena_vla.ros2.messages import JointMap, image_message

SECONDS, HZ, RATES = 6, 20, {"front": 15, "side": 8}
ROBOT = """
[[camera]]
name = "side"
width = 64
height = 48
fps = 8
fov_deg = 60
mount = "world"
"""
STAGES = {
    "build": """
import time
from athena_vla.dataset import prepare
from athena_vla.dataset.build import BuildConfig, build
spent = 0.0
def timed(work):
    def wrapped(*words, **options):
        global spent
        began = time.process_time()
        found = list(work(*words, **options))
        spent += time.process_time() - began
        return found
    return wrapped
prepare.episode_findings, prepare.check_samples = timed(prepare.episode_findings), timed(prepare.check_samples)
result = build(BuildConfig(input=root, out=out, robot=robot, workers=1))
extra = {"episodes": len(result.train_episodes) + len(result.validation_episodes), "checks [s]": round(spent, 2)}
""",
    "check": """
from athena_vla.check import CheckConfig, check
report = check(CheckConfig(input=root, robot=robot))
extra = {"episodes": report.episodes, "findings": sorted({f.code for f in report.findings})}
""",
    "open": """
import numpy as np
from athena_vla.dataset.dataset import Dataset
data = Dataset.open(out)
for i in np.random.default_rng(0).integers(0, len(data), 500):
    data[int(i)]
extra = {"samples": len(data)}
""",
}
FRAME = """
import json, resource, sys
from pathlib import Path
root, out, robot = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
{work}
used = resource.getrusage(resource.RUSAGE_SELF)
lines = [x.split() for x in open("/proc/self/status") if x.startswith(("VmHWM", "RssAnon"))]
mib = {{x[0].rstrip(":"): int(x[1]) / 1024 for x in lines}}
took = {{"CPU [s]": round(used.ru_utime + used.ru_stime, 2), "peak [MiB]": round(mib["VmHWM"], 1)}}
print(json.dumps({{**took, "own at the end [MiB]": round(mib["RssAnon"], 1), **extra}}))
"""


@dataclass(frozen=True)
class ScaleBenchConfig:
    out: Path = Path("benchmarks/scale.json")
    """Where the numbers go."""
    counts: tuple[int, ...] = (250, 1000)
    """Episodes."""


def write(path: Path, number: int) -> None:
    """One episode as a bag."""
    toy = JointMap(load("toy"))
    draw = np.random.default_rng(number)
    speed, phase = draw.uniform(0.8, 1.6, 3), draw.uniform(0, 6, 3)
    with McapWriter(path) as bag:
        bag.put("/task", "std_msgs/msg/String", {"data": f"touch box {number % 7}"}, 0.0)
        for i in range(SECONDS * HZ):
            row = np.array([0.1, 0.1, 0.3]) + np.array([0.8, 0.6, 0.3]) * np.sin(speed * i / HZ + phase)
            bag.put("/joint_states", "sensor_msgs/msg/JointState", toy.joint_state(row, 1 + i / HZ), 1 + i / HZ)
        for name, rate in RATES.items():
            for i in range(SECONDS * rate + 1):
                pixels = draw.integers(40, 60, (48, 64, 3)).astype(np.uint8)
                pixels[10:20, i % 50 : i % 50 + 10] = 200
                time = 0.98 + i / rate
                bag.put(f"/{name}/image_raw", "sensor_msgs/msg/Image", image_message(pixels, time, name), time)


def main(config: ScaleBenchConfig) -> None:
    """Write the recordings once, measure every stage at every count."""
    measured: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        robot = folder / "two_cameras.toml"
        source = Path(__file__).resolve().parents[1] / "src/athena_vla/robots/toy.toml"
        robot.write_text(source.read_text().replace("[[joint]]", ROBOT + "\n[[joint]]", 1))
        for count in config.counts:
            root = folder / f"bags{count}"
            root.mkdir()
            for number in range(count):
                write(root / f"take_{number:05d}.mcap", number)
            for stage, work in STAGES.items():
                words = [sys.executable, "-c", FRAME.format(work=work), root, folder / f"set{count}", robot]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                measured.setdefault(stage, {})[f"{count} episodes"] = json.loads(done.stdout.splitlines()[-1])
                print(stage, count, done.stdout.splitlines()[-1], flush=True)
    content = {
        "command": "python benchmarks/bench_scale.py",
        "kind": "measured_here",
        "machine": device_facts(),
        "cameras [Hz]": RATES,
        "joint states [Hz]": HZ,
        "stages": measured,
    }
    config.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(ScaleBenchConfig))
