"""Choosing 4-bit codes at the full size: one decoder block of 32, every method, in CPU seconds and memory.

    python benchmarks/bench_quantize_7b.py [--checkpoint FOLDER] [--methods nearest clip gptq]  # quantize_7b.json
    python benchmarks/bench_quantize_7b.py --whole WORK --checkpoint FOLDER [--threads 2]  # and its part "whole"

The 7 weights of one block are those of a checkpoint in openvla-7b's layout, or random ones of the same shapes; their
inputs are random and correlated, since only time and memory mean anything. What a whole model takes is 32 times as
much, and labelled as arithmetic. `--whole` is `athena quantize` on the whole chunk policy in WORK (20 GB beside the
checkpoint), worst layers lifted, GPTQ; it goes on where it was interrupted.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import seven_b
from athena_vla.bench import facts
from athena_vla.bundle import Bundle
from athena_vla.machine import peak_resident_gb
from athena_vla.models.weights.store import TensorStore, as_float
from athena_vla.progress import Nowhere, Progress, State
from athena_vla.quantize import QuantizeConfig, codes, quantize
from athena_vla.quantize.calibrate import second_moment

OUT = Path(__file__).with_name("quantize_7b.json")
BLOCKS = 32
FRAMES = 8
ROWS = FRAMES * 306  # of calibration inputs: 8 frames of 306 tokens
SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="folder of safetensors; without: random weights")
    parser.add_argument("--methods", nargs="+", default=["nearest", "clip", "gptq"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=int, default=1, help="divide all sizes by this, 1, 2 or 86: to try the script")
    parser.add_argument("--whole", type=Path, help="folder to quantise a whole model in, instead of one block")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.whole:
        parts = json.loads(options.out.read_text()) if options.out.is_file() else {}
        parts["whole"] = whole(options.whole, options.checkpoint, options.threads, small=options.scale > 1)
        options.out.write_text(json.dumps(parts, indent=1, sort_keys=True))
        return
    store = TensorStore(options.checkpoint) if options.checkpoint else None
    before = json.loads(options.out.read_text()) if options.out.is_file() else {}
    report: dict[str, Any] = {
        **({"whole": before["whole"]} if "whole" in before else {}),
        "kind": "measured_here",
        "what": "one decoder block of openvla-7b's shapes, groups of 128; CPU seconds, so other processes count little",
        "command": sys.argv,
        "device": facts.device_facts(),
        "weights": "of the checkpoint" if store else "random",
        "threads": options.threads,
        "calibration_rows": ROWS,
        "methods": {},
    }
    for method in options.methods:
        layers = {name: one(name, method, store, options.scale) for name in SHAPES}
        total = sum(x["cpu_seconds"] for x in layers.values())
        report["methods"][method] = {
            "layers": layers,
            "cpu_minutes_per_block": total / 60,
            "whole_model_cpu_minutes_arithmetic": BLOCKS * total / 60,
            "peak_gb_so_far": peak_resident_gb(),
        }
        print(
            f"{method}: {total:.0f} CPU s for one block, {BLOCKS * total / 60:.0f} CPU minutes for {BLOCKS}", flush=True
        )
    options.out.write_text(json.dumps(report, indent=1, sort_keys=True))


def one(name: str, method: str, store: TensorStore | None, scale: int) -> dict[str, float]:
    """Second moment of the inputs and codes of one layer."""
    rows, columns = (n // scale for n in SHAPES[name])
    generator = torch.Generator().manual_seed(0)
    if store is None or scale > 1:
        weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    else:
        weight = as_float(store.read(f"language_model.model.layers.0.{name}.weight"))
    factors = torch.randn(256, columns, generator=generator)
    inputs = torch.randn(ROWS, 256, generator=generator) @ factors + torch.randn(ROWS, columns, generator=generator)
    start, cpu = time.perf_counter(), time.process_time()
    if method == "nearest":
        chosen = codes.nearest(weight, 4, 128)
    else:
        moment = second_moment(inputs)
        if method == "clip":
            chosen = codes.clipped(weight, 4, 128, moment.diagonal())
        else:
            chosen = codes.compensated(weight, 4, 128, moment)
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    answer = inputs[:256] @ weight.t()
    error = float((inputs[:256] @ chosen.dequantize().t() - answer).norm() / answer.norm())
    return {"seconds": seconds, "cpu_seconds": spent, "output_error": error}


class Stopwatch(Nowhere):
    """Prints how far the work is, and sums the CPU time [s] of each kind of step."""

    def __init__(self, times: dict[str, float]) -> None:
        self.times, self.last = times, time.process_time()

    def show(self, state: State) -> None:
        now = time.process_time()
        self.times[state.what] = self.times.get(state.what, 0.0) + now - self.last
        self.last = now
        print(f"{state.what}: {state.done} of {state.total}, {self.times[state.what] / 60:.1f} CPU minutes", flush=True)


def whole(work: Path, checkpoint: Path | None, threads: int, *, small: bool) -> dict[str, Any]:
    """`athena quantize` of the chunk policy: every 4th block measured in radians, the worst lifted, codes by GPTQ."""
    base, times = work / "base-chunk", dict[str, float]()
    if not base.exists():
        read = seven_b.of_checkpoint(None if small else checkpoint)
        seven_b.write_bundle(base, "chunk", small, read, "base", {}, FRAMES)
    resumed = bool(list(work.glob(".gptq-chunk.partial*")))  # then the times are of the rest
    start = time.process_time()
    settings = QuantizeConfig(base, work / "gptq-chunk", vision_bits=8, check=False, threads=threads)
    made = quantize(settings, Progress(Stopwatch(times)))
    table = Bundle.open(made.path).manifest.stage_info["layers"].values()
    spread = sorted(e["sensitivity_rad"] for e in table if e["sensitivity_measured"])
    return {
        "command": sys.argv,
        "device": facts.device_facts(),
        "what": "random weights in openvla-7b's shapes, so the errors mean nothing; times and memory do",
        "threads": threads,
        "calibration_frames": FRAMES,
        "resumed": resumed,
        "layers": made.layers,
        "layers_measured": len(spread),
        "lifted_to_8_bits": made.lifted,
        "mean_bits": made.mean_bits,
        "gb": made.bytes / 1e9,
        "minutes": made.minutes,
        "cpu_minutes": (time.process_time() - start) / 60,
        "cpu_minutes_by_step": {k: v / 60 for k, v in times.items()},
        "peak_gb": made.peak_gb,
    }


if __name__ == "__main__":
    main()
