"""Checkpoints by optimiser step: adapter, optimiser and counters in safetensors and JSON; never the base, never pickle.

A checkpoint is a folder that appears by rename. One that was cut is skipped, with a warning, for the one before.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from athena_vla import files
from athena_vla.errors import TrainingError
from athena_vla.finetune.evaluation import EvaluationAt, Solved
from athena_vla.finetune.finetune_config import NO_EFFECT
from athena_vla.finetune.sharding import like
from athena_vla.models.weights.store import save as save_file

_PREFIX = "step-"
AVERAGE = "average.safetensors"


@dataclass
class Standing:
    """Counters that travel in checkpoints."""

    best_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss, in fp16
    evaluations: list[EvaluationAt] = field(default_factory=list)
    drawn: int = 0  # samples, in all steps so far
    steps: int = 0  # planned in all
    skipped: int = 0  # steps whose gradient was not finite
    best_success: Solved = field(
        default_factory=lambda: Solved(solved=-1, scenes=0)
    )  # where weights are selected by it

    def evaluated(self, step: int) -> bool:
        return any(e["step"] == step for e in self.evaluations)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had not stopped; random numbers follow from the step."""

    step: int  # optimiser steps done
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "parameter name.state name" -> tensor
    progress: Standing
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, where the run keeps one

    @property
    def chosen(self) -> dict[str, Tensor]:
        """What becomes a bundle: the average, where there is one."""
        return self.average or self.weights


def save(folder: Path, checkpoint: Checkpoint, identity: Mapping[str, Any]) -> Path:
    """Write `folder/step-000123`. Raises `TrainingError` where the disk is full; nothing half-written stays."""
    target = folder / f"{_PREFIX}{checkpoint.step:06d}"
    content = {"step": checkpoint.step, "identity": dict(identity), "progress": asdict(checkpoint.progress)}
    try:
        with files.whole_folder(target, TrainingError) as temporary:
            save_file(_plain(checkpoint.weights), temporary / "adapter.safetensors")
            save_file(_plain(checkpoint.optimizer), temporary / "optimizer.safetensors")
            if checkpoint.average:
                save_file(_plain(checkpoint.average), temporary / AVERAGE)
            (temporary / "state.json").write_text(json.dumps(content, indent=1, sort_keys=True))
    except TrainingError as error:
        raise TrainingError(
            f"{error} Earlier checkpoints are untouched: run the same command again to go on."
        ) from error
    return target


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, in order."""
    return sorted(int(p.name.removeprefix(_PREFIX)) for p in folder.glob(f"{_PREFIX}[0-9]*") if p.is_dir())


def kept(folder: Path, planned: int = 0) -> str:
    """A sentence for somebody who interrupted a training, from the checkpoints that are there."""
    done = steps(folder)
    if not done:
        return "no training step was kept; the same command starts the training again."
    whole = f" of {planned}" if planned else ""
    return f"the checkpoint of step {done[-1]}{whole} is kept in '{folder}'; the same command goes on from it."


def load(folder: Path, step: int) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint of that step and the identity of the run that wrote it. Raises `TrainingError`."""
    path = folder / f"{_PREFIX}{step:06d}"
    try:
        content = json.loads((path / "state.json").read_text())
        checkpoint = Checkpoint(
            int(content["step"]),
            load_file(path / "adapter.safetensors"),
            load_file(path / "optimizer.safetensors"),
            Standing(**content["progress"]),
            load_file(path / AVERAGE) if (path / AVERAGE).is_file() else {},
        )
        return checkpoint, content["identity"]
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"Checkpoint '{path}' cannot be read: {error}.") from error


def latest(folder: Path, warn: Any) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest readable checkpoint; every unreadable one on the way is named through `warn`."""
    for step in reversed(steps(folder)):
        try:
            return load(folder, step)
        except TrainingError as error:
            warn(f"{error} It is skipped for the one before.")
    return None


def update(folder: Path, step: int, progress: Standing) -> None:
    """Write new counters into a checkpoint that is there."""
    file = folder / f"{_PREFIX}{step:06d}" / "state.json"
    content = files.read_json_object(file, TrainingError) | {"progress": asdict(progress)}
    files.write_json(file, content, TrainingError, sort_keys=True)


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> list[str]:
    """Sentences on what may differ and is worth saying; options that change no number are not compared.

    Raises `TrainingError` naming what differs otherwise between the run on disk and the one asked for.
    """
    split = {"batch", "accumulation", "processes"}
    names = {*found, *wanted} - NO_EFFECT - split
    differing = sorted(k for k in names if found.get(k) != wanted.get(k))
    changed: list[str] = []
    if {k: found.get(k) for k in split} != {k: wanted.get(k) for k in split}:
        there, now = step_size(found), step_size(wanted)
        moved = sorted(k for k in split if found.get(k) != wanted.get(k))
        said = ", ".join(f"{k} {found.get(k)} there, {wanted.get(k)} now" for k in moved)
        if there == now:
            changed.append(f"{said}: the same samples in every step, in other parts; sums are rounded otherwise.")
        elif moved == ["processes"]:
            changed.append(
                f"{said}: a step has {now} samples from here on, it had {there}. The order of samples goes on where it "
                "was; steps per epoch, and what a step of the learning rate sees, change. With "
                f"--accumulation times {there / now:.3g} nothing would."
            )
        else:
            differing += moved
    if differing:
        changes = "; ".join(f"{k}: {found.get(k)} there, {wanted.get(k)} now" for k in differing[:6])
        raise TrainingError(
            f"'{folder}' holds checkpoints of another run ({changes}). "
            "Choose another --out, or start again and replace them with --overwrite."
        )
    return changed


def step_size(identity: Mapping[str, Any]) -> int:
    """Samples per optimiser step of a run."""
    return int(identity["batch"]) * int(identity["accumulation"]) * int(identity["processes"])


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` and the best one."""
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(folder / f"{_PREFIX}{step:06d}", ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimiser's tensors under parameter names; `names` maps `id(parameter)` to its name."""
    found: dict[str, Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            found[f"{names[id(parameter)]}|{key}"] = tensor.detach()
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimizer_tensors`. Raises `TrainingError` for a parameter that is not there."""
    groups = [g for g in optimizer.param_groups if g.get("fused") or g.get("capturable")]
    fused = {parameter for group in groups for parameter in group["params"]}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("|")
        if name not in parameters:
            raise TrainingError(f"The checkpoint's optimiser has '{name}', which does not train in this run.")
        parameter = parameters[name]
        # Moments live where the weights do; step counters on the host, but for kernels that read them on the card.
        counter = tensor.to(parameter.device if parameter in fused else "cpu", copy=True) if tensor.ndim == 0 else None
        optimizer.state[parameter][key] = like(tensor.clone(), parameter) if counter is None else counter


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}


def remove_all(folder: Path) -> None:
    """Remove every checkpoint."""
    for step in steps(folder):
        shutil.rmtree(folder / f"{_PREFIX}{step:06d}", ignore_errors=True)
