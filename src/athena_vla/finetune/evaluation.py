"""What a model in training does on the validation split, and where it is weak; each process does its share."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from typing_extensions import NotRequired, TypedDict

from athena_vla.dataset.mixed import MixedSet
from athena_vla.embodiment import Embodiment
from athena_vla.finetune import sharding
from athena_vla.finetune.batches import Batch, Loader
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.models.architecture import SMALLEST_WEIGHT, Architecture, run_torch

WEAK = 0.05  # mean error of a joint, as a share of its range of motion, from which on it is named
_NAMED = 5  # joints that are named at most


class OfSet(TypedDict):
    """What was found on the validation split of one of several sets."""

    loss: float
    mae_rad: float
    samples: int


class Solved(TypedDict):
    """What was found in the simulator."""

    solved: int
    scenes: int


class Evaluation(TypedDict):
    """What one look at the validation split found."""

    loss: float
    mae_rad: float
    per_joint_rad: dict[str, float]
    samples: int
    sets: NotRequired[dict[str, OfSet]]  # where several are trained on
    success: NotRequired[Solved]  # where weights are selected by it


class EvaluationAt(Evaluation):
    """The same, with the step it was made at."""

    step: int


def measure(
    model: Architecture, root: nn.Module, loader: Loader, config: FinetuneConfig, accelerator: Accelerator
) -> Evaluation:
    """Loss and mean absolute error per joint [rad] of `evaluate_samples` validation samples, the same ones each time.

    The loss is that of all samples in one batch: a mean over the steps that count. Every process has to call it.
    """
    dataset = loader.dataset
    chosen = dataset.validation
    if len(chosen) > config.evaluate_samples:
        places = np.linspace(0, len(chosen) - 1, config.evaluate_samples).round().astype(int)
        chosen = chosen[places]
    names = dataset.names if isinstance(dataset, MixedSet) else ("",)
    of = dataset.set_of_sample[chosen] if isinstance(dataset, MixedSet) else np.zeros(len(chosen), int)
    # Of each set: loss, counted terms, valid steps, error of each joint [rad].
    sums = np.zeros((len(names), 3 + dataset.robot.action_dim))
    with sharding.gathered(root):
        run = run_torch(model)
    for number, batch, counts in _shares([chosen[of == n] for n in range(len(names))], loader, config, accelerator):
        valid = batch.valid & torch.from_numpy(counts)[:, None]
        inputs = {k: v.to(accelerator.device) for k, v in batch.inputs.items()}
        with sharding.gathered(root), torch.no_grad(), accelerator.autocast():
            loss = model.loss(inputs, batch.target.to(accelerator.device), valid.to(accelerator.device))
            unit = model.decode(run, inputs, {}).float().cpu().numpy()
        samples = [dataset[i] for i in batch.samples]
        truth = np.stack([s.chunk for s in samples])
        miss = np.abs(dataset.normalizer.decode(unit, np.stack([s.observation.state for s in samples])) - truth)
        terms = float(model.counted(valid))
        sums[number, :3] += float(loss) * terms, terms, float(valid.sum())
        sums[number, 3:] += miss[valid.numpy()].sum(axis=0)
    every = sharding.total(torch.from_numpy(sums).to(accelerator.device)).cpu().numpy()
    loss, mean, errors = _means(every.sum(axis=0), dataset.robot)
    found: Evaluation = {
        "loss": loss,
        "mae_rad": mean,
        "per_joint_rad": dict(zip(dataset.robot.action_names, errors.tolist(), strict=True)),
        "samples": len(chosen),
    }
    if len(names) > 1:
        found["sets"] = {}
        for number, name in enumerate(names):
            loss, mean, _ = _means(every[number], dataset.robot)
            found["sets"][name] = {"loss": loss, "mae_rad": mean, "samples": int((of == number).sum())}
    return found


def _shares(
    by_set: list[NDArray[np.intp]], loader: Loader, config: FinetuneConfig, accelerator: Accelerator
) -> Iterator[tuple[int, Batch, NDArray[np.bool_]]]:
    """This process's batches, each of one set: number of the set, batch, and which of its samples count."""
    world, size = accelerator.num_processes, max(8, config.batch)
    for number, chosen in enumerate(by_set):
        # Sharded models answer only when all processes ask: those with less to do ask again, and do not count it.
        mine = np.resize(chosen, -(-len(chosen) // world) * world)[accelerator.process_index :: world]
        counts = np.arange(len(mine)) * world + accelerator.process_index < len(chosen)
        batches = loader.plain_batches([int(i) for i in mine], size)
        for first, batch in zip(range(0, len(mine), size), batches, strict=True):
            yield number, batch, counts[first : first + size]


def _means(total: NDArray[np.float64], robot: Embodiment) -> tuple[float, float, NDArray[np.float64]]:
    """Loss, mean error of the joints [rad] (channels have other units), and each column's error."""
    errors = total[3:] / max(total[2], 1.0)
    loss = float(total[0] / max(total[1], SMALLEST_WEIGHT))
    return loss, float(errors[: len(robot.action_joints) or None].mean()), errors


def weak_joints(per_joint: dict[str, float], robot: Embodiment) -> str:
    """A sentence on the joints whose error is large against their range of motion; "" where none is."""
    ours = robot.action_columns
    span, unit = dict(zip(ours.names, ours.span.tolist(), strict=True)), dict(zip(ours.names, ours.units, strict=True))
    shares = {n: e / span[n] for n, e in per_joint.items()}
    weak = sorted((n for n, share in shares.items() if share > WEAK), key=lambda n: -shares[n])
    if not weak:
        return ""
    listed = ", ".join(f"{n} {per_joint[n]:.3f} {unit[n]} ({100 * shares[n]:.0f}%)" for n in weak[:_NAMED])
    more = f" and {len(weak) - _NAMED} more" if len(weak) > _NAMED else ""
    return (
        f"Weak: the mean error of {len(weak)} of {len(shares)} joints is above {100 * WEAK:.0f}% of their range of "
        f"motion: {listed}{more}."
    )
