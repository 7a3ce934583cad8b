"""Gates of a quantised or exported bundle against the float model; the outcome is written into the bundle.

Agreement of answers, error per joint, smoothness, and whether it still looks and listens. Closed-loop results come from
outside: this room does not know how they are made.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import athena_vla.bundle as bundles
from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.embodiment import Observation
from athena_vla.errors import BundleError, DatasetError
from athena_vla.export.gate_config import GateConfig, GateLimits
from athena_vla.gate import Gate, by_name, failed
from athena_vla.models.contract import Tapped, Values
from athena_vla.models.loops.shared_loop import VlaLoop
from athena_vla.offload import opened
from athena_vla.policy import Policy, asked, sensitivity
from athena_vla.quantize.choose import action_error, answered
from athena_vla.quantize.measured import ActionError

BINS = 256
SAME_BIN = 0.5
ONE_BIN = 1.5  # differences below this many bin widths are at most one bin apart


@dataclass(frozen=True)
class GateReport:
    """All gates with value, limit and outcome."""

    path: Path
    gates: dict[str, Gate]
    error: ActionError

    @property
    def passed(self) -> bool:
        return not failed(self.gates.values())

    @property
    def exit_status(self) -> int:
        return 0 if self.passed else 4

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "gates": {n: g.to_dict() for n, g in self.gates.items()},
            "error": self.error.to_dict(),
            "passed": self.passed,
        }

    def __str__(self) -> str:
        rows = [f"  {gate}" for gate in self.gates.values()]
        joints = [
            f"  {name:<32} mean {e.mean:.5f}  p95 {e.p95:.5f}  max {e.max:.5f} rad"
            for name, e in self.error.per_joint_rad.items()
        ]
        head = f"gates of {self.path}: {'passed' if self.passed else 'FAILED: it is not served'}"
        return "\n".join([head, *rows, f"error per joint, {self.error.frames} frames", *joints])


def check(config: GateConfig) -> GateReport:
    """Run all gates and write the outcome into the bundle. Raises `BundleError`, `DatasetError`."""
    bundle = Bundle.open(config.bundle)
    source = Bundle.open(config.reference) if config.reference else float_ancestor(bundle)
    candidate = Policy.of(bundle, config.backend, device=config.device, providers=config.providers)
    frames = held_out(config, bundle)
    limits = config.limits
    with opened(source, config.device) as reference:
        gates = list(agreement(reference, candidate, frames, limits))
        expected = reference.chunks(frames)
    answers, counted = candidate.chunks(frames), answered(frames, bundle.spec.horizon)
    error = action_error(answers, expected, bundle.robot.action_names, counted)
    bins = (np.abs(answers - expected) / bundle.normalizer.bin_width())[counted]
    in_tokens = bool(gates)
    gates += [
        Gate.at_least("bin_agreement", float((bins <= ONE_BIN).mean()), limits.bin_agreement),
        Gate.at_most("error_p95_rad", error.p95_rad, limits.p95_rad, "rad"),
        Gate.at_most("error_max_rad", error.max_rad, limits.max_rad, "rad"),
        Gate.at_most("roughness_ratio", error.roughness_ratio, limits.roughness_ratio),
    ]
    if in_tokens:  # the same bin is the same token
        same = float((bins < SAME_BIN).mean())
        gates.append(Gate.at_least("greedy_agreement_free_running", same, limits.free_running_agreement))
    gates += sensitivity(candidate, frames).values()
    if config.closed_loop is not None:
        p = _closed_loop(config.closed_loop, bundle)
        gates.append(Gate.at_least("closed_loop_worse_p", p, limits.closed_loop_p))
    bundles.mark(bundle, by_name(gates))
    report = GateReport(config.bundle, by_name(gates), error)
    if config.out is not None:
        files.write_json(config.out, report.to_dict(), BundleError, sort_keys=True)
    return report


def agreement(
    reference: Policy, candidate: Policy, frames: Sequence[Observation], limits: GateLimits
) -> tuple[Gate, ...]:
    """Token by token, the candidate reading what the reference wrote; nothing for families without tokens."""
    assert isinstance(reference.loop, VlaLoop)
    last = reference.loop.body_spec.text.vocabulary
    memory, other = reference.engine.memory, candidate.engine.memory
    divergences: list[float] = []
    same: list[float] = []

    def run(name: str, values: Values) -> Values:
        mine = reference.engine.run(name, values)
        if "logits" in mine:
            copied = {k: memory.read(v) for k, v in values.items()}
            answers = (memory.read(mine["logits"]), other.read(candidate.engine.run(name, copied)["logits"]))
            logits, theirs = (_bins(torch.from_numpy(x), last) for x in answers)
            p, q = torch.log_softmax(logits, dim=1), torch.log_softmax(theirs, dim=1)
            divergences.extend((p.exp() * (p - q)).sum(dim=1).tolist())
            same.extend((logits.argmax(dim=1) == theirs.argmax(dim=1)).float().tolist())
        return mine

    forced = dataclasses.replace(reference, engine=Tapped(reference.engine, run))
    for frame in frames:
        forced.act(frame)
    if not same:
        return ()
    return (
        Gate.at_most("kl_nats", float(np.mean(divergences)), limits.kl_nats, "nats"),
        Gate.at_least("greedy_agreement_teacher_forced", float(np.mean(same)), limits.greedy_agreement),
    )


def _bins(logits: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Logits of the action tokens; models held to them answer with nothing else."""
    rows = logits.float()
    return rows if rows.shape[1] == BINS else rows[:, vocabulary - BINS : vocabulary]


def float_ancestor(bundle: Bundle) -> Bundle:
    """The nearest parent with float weights. Raises `BundleError` where the chain is broken."""
    while bundle.manifest.stage in ("quantized", "exported"):
        bundle = bundle.parent()
    return bundle


def held_out(config: GateConfig, bundle: Bundle) -> list[Observation]:
    """Validation frames of the dataset, or the golden ones."""
    if config.data is None:
        return list(bundle.golden.observations)
    data = Dataset.open(config.data)
    if data.robot.hash != bundle.robot.hash:
        raise DatasetError(f"'{config.data}' was recorded on '{data.robot.name}', not on '{bundle.robot.name}'.")
    indices = data.validation if len(data.validation) else data.train
    picked = np.random.default_rng(config.seed).permutation(np.asarray(indices))[: config.frames]
    return asked([data[int(i)] for i in sorted(picked)], bundle.loop.prefix)


def _closed_loop(path: Path, bundle: Bundle) -> float:
    """How likely the bundle's successes are if it is not worse. Raises `BundleError`."""
    try:
        result = json.loads(path.read_text())
        if "paired" not in result:
            return float(result["first_worse_p"])
        rows = {r["name"]: r for r in result["rows"]}
        mine = rows[result["reference"]]["source"]
        others = [n for n, r in rows.items() if r["kind"] == "policy" and r["ablation"] == "none"]
        others.remove(result["reference"])
        found = [float(result["paired"][n]["first_worse_p"]) for n in others]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"'{path}' is not a paired comparison ({error}); `athena compare FLOAT {bundle.path}` writes one."
        ) from error
    if Path(mine).resolve() != bundle.path.resolve() or len(found) != 1:
        raise BundleError(
            f"'{path}' compares '{mine}' with {others}, not '{bundle.path}' with its float model; "
            f"`athena compare FLOAT {bundle.path}` does."
        )
    return found[0]
