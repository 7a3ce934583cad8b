"""The planner's training memory and step time against measurement, where they can be measured here: on a CPU.

    python benchmarks/bench_plan.py --out benchmarks/plan.json

Memory is predicted from sizes alone, and measured as the growth of a process's peak while freed blocks go back to the
system at once, so that the process holds what the program holds. Step time is predicted as `athena plan --gpu here`
does it, from a few layers that are trained for seconds and carried on to all layers, and measured on the whole model,
in turn with those layers and in one process: this machine's speed drifts by a quarter within minutes, which says
nothing about the planner. No number is fitted to any row. No GPU: predictions for one stay unmeasured.
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

import torch
import tyro

from athena_vla.bench.facts import device_facts
from athena_vla.finetune import launch
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.loop import make_optimizer
from athena_vla.models import lora, openvla_chunk
from athena_vla.models.lora import LoraSettings
from athena_vla.plan import DEVICES, training_memory
from athena_vla.plan.activations import PROMPT, StepCost
from athena_vla.plan.probe import Probe, random_batch

SIZES = {"image_size": 96, "patch": 8, "tower_width": 32, "tower_blocks": 1}


@dataclass(frozen=True)
class PlanBenchConfig:
    out: Path = Path("benchmarks/plan.json")
    """Where the numbers go."""
    memory: bool = True
    """Measure memory; wants no quiet machine."""
    time: bool = True
    """Measure time."""
    rows: tuple[int, ...] = ()
    """Numbers of the rows to run again in a file that has the others; all without."""


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


def config_of(case: Case) -> FinetuneConfig:
    options: Any = {"method": case.method, "precision": case.precision}
    return FinetuneConfig(
        rank=case.rank, batch=case.batch, accumulation=1, gradient_checkpointing=case.checkpointing, **options
    )


def memory(case: Case, answer: Any) -> None:
    """[GB] predicted, and growth of this process's peak."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 65_536)  # M_MMAP_THRESHOLD: every block above is mapped, and unmapped when freed
    config, shape = config_of(case), weightless(case)
    settings = LoraSettings(**config.lora())
    cost = StepCost(shape, settings, on_cpu=True, precision=case.precision)
    options = {"batch": case.batch, "checkpointing": case.checkpointing, "cached": True}
    row = training_memory(shape, settings, DEVICES["rtx4090"], cost, **options)
    # What is loaded at first use is no part of the model.
    Training(Case(128, 2, 1, 4, case.checkpointing, precision=case.precision)).step()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    training = Training(case)
    training.step()
    training.step()  # gradients, moments and activations at once
    measured = (status("VmHWM") - before) / 1e6
    predicted = row.weights_gb + row.states_gb + row.activations_gb  # without what a GPU's libraries hold
    gflop = cost.flops(case.layers, case.batch, checkpointing=case.checkpointing) / 1e9
    answer.put(
        {
            "predicted_gb": predicted,
            "measured_gb": measured,
            "memory_ratio": predicted / measured,
            "predicted_gflop": gflop,
        }
    )


def duration(case: Case, answer: Any) -> None:
    """[s] of a step: from a few layers, and of the whole model in turn with them."""
    torch.set_num_threads(1)
    launch.keep_freed_memory()
    probe = Probe(weightless(case), config_of(case), torch.device("cpu"), cached=True, wide=True)
    whole, seconds = Training(case), []
    whole.step()
    found = probe.time(case.batch, checkpointing=case.checkpointing, each_round=lambda: seconds.append(whole.step()))
    predicted, measured = found.step(1), statistics.median(seconds)
    answer.put(
        {
            "predicted_cpu_seconds": predicted,
            "measured_cpu_seconds": measured,
            "time_ratio": predicted / measured,
            "probe_took_seconds": probe.spent - sum(seconds),
            "all_measured_cpu_seconds": seconds,
        }
    )


def weightless(case: Case) -> openvla_chunk.OpenVLAChunk:
    with torch.device("meta"):
        return openvla_chunk.OpenVLAChunk.from_spec(spec_of(case), {})


class Training:
    """The whole model, set up and stepped as the training loop does it."""

    def __init__(self, case: Case) -> None:
        config = config_of(case)
        self.model = openvla_chunk.OpenVLAChunk.from_spec(spec_of(case), {})
        lora.attach(self.model, LoraSettings(**config.lora()))
        self.model.train()
        self.narrow = case.precision != "fp32"
        lora.trust_autocast(self.model, on=self.narrow)
        lora.fuse_forward(self.model, on=True)
        self.model.checkpoint_layers(on=case.checkpointing)
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(self.model, self.parameters, config)
        self.batch = random_batch(self.model, case.batch, PROMPT, torch.device("cpu"), cached=True)

    def step(self) -> float:
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            loss = self.model.loss(*self.batch)
        loss.backward()
        float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started


def status(name: str) -> int:
    """[kB] from /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def alone(target: Any, *arguments: Any) -> dict[str, Any]:
    """What a function puts into its queue, called in a new process."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=target, args=(*arguments, answer))
    child.start()
    while child.is_alive() and answer.empty():
        time.sleep(0.05)
    if answer.empty():
        sys.exit(f"{target.__name__} {arguments} ended with status {child.exitcode}")
    found = answer.get()
    child.join()
    return found


def main(config: PlanBenchConfig) -> None:
    rows: dict[str, dict[str, Any]] = json.loads(config.out.read_text())["rows"] if config.rows else {}
    for case in [CASES[i] for i in config.rows] or CASES:
        row = rows.setdefault(str(case), {})
        row |= alone(memory, case) if config.memory else {}
        row |= alone(duration, case) if config.time else {}
        print(case, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
        write(config.out, rows)


def write(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    def within(name: str) -> int:
        return sum(abs(r[name] - 1) <= 0.15 for r in rows.values() if name in r)

    result = {
        "what": "training memory and time on one CPU thread: predicted by athena_vla.plan, measured here",
        "command": " ".join(sys.argv),
        "memory_within_15_percent": within("memory_ratio"),
        "time_within_15_percent": within("time_ratio"),
        "of": len(rows),
        "rows": rows,
        "machine": device_facts(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(PlanBenchConfig))
