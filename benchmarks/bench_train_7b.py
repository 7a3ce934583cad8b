"""One QLoRA optimiser step of the full-size model through `athena train`, on a CPU: time to load, step, memory, disk.

    python scripts/write_random_7b.py --out /tmp/openvla-7b-random        # 15 GB, once
    python benchmarks/bench_train_7b.py /tmp/openvla-7b-random            # writes benchmarks/train_7b.json

Shows that the whole way works at 7B without a GPU, in the memory of a laptop: the released layout read in 4 bits, one
step on a real recording of the embedded simulator, adapter saved. The weights are random: the loss means nothing, and
nobody would train at this speed. Peaks are of the training process, read from /proc while it runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from athena_vla.bench.facts import device_facts
from athena_vla.dataset.build import build
from athena_vla.dataset.build_config import BuildConfig
from athena_vla.sim.record import RecordConfig, record

OUT = Path(__file__).with_name("train_7b.json")
LOADED = "trainable"  # the first word of the note that a run writes once base and adapters stand


def dataset(folder: Path) -> Path:
    """Three short demonstrations of athena, one held out."""
    record(RecordConfig(out=folder / "recordings", episodes=3, failures=0.0, workers=1, quiet=True))
    found = {"input": folder / "recordings", "out": folder / "set", "robot": "athena", "horizon": 16}
    build(BuildConfig(**found, validation=0.34, workers=1))
    return folder / "set"


def watch(command: list[str], log: Path) -> dict[str, Any]:
    """Run it; when its log said that the base is loaded, and the most memory it held."""
    started, loaded, anonymous, resident = time.monotonic(), 0.0, 0.0, 0.0
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while child.poll() is None:
        time.sleep(0.05)
        if not loaded and log.is_file() and f'"{LOADED}' in log.read_text():
            loaded = time.monotonic() - started
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        anonymous = max(anonymous, _gb(found.get("RssAnon", "0 kB")))
        resident = max(resident, _gb(found.get("VmHWM", "0 kB")))
    said = child.communicate()[0]
    if child.returncode:
        sys.exit(f"{' '.join(command)} ended with status {child.returncode}")
    return {
        "seconds_whole_command": round(time.monotonic() - started, 1),
        "seconds_until_loaded": round(loaded, 1),
        "peak_anonymous_gb": round(anonymous, 2),
        "peak_resident_gb": round(resident, 2),
        "result": json.loads(said[said.index("{") :]),
    }


def _gb(field: str) -> float:
    return int(field.split()[0]) * 1.024e-6


def size_mb(folder: Path) -> dict[str, float]:
    return {str(f.relative_to(folder)): round(f.stat().st_size / 1e6, 3) for f in sorted(folder.rglob("*.*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="what scripts/write_random_7b.py writes")
    parser.add_argument("--preset", default="humanoid_default")
    parser.add_argument("--options", nargs="*", default=[], help="more words for athena train, without their dashes")
    parser.add_argument("--work", type=Path, help="kept folder; without, a temporary one")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if asked.checkpoint is None:
        print("bench_train_7b: not run. It needs the folder of a checkpoint, which scripts/write_random_7b.py writes.")
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        data = work / "set" if (work / "set").is_dir() else dataset(work)
        words = ["train", "--preset", asked.preset, "--model", str(asked.checkpoint), "--data", str(data)]
        words += ["--out", str(work / "policy"), "--quantization", "nf4", "--batch", "1", "--accumulation", "1"]
        words += ["--max-steps", "1", "--evaluate-samples", "1", "--cache-features", "never", "--resume", "never"]
        words += [f"--{w}" if i % 2 == 0 else w for i, w in enumerate(asked.options)]
        measured = watch([sys.executable, "-m", "athena_vla.cli", *words, "--json"], work / "policy.run" / "log.jsonl")
        measured["checkpoint_mb"] = size_mb(work / "policy.run" / "checkpoints")
        measured["bundle_mb"] = size_mb(work / "policy")
    result = measured.pop("result")
    kept = ("steps", "trainable", "total", "seconds", "step_seconds", "peak_memory_gb", "validation", "notes")
    report = {
        "what": "measured here, on a busy machine: one QLoRA step of the 7B sizes on a CPU, random weights",
        "command": "athena " + " ".join(words),
        "machine": device_facts(),
        **measured,
        "training": {k: result[k] for k in kept},
    }
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
