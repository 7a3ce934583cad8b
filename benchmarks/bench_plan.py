"""The planner's training memory and arithmetic against measurement, where they can be measured here: on a CPU.

    python benchmarks/bench_plan.py --out benchmarks/plan.json

Every row runs in a process of its own: the model is built, adapters are attached, optimiser steps are made (the second
has gradients, moments and activations at once), and the growth of the process's peak memory is compared with what
`athena_vla.plan` predicts for a CPU. Freed blocks go back to the system at once, so that the process holds what the
program holds. Step time is predicted from the traced arithmetic and traffic with two rates per precision, fitted to all
OTHER rows of that precision: no row is predicted with its own time. No GPU: predictions for one stay unmeasured.
"""

import ctypes
import json
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.optimize import nnls

from athena_vla.bench.facts import device_facts
from athena_vla.finetune.config import FinetuneConfig
from athena_vla.finetune.loop import make_optimizer
from athena_vla.models import lora, openvla_chunk
from athena_vla.models.lora import LoraSettings
from athena_vla.plan.activations import PROMPT, StepCost

SIZES = {"image_size": 96, "patch": 8, "tower_width": 32, "tower_blocks": 1}


@dataclass(frozen=True)
class PlanBenchConfig:
    out: Path = Path("benchmarks/plan.json")
    """Where the numbers go."""
    steps: int = 4
    """Steps per row; the first is not timed."""
    rows: tuple[int, ...] = ()
    """Numbers of the rows to run; all without."""


@dataclass(frozen=True)
class Case:
    """One training configuration."""

    width: int
    layers: int
    batch: int
    rank: int
    checkpointing: bool = False
    method: str = "lora"
    precision: str = "bf16"

    def __str__(self) -> str:
        recompute = ", recomputing" if self.checkpointing else ""
        size = f"width {self.width} x {self.layers}, rank {self.rank}, batch {self.batch}"
        return f"{self.method} {self.precision}, {size}{recompute}"


CASES = (
    Case(256, 8, 16, 16),
    Case(256, 8, 32, 16),
    Case(256, 8, 32, 16, checkpointing=True),
    Case(512, 6, 16, 64),
    Case(512, 6, 16, 64, precision="fp32"),
    Case(512, 12, 8, 32),
    Case(512, 12, 16, 32, checkpointing=True),
    Case(512, 6, 16, 8, method="full"),
    Case(256, 8, 16, 16, precision="fp32"),
    Case(512, 4, 8, 32, precision="fp32", checkpointing=True),
    Case(384, 6, 16, 32, precision="fp32"),
)


