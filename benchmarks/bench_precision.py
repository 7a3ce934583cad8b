"""Training steps per CPU second in bfloat16 and float32, with this processor's instructions and limited to AVX2's.

    python benchmarks/bench_precision.py --out benchmarks/precision.json

The demo's preset on the small base that ships, on images of noise with cached features, one thread. Limited as
scripts/capped.sh limits: oneDNN and torch's own kernels; the processor stays the one at hand, so a real machine without
AVX-512 emulates bfloat16 more slowly still. Rows alternate; CPU seconds, so that other work matters less.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.embodiment import load
from athena_vla.finetune import PRESETS, finetune
from athena_vla.models import precision
from bench_train import make_data

LIMITS = {"native": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
PRECISIONS = ("bf16", "fp32")
BATCH = PRESETS["demo"].batch


@dataclass(frozen=True)
class PrecisionBenchConfig:
    out: Path = Path("benchmarks/precision.json")
    """Where the numbers go."""
    steps: int = 10
    """Steps per measurement."""
    rounds: int = 3
    """Alternating measurements per row."""
    row: str = ""
    """For the script's own use: measure this precision, print it, and write nothing."""
    data: Path = Path()
    """For the script's own use: the dataset."""


def measure(config: PrecisionBenchConfig) -> dict[str, object]:
    """One row, in a process of its own: the limits are read when torch is imported."""
    changes = {"data": config.data, "precision": config.row, "max_steps": config.steps, "evaluate_every": config.steps}
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(
            replace(
                PRESETS["demo"],
                **changes,
                out=Path(folder) / "policy",
                device="cpu",
                threads=1,
                warmup_steps=0,
                evaluate_samples=1,
                tensorboard=False,
                progress=False,
            )
        )
    return {"seconds": result.step_seconds, "auto": precision.fastest(), "says": precision.sentence()}


def main(config: PrecisionBenchConfig) -> None:
    if config.row:
        print(json.dumps(measure(config)))
        return
    rows: dict[str, list[float]] = {}
    says: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        data = make_data(Path(temporary), load("athena"), 16)
        for _ in range(config.rounds):
            for limit, environment in LIMITS.items():
                for name in PRECISIONS:
                    words = ["--row", name, "--data", str(data), "--steps", str(config.steps)]
                    done = subprocess.run(
                        [sys.executable, __file__, *words],
                        env=os.environ | environment,
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    answer = json.loads(done.stdout.strip().splitlines()[-1])
                    says[limit] = {"auto": answer["auto"], "says": answer["says"]}
                    rows.setdefault(f"{limit}, {name}", []).append(answer["seconds"])
                    print(limit, name, answer["seconds"], "CPU s per step", flush=True)
    middle = {n: statistics.median(v) for n, v in rows.items()}
    report = {
        "what": f"CPU seconds per training step of {BATCH} samples, one thread, measured here",
        "command": " ".join(sys.argv),
        "limits": LIMITS,
        "found": says,
        "cpu_seconds_per_step": rows,
        "median": middle,
        "samples_per_cpu_second": {n: round(BATCH / v, 1) for n, v in middle.items()},
        "bf16_over_fp32_time": {n: round(middle[f"{n}, bf16"] / middle[f"{n}, fp32"], 2) for n in LIMITS},
        "instruction_sets": instruction_sets(),
        "machine": device_facts(),
    }
    config.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["samples_per_cpu_second"]))


def instruction_sets() -> list[str]:
    """The vector instructions that the system lists."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return sorted(f for f in flags if f.startswith(("avx", "amx", "fma", "f16c", "sse4")))


if __name__ == "__main__":
    main(tyro.cli(PrecisionBenchConfig))
