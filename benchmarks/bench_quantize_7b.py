"""Choosing 4-bit codes at the full size: one decoder block of 32, every method, in CPU seconds and memory.

    python benchmarks/bench_quantize_7b.py [--checkpoint FOLDER] [--methods nearest clip gptq]  # quantize_7b.json

The 7 weights of one block are those of a checkpoint in openvla-7b's layout, or random ones of the same shapes; their
inputs are random and correlated, since only time and memory mean anything. What a whole model takes is 32 times as
much, and labelled as arithmetic. The whole model rounded to nearest was run: `prepare` in 7b_cpu.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from athena_vla.bench import facts
from athena_vla.models.store import TensorStore, as_float
from athena_vla.quantize import codes
from athena_vla.quantize.calibrate import second_moment

OUT = Path(__file__).with_name("quantize_7b.json")
BLOCKS = 32
ROWS = 2448  # of calibration inputs: 8 frames of 306 tokens
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
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = TensorStore(options.checkpoint) if options.checkpoint else None
    report: dict[str, Any] = {
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
            "peak_gb_so_far": facts.peak_memory_gb(),
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


if __name__ == "__main__":
    main()