def spec_of(case: Case) -> openvla_chunk.ChunkSpec:
    body = {"width": case.width, "layers": case.layers, "heads": case.width // 64, "kv_heads": case.width // 64}
    return openvla_chunk.tiny_spec(action_dim=23, state_dim=23, **SIZES, **body, mlp_width=case.width * 11 // 4)


def settings_of(case: Case) -> LoraSettings:
    method: Any = case.method
    return LoraSettings(rank=case.rank, method=method)


def predict(case: Case) -> dict[str, float]:
    """[GB] and operations of one step, from sizes alone."""
    with torch.device("meta"):
        model = openvla_chunk.OpenVLAChunk.from_spec(spec_of(case), {})
    settings = settings_of(case)
    cost = StepCost(model, settings, on_cpu=True, precision=case.precision)
    total = sum(p.numel() for p in model.parameters())
    trainable = lora.attach(model, settings).trainable
    total += trainable if case.method == "lora" else 0
    held = cost.peak(case.layers, case.batch, checkpointing=case.checkpointing)
    return {
        "gb": (4 * total + 8 * trainable + held) / 1e9,  # float32 weights, two moments
        "flops": cost.flops(case.layers, case.batch, checkpointing=case.checkpointing),
        "bytes": cost.traffic(case.layers, case.batch, checkpointing=case.checkpointing),
    }


def measure(case: Case, steps: int, answer: Any) -> None:
    """Growth of this process's peak memory [GB], and seconds per step."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 65_536)  # M_MMAP_THRESHOLD: every block above is mapped, and unmapped when freed
    # What is loaded at first use is no part of the model.
    warm = openvla_chunk.OpenVLAChunk.from_spec(openvla_chunk.tiny_spec(action_dim=23, state_dim=23, layers=2), {})
    train(warm, Case(128, 2, 1, 4, case.checkpointing, precision=case.precision), 2)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    model = openvla_chunk.OpenVLAChunk.from_spec(spec_of(case), {})
    seconds = train(model, case, steps)
    answer.put({"gb": (status("VmHWM") - before) / 1e6, "seconds": statistics.median(seconds[1:])})


def train(model: openvla_chunk.OpenVLAChunk, case: Case, steps: int) -> list[float]:
    lora.attach(model, settings_of(case))
    model.train()
    narrow = case.precision != "fp32"
    lora.trust_autocast(model, on=narrow)
    lora.fuse_forward(model, on=True)
    if case.checkpointing:
        model.checkpoint_layers()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(model, parameters, FinetuneConfig())
    inputs = {
        "patches": torch.randn(case.batch, model.body_spec.patches, model.body_spec.text.width),
        "input_ids": torch.randint(3, 100, (case.batch, PROMPT)),
        "prompt_mask": torch.ones(case.batch, PROMPT, dtype=torch.bool),
        "state": torch.zeros(case.batch, 23),
    }
    target = torch.zeros(case.batch, model.spec.horizon, 23)
    valid = torch.ones(case.batch, model.spec.horizon, dtype=torch.bool)
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model.loss(inputs, target, valid)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - started)
    return seconds


def status(name: str) -> int:
    """[kB] from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def fitted(rows: list[dict[str, float]]) -> NDArray[np.float64]:
    """Seconds per GFLOP and per GB, none below zero, with the least relative errors."""
    relative = np.array([_work(r) / r["measured_cpu_seconds"] for r in rows])
    return nnls(relative, np.ones(len(rows)))[0]


def _work(row: dict[str, float]) -> NDArray[np.float64]:
    return np.array([row["predicted_gflop"], row["predicted_traffic_gb"]])


def main(config: PlanBenchConfig) -> None:
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, float]] = {}
    for case in [CASES[i] for i in config.rows] or CASES:
        answer = context.SimpleQueue()
        child = context.Process(target=measure, args=(case, config.steps, answer))
        child.start()
        measured = answer.get()
        child.join()
        predicted = predict(case)
        rows[str(case)] = {
            "predicted_gb": predicted["gb"],
            "measured_gb": measured["gb"],
            "memory_ratio": predicted["gb"] / measured["gb"],
            "predicted_gflop": predicted["flops"] / 1e9,
            "predicted_traffic_gb": predicted["bytes"] / 1e9,
            "measured_cpu_seconds": measured["seconds"],
        }
        print(case, {k: round(v, 3) for k, v in rows[str(case)].items()}, flush=True)
    for group in ("bf16", "fp32"):
        own = [r for n, r in rows.items() if f" {group}," in n]
        for row in own if len(own) > 2 else ():
            rates = fitted([r for r in own if r is not row])
            row["predicted_cpu_seconds"] = float(np.dot(rates, _work(row)))
            row["time_ratio"] = row["predicted_cpu_seconds"] / row["measured_cpu_seconds"]
    result = {
        "what": "training memory and time on one CPU thread: predicted by athena_vla.plan, measured here",
        "command": " ".join(sys.argv),
        "memory_within_15_percent": sum(abs(r["memory_ratio"] - 1) <= 0.15 for r in rows.values()),
        "time_within_15_percent": sum(abs(r.get("time_ratio", 0) - 1) <= 0.15 for r in rows.values()),
        "of": len(rows),
        "rows": rows,
        "machine": device_facts(),
    }
    config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(PlanBenchConfig))
