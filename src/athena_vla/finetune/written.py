"""The bundle of a fine-tuning: what its model answers, and how it is written; of a finished run or of a checkpoint."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle, Golden, Manifest
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError, UnknownName
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune.base import Start, open_sets, start
from athena_vla.finetune.checkpoint_config import CheckpointConfig
from athena_vla.finetune.evaluation import EvaluationAt
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.log import CONFIG
from athena_vla.gate import Gate, failed
from athena_vla.models import lora
from athena_vla.models.architecture import Architecture
from athena_vla.models.released.pretrained import Release
from athena_vla.models.weights.store import save_tensors
from athena_vla.policy import Policy, asked, record_golden, sensitivity

GOLDEN_EXAMPLES = 4
_LARGE = 1_000_000_000  # parameters; larger models answer where and as they were trained


@dataclass(frozen=True)
class CheckpointResult:
    """The bundle of one checkpoint."""

    bundle: Path
    step: int
    steps: tuple[int, ...]  # that have a checkpoint
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = ", ".join(str(s) for s in self.steps)
        return "\n".join([f"{self.bundle}: the weights of step {self.step} (checkpoints: {others})", *self.notes])


@dataclass(frozen=True)
class Outcome:
    """What a bundle says of its run."""

    steps: int
    chosen_step: int
    evaluations: Sequence[EvaluationAt]


@dataclass(frozen=True)
class Chosen:
    """One checkpoint of a run, finished or not."""

    folder: Path
    settings: FinetuneConfig
    steps: tuple[int, ...]  # that have a checkpoint
    checkpoint: checkpoints.Checkpoint
    identity: Mapping[str, object]  # of the run that wrote it


def chosen_checkpoint(run: Path, step: int) -> Chosen:
    """The checkpoint of a step, or for step 0 the best one. Raises `TrainingError`, `UnknownName`."""
    folder = next((f for f in (run, run.with_name(f"{run.name}.run")) if (f / CONFIG).is_file()), None)
    if folder is None:
        raise TrainingError(f"'{run}' is no run: it has no {CONFIG}. Give the folder OUT.run of a fine-tuning.")
    settings = FinetuneConfig.from_dict(json.loads((folder / CONFIG).read_text()))
    steps = checkpoints.steps(folder / "checkpoints")
    if not steps:
        raise TrainingError(f"'{folder}' has no checkpoint: the run ended before its first one was written.")
    if step and step not in steps:
        raise UnknownName(f"checkpoint in '{folder}'", str(step), [str(s) for s in steps])
    newest, _ = checkpoints.load(folder / "checkpoints", steps[-1])
    best = newest.progress.best_step
    found, identity = checkpoints.load(folder / "checkpoints", step or (best if best in steps else steps[-1]))
    return Chosen(folder, settings, tuple(steps), found, identity)


def bundle_of_checkpoint(config: CheckpointConfig) -> CheckpointResult:
    """Make a bundle of a checkpoint, of a run that is finished or not.

    Raises `TrainingError`, `UnknownName`, and what opening its data and base raises.
    """
    chosen = chosen_checkpoint(config.run, config.step)
    folder, settings, steps = chosen.folder, chosen.settings, chosen.steps
    found, identity = chosen.checkpoint, chosen.identity
    begin = start(settings, open_sets(settings))
    for what, now in (("dataset", begin.dataset.hash), ("base", begin.base.hash)):
        if identity.get(what) != now:
            raise TrainingError(
                f"The run in '{folder}' used {what} {identity.get(what)}; now it is {now}: not the same."
            )
    lora.load(begin.model, found.chosen)
    golden, gates = answers(begin.model, begin.dataset)
    outcome = Outcome(found.step, found.step, found.progress.evaluations)
    write_bundle(dataclasses.replace(settings, out=config.out), begin, found.chosen, golden, gates, outcome)
    missed = [g.label for g in failed(gates.values())]
    notes = (f"It fails gates and is not served: {', '.join(missed)}.",) if missed else ()
    return CheckpointResult(config.out, found.step, steps, notes)


def is_small(model: Architecture) -> bool:
    """Whether its golden answers are computed in float32 on the CPU."""
    return sum(p.numel() for p in model.parameters()) < _LARGE


def answers(model: Architecture, dataset: Dataset) -> tuple[Golden, dict[str, Gate]]:
    """What the model answers to a few frames, and the outcome of its gates."""
    model.eval()
    pool = dataset.validation if len(dataset.validation) else dataset.train
    places = np.unique(np.linspace(0, len(pool) - 1, GOLDEN_EXAMPLES).round().astype(int))
    observations = asked([dataset[int(i)] for i in pool[places]], model.prefix)
    policy = Policy.of_model(model, dataset.robot, dataset.normalizer)
    return record_golden(policy, observations), sensitivity(policy, observations)


def write_bundle(
    config: FinetuneConfig,
    begin: Start,
    tensors: Mapping[str, Tensor],
    golden: Golden,
    gates: Mapping[str, Gate],
    outcome: Outcome,
) -> None:
    """Write the fine-tuned bundle to `config.out`."""
    model, dataset, base, settings = begin.model, begin.dataset, begin.base, begin.settings
    measured = next((e for e in outcome.evaluations if e["step"] == outcome.chosen_step), {})
    manifest = Manifest(
        stage="finetuned",
        family=model.family,
        spec=model.spec.to_dict(),
        robot=dataset.robot.to_dict(),
        normalizer=dataset.normalizer.to_dict(),
        dataset_hash=dataset.hash,
        parent_hash=base.hash,
        parent_path=_where(config.model) if isinstance(base, Bundle) else "",
        checkpoint=base.source if isinstance(base, Release) else "",
        adapter=dataclasses.asdict(settings) | {"targets": list(settings.targets)},
        config=config.to_dict(),
        gates=dict(gates),
        stage_info={
            "steps": outcome.steps,
            "chosen_step": outcome.chosen_step,
            "trainable": begin.trainables.trainable,
            "total": begin.trainables.total,
            "validation": {k: v for k, v in measured.items() if k != "step"},
            "evaluations": [
                {k: v for k, v in e.items() if k in ("step", "loss", "mae_rad", "success")} for e in outcome.evaluations
            ],
            "machine": platform.processor() or platform.machine(),
        },
    )
    with bundles.writing(config.out, manifest, golden, model.tokenizer_files()) as folder:
        save_tensors(dict[str, torch.Tensor](tensors), folder / bundles.ADAPTER_FILE)


def _where(model: str) -> str:
    return model if model.startswith(bundles.BUILTIN) else str(Path(model).resolve())
