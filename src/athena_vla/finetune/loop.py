"""The training loop: optimiser steps over batches, with warm-up, accumulation, clipping, evaluation and checkpoints.

A function of its config and data: random numbers follow from seed and step, so a resumed run equals an uninterrupted
one bit by bit on a CPU. Knows nothing of bundles or of how processes are started.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune import sharding
from athena_vla.finetune.batches import Batch, Loader, Order
from athena_vla.finetune.checkpoint import Checkpoint
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.log import RunLog
from athena_vla.models import lora
from athena_vla.models.architecture import Architecture, Tensors, run_torch
from athena_vla.models.weights import nf4 as four_bit
from athena_vla.stopping import Stop, until_asked


@dataclass
class Progress:
    """Counters that travel in checkpoints."""

    best_loss: float = math.inf
    best_step: int = 0
    bad_evaluations: int = 0
    scaler: dict[str, float] = field(default_factory=dict)  # of the loss, in fp16
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class LossOf(nn.Module):
    """The model's loss as a forward pass: what data-parallel wrappers understand."""

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensors, target: Tensor, valid: Tensor) -> Tensor:
        return self.model.loss(inputs, target, valid)


class Trainer:
    """One run in one process; `train` does all of it."""

    def __init__(
        self,
        model: Architecture,
        dataset: Dataset,
        loader: Loader,
        config: FinetuneConfig,
        accelerator: Accelerator,
        log: RunLog,
    ) -> None:
        self.model, self.dataset, self.loader = model, dataset, loader
        self.config, self.accelerator, self.log = config, accelerator, log
        self.order = Order(dataset, dataset.train, config, accelerator.num_processes)
        self.steps = config.max_steps or max(1, math.ceil(config.epochs * len(dataset.train) / self.order.step_size))
        self.evaluate_every = config.evaluate_every or self.order.steps_per_epoch()
        self.checkpoint_every = config.checkpoint_every or self.evaluate_every
        self.folder = config.run_folder / "checkpoints"
        self.progress = Progress()
        self.sharded = config.sharding == "fsdp2" and accelerator.num_processes > 1
        self.root: nn.Module = LossOf(model)
        if self.sharded:
            sharding.shard(self.root)  # replaces parameters, so it comes before the optimiser
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(model, self.parameters, config)
        if self.sharded:
            self.wrapped, self.optimizer = self.root, accelerator.prepare_optimizer(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(self.root, optimizer)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.last_good = 0
        self.batches: Iterator[Batch] = iter(())

    def train(self, identity: dict[str, Any]) -> int:
        """All steps, from the last checkpoint where there is one; returns the number of steps done.

        Ctrl-C and SIGTERM stop after the step it is at, whose checkpoint is written: `Interrupted`. Raises
        `TrainingError` for a loss that is not finite, and `torch.OutOfMemoryError` as torch does.
        """
        with until_asked("after this step") as stop:
            return self._train(identity, stop)

    def _train(self, identity: dict[str, Any], asked: Stop) -> int:
        first = self._resume(identity)
        self.wrapped.train()
        lora.trust_autocast(self.model, on=self.accelerator.mixed_precision != "no")
        lora.fuse_forward(self.model, on=self.accelerator.device.type == "cpu" and not self.sharded)
        if self.config.compile:
            self.model.compile_layers(on=True)
        self.batches = self.loader.ahead(self.order, first, self.steps, self.accelerator.process_index)
        started = time.monotonic()
        for step in self.log.track(range(first, self.steps), first, self.steps):
            self._set_rates(step)
            loss, norm = self._step(step)
            done = step + 1
            if done % self.config.log_every == 0 or done == self.steps:
                speed = (done - first) * self.order.step_size / max(time.monotonic() - started, 1e-9)
                rate = self.optimizer.param_groups[0]["lr"]
                self.log.scalars(done, {"loss": loss, "gradient_norm": norm, "rate": rate, "samples_per_second": speed})
            stop = False
            if done % self.evaluate_every == 0 or done == self.steps:
                stop = self._evaluate(done)
            if done % self.checkpoint_every == 0 or done == self.steps or stop:
                self._save(done, identity)
            if stop:
                self.log.note(
                    f"Stopped early at step {done}: no improvement in {self.config.patience} evaluations "
                    f"(best {self.progress.best_loss:.4f} at step {self.progress.best_step})."
                )
                return done
            if done < self.steps and self._all_asked(asked):
                if self.last_good != done:
                    self._save(done, identity)
                raise asked.interrupted(kept(self.folder, self.steps))
        return self.steps

    def _all_asked(self, stop: Stop) -> bool:
        """Whether any process was asked to stop: all end at the same step."""
        if self.accelerator.num_processes == 1:
            return stop.asked
        mine = torch.tensor([float(stop.asked)], device=self.accelerator.device)
        return float(cast(Tensor, self.accelerator.reduce(mine, "sum"))) > 0

    def restore(self, step: int) -> None:
        """Put the weights of that step's checkpoint into the model."""
        found, _ = checkpoints.load(self.folder, step)
        self._load_weights(found.weights)

    def weights(self) -> dict[str, Tensor]:
        """Everything that trains, whole; with sharding every process has to call it."""
        return sharding.whole(lora.state(self.model))

    def _load_weights(self, tensors: dict[str, Tensor]) -> None:
        lora.load(self.model, {k: sharding.like(t, self.parameters[k]) for k, t in tensors.items()})

    def evaluate(self) -> dict[str, Any]:
        """Loss and mean absolute error per joint [rad] on the validation split, without augmentation."""
        chosen = self.dataset.validation
        if len(chosen) > self.config.evaluate_samples:
            places = np.linspace(0, len(chosen) - 1, self.config.evaluate_samples).round().astype(int)
            chosen = chosen[places]
        self.model.eval()
        losses, weights = [], []
        errors = np.zeros(self.dataset.robot.action_dim)
        rows = 0
        with sharding.gathered(self.root):
            run = run_torch(self.model)
        try:
            for batch in self.loader.plain_batches([int(i) for i in chosen], max(8, self.config.batch)):
                inputs, target, valid = self._place(batch)
                with sharding.gathered(self.root), torch.no_grad(), self.accelerator.autocast():
                    losses.append(float(self.model.loss(inputs, target, valid)))
                    unit = self.model.decode(run, inputs, {}).float().cpu().numpy()
                weights.append(int(batch.valid.sum()))
                samples = [self.dataset[i] for i in batch.samples]
                states = np.stack([s.observation.state for s in samples])
                truth = np.stack([s.chunk for s in samples])
                miss = np.abs(self.dataset.normalizer.decode(unit, states) - truth)
                errors += miss[batch.valid.numpy()].sum(axis=0)
                rows += int(batch.valid.sum())
        finally:
            self.model.train()
        per_joint = dict(zip(self.dataset.robot.action_joints, (errors / max(rows, 1)).tolist(), strict=True))
        return {
            "loss": float(np.average(losses, weights=weights)),
            "mae_rad": float(errors.sum() / max(rows, 1) / len(errors)),
            "per_joint_rad": per_joint,
            "samples": len(chosen),
        }

    def _step(self, step: int) -> tuple[float, float]:
        total = 0.0
        rank = self.accelerator.process_index
        for part in range(self.config.accumulation):
            batch = next(self.batches)
            # Dropout draws from torch's generator: its state follows from the step, so nothing has to be stored.
            torch.manual_seed(_mix(self.config.seed, step, part, rank))
            last = part == self.config.accumulation - 1
            sharding.synchronise(self.root, on=last)
            with contextlib.nullcontext() if last or self.sharded else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    loss = self.wrapped(*self._place(batch)) / self.config.accumulation
                self._require_finite(loss, batch, step)
                self.accelerator.backward(loss)
            total += float(loss.detach())
        if self.config.clip_norm > 0:
            self.accelerator.unscale_gradients()
            norm = sharding.number(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm))
        else:
            norm = math.nan
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def _require_finite(self, loss: Tensor, batch: Batch, step: int) -> None:
        if math.isfinite(float(loss.detach())):
            return
        names = [f"{s.episode} frame {s.frame}" for s in (self.dataset[i] for i in batch.samples)]
        kept = f"the checkpoint of step {self.last_good} is kept" if self.last_good else "no checkpoint was written yet"
        raise TrainingError(
            f"The loss became {float(loss.detach())} at step {step + 1}; {kept}. The batch held: "
            f"{', '.join(names[:16])}{' ...' if len(names) > 16 else ''}. "
            "Check these frames (athena data check), or lower --learning-rate."
        )

    def _place(self, batch: Batch) -> tuple[Tensors, Tensor, Tensor]:
        device = self.accelerator.device
        move = {k: v.to(device, non_blocking=True) for k, v in batch.inputs.items()}
        return move, batch.target.to(device, non_blocking=True), batch.valid.to(device, non_blocking=True)

    def _set_rates(self, step: int) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate_at(step, self.steps, self.config)

    def _evaluate(self, done: int) -> bool:
        """Measure and remember; returns whether patience is at an end."""
        measured = self.evaluate() if len(self.dataset.validation) else {}
        if not measured:
            return False
        self.progress.evaluations.append({"step": done, **measured})
        self.log.evaluation(done, measured)
        if measured["loss"] < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_step = measured["loss"], done
            self.progress.bad_evaluations = 0
        else:
            self.progress.bad_evaluations += 1
        return 0 < self.config.patience <= self.progress.bad_evaluations

    def _save(self, done: int, identity: dict[str, Any]) -> None:
        self.last_good = done
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        names = {id(p): n for n, p in self.parameters.items()}
        state = sharding.whole(checkpoints.optimizer_tensors(self.optimizer.optimizer, names))
        content = Checkpoint(done, self.weights(), state, dataclasses.asdict(self.progress))
        if not self.accelerator.is_main_process:
            return
        checkpoints.save(self.folder, content, identity)
        best = self.progress.best_step if self.config.select == "best" else None
        checkpoints.prune(self.folder, self.config.keep, best)

    def _resume(self, identity: dict[str, Any]) -> int:
        found = checkpoints.latest(self.folder, self.log.note) if self.config.resume == "auto" else None
        if found is None:
            return 0
        state, theirs = found
        checkpoints.require_same(theirs, identity, self.folder)
        self._load_weights(state.weights)
        checkpoints.restore_optimizer(self.optimizer.optimizer, self.parameters, state.optimizer)
        self.progress = Progress(**state.progress)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.last_good = state.step
        self.log.rewind(state.step)
        self.log.note(f"Going on from the checkpoint of step {state.step} of {self.steps} in '{self.folder}'.")
        return state.step


def kept(folder: Path, steps: int = 0) -> str:
    """A sentence for somebody who interrupted a training, from the checkpoints that are there."""
    done = checkpoints.steps(folder)
    if not done:
        return "no training step was kept; the same command starts the training again."
    whole = f" of {steps}" if steps else ""
    return f"the checkpoint of step {done[-1]}{whole} is kept in '{folder}'; the same command goes on from it."


def make_optimizer(
    model: Architecture, parameters: dict[str, nn.Parameter], config: FinetuneConfig
) -> torch.optim.Optimizer:
    """AdamW with separate rates for heads and body; vectors are not decayed. Raises `TrainingError`."""
    heads = tuple(f"{path}." for path in model.head_modules())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = config.head_learning_rate or config.learning_rate
        rate = rate if name.startswith(heads) else config.learning_rate
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(listed, fused=True)
    bnb = four_bit.library(f"for --optimizer {config.optimizer}")
    paged = config.optimizer == "paged_adamw8bit" and next(iter(parameters.values())).is_cuda  # pages are a GPU's
    kind = bnb.optim.PagedAdamW8bit if paged else bnb.optim.AdamW8bit
    return kind(listed)


def rate_at(step: int, steps: int, config: FinetuneConfig) -> float:
    """Factor on the peak learning rate at a step, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if config.schedule == "linear" else 1.0


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1)[0])
