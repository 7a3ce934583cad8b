"""The training loop: optimiser steps over batches, with warm-up, accumulation, clipping, evaluation and checkpoints.

A function of its config and data: random numbers follow from seed and step, so a resumed run equals an uninterrupted
one bit by bit on a CPU. Knows nothing of bundles or of how processes are started.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune import sharding
from athena_vla.finetune.average import Average
from athena_vla.finetune.batches import Batch, Loader, Order
from athena_vla.finetune.checkpoint import Checkpoint, Standing
from athena_vla.finetune.evaluation import Evaluation, measure
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.log import RunLog
from athena_vla.finetune.mark_weights import MarkWeights
from athena_vla.finetune.not_finite import IN_A_ROW, refusal, require_finite
from athena_vla.finetune.optimiser import long_warmup, make_optimizer, rate_at
from athena_vla.finetune.sharding import LossOf
from athena_vla.finetune.solving import Player, SuccessOf, better
from athena_vla.models import lora
from athena_vla.models.architecture import SMALLEST_WEIGHT, Architecture, Tensors
from athena_vla.stopping import Stop, until_asked


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
        player: Player | None = None,
    ) -> None:
        self.model, self.dataset, self.loader = model, dataset, loader
        self.config, self.accelerator, self.log = config, accelerator, log
        self.order = Order(dataset, loader.drawn, config, accelerator.num_processes, loader.pairs)
        self.steps = config.max_steps or self.order.steps_of(config.epochs)
        self.evaluate_every = config.evaluate_every or self.order.steps_per_epoch()
        self.checkpoint_every = config.checkpoint_every or self.evaluate_every
        self.folder = config.run_folder / "checkpoints"
        self.progress = Standing()
        self.sharded = config.sharding == "fsdp2" and accelerator.num_processes > 1
        self.root: nn.Module = LossOf(model, config.language_margin)
        if self.sharded:
            sharding.shard(self.root)  # replaces parameters, so it comes before the optimiser
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(model, self.parameters, config)
        if self.sharded:
            self.wrapped, self.optimizer = self.root, accelerator.prepare_optimizer(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(self.root, optimizer)
        self.plain_optimizer: torch.optim.Optimizer = cast(Any, self.optimizer).optimizer  # inside accelerate's
        self.average = Average(self.parameters, config.ema) if config.ema else None
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.last_good = 0
        self.skipped_in_a_row = 0
        self.success = None if player is None else SuccessOf(model, dataset, player, self.as_it_trains)
        self.batches: Iterator[Batch] = iter(())
        # What one forward pass counts where every step of every chunk is valid: parts are weighed against it.
        whole = torch.ones(config.batch, dataset.horizon, dtype=torch.bool)
        self.full = float(model.counted(whole)) * config.accumulation * accelerator.num_processes

    def train(self, identity: dict[str, Any]) -> int:
        """All steps, from the last checkpoint where there is one; returns the number of steps done.

        Ctrl-C and SIGTERM stop after the step it is at, whose checkpoint is written: `Interrupted`. Raises
        `TrainingError` for a loss or gradient that is not finite, and `torch.OutOfMemoryError` as torch does.
        """
        with until_asked("after this step") as stop:
            return self._train(identity, stop)

    def _train(self, identity: dict[str, Any], asked: Stop) -> int:
        first = self._resume(identity)
        self._say_plan(first)
        self.wrapped.train()
        self.as_it_trains(True)
        if self.success is not None and first < self.steps:
            ends = range(first + 1, self.steps + 1)
            self.log.note(self.success.cost(sum(self._due(done) for done in ends), self.accelerator))
        if first and self._due(first) and not self.progress.evaluated(first):
            self._evaluate(first)  # it was interrupted between this step's checkpoint and its evaluation
        if first >= self.steps or self._out_of_patience:
            return first
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
            due = self._due(done)
            if due or done % self.checkpoint_every == 0:
                # Before the evaluation, so that what breaks there costs no step, and the best weights are on the disk.
                self._save(done, identity)
            if due:
                self._evaluate(done)
            if self._out_of_patience:
                self.log.note(
                    f"Stopped early at step {done}: no improvement in {self.config.patience} evaluations "
                    f"(best {self.progress.best_loss:.4f} at step {self.progress.best_step})."
                )
                return done
            if done < self.steps and self._any(0 < 3600 * self.config.max_hours <= time.monotonic() - started):
                if self.last_good != done:
                    self._save(done, identity)
                if not due:
                    self._evaluate(done)
                self.log.note(f"Stopped after {self.config.max_hours:g} h at step {done} of {self.steps}, as asked.")
                return done
            if done < self.steps and self._any(asked.asked):
                if self.last_good != done:
                    self._save(done, identity)
                raise asked.interrupted(checkpoints.kept(self.folder, self.steps))
        return self.steps

    def as_it_trains(self, on: bool) -> None:
        """The forms of layers that are fast to train, or those that the bundle has."""
        lora.trust_autocast(self.model, on=on and self.accelerator.mixed_precision != "no")
        lora.fuse_forward(self.model, on=on and self.accelerator.device.type == "cpu" and not self.sharded)
        if self.config.compile:
            self.model.compile_layers(on=on)

    def _any(self, mine_ends: bool) -> bool:
        """Whether any process is to stop: all end at the same step."""
        if self.accelerator.num_processes == 1:
            return mine_ends
        mine = torch.tensor([float(mine_ends)], device=self.accelerator.device)
        return float(cast(Tensor, self.accelerator.reduce(mine, "sum"))) > 0

    def _due(self, done: int) -> bool:
        """Whether an evaluation belongs to this step."""
        return done % self.evaluate_every == 0 or done == self.steps

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.bad_evaluations

    def restore(self, step: int) -> None:
        """Put what would become a bundle of that step's checkpoint into the model."""
        found, _ = checkpoints.load(self.folder, step)
        self._load_weights(found.chosen)

    def settle(self) -> None:
        """Put what becomes the bundle of the last step into the model."""
        if self.average is not None:
            self.average.put()

    def weights(self) -> dict[str, Tensor]:
        """Everything that trains, whole; with sharding every process has to call it."""
        return sharding.whole(lora.state(self.model))

    def _load_weights(self, tensors: dict[str, Tensor]) -> None:
        lora.load(self.model, {k: sharding.like(t, self.parameters[k]) for k, t in tensors.items()})

    def evaluate(self) -> Evaluation:
        """Loss and mean absolute error per joint [rad] on the validation split, without augmentation; and, where
        weights are selected by it, how many scenes are solved.

        Every process measures its share, and all get the same numbers: what they decide by them is the same.
        """
        self.model.eval()
        try:
            with self.average.in_place() if self.average is not None else contextlib.nullcontext():
                found = measure(self.model, self.root, self.loader, self.config, self.accelerator)
                if self.success is not None:
                    found["success"] = self.success.measure(self.accelerator)
                return found
        finally:
            self.model.train()

    def _step(self, step: int) -> tuple[float, float]:
        """One optimiser step; returns the loss and the gradient's norm.

        Both are of the whole step: the sum over all counted terms of its parts and processes, divided by their number.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches: list[Batch] = []
        means: list[Tensor] = []
        counts: list[Tensor] = []
        for part in range(self.config.accumulation):
            batch = next(self.batches)
            # Dropout draws from torch's generator: its state follows from the step, so nothing has to be stored.
            torch.manual_seed(_mix(self.config.seed, step, part, rank))
            last = part == self.config.accumulation - 1
            sharding.synchronise(self.root, on=last)
            inputs, target, valid = self._place(batch)
            with contextlib.nullcontext() if last or self.sharded else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    mean = self.wrapped(inputs, target, valid)
                count = self.model.counted(valid)
                # Processes are averaged by what wraps the model; their number takes that back.
                self.accelerator.backward(mean * count * (world / self.full))
            batches.append(batch)
            means.append(mean.detach())
            counts.append(count)
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        each, weights = torch.stack(means).float(), torch.stack(counts)
        sums = sharding.total(torch.stack([(each * weights).sum(), weights.sum()]))
        # One reading for all: each waits for the device.
        summed, counted, norm = torch.cat([sums, sharding.gradient_norm(gradients)[None].to(sums)]).tolist()
        loss, scale = summed / max(counted, SMALLEST_WEIGHT), self.full / max(counted, SMALLEST_WEIGHT)
        norm *= scale
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._not_finite(step, loss, norm, means, batches)
            return loss, norm
        self.skipped_in_a_row = 0
        if 0 < self.config.clip_norm < norm:
            scale *= self.config.clip_norm / norm
        if scale != 1.0:
            for gradient in gradients:
                gradient.mul_(scale)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _not_finite(self, step: int, loss: float, norm: float, means: list[Tensor], batches: list[Batch]) -> None:
        """Leave the step out where that is the policy; else raise `TrainingError`. No weight has changed."""
        self.skipped_in_a_row += 1
        scaled = self.accelerator.scaler is not None  # fp16 finds its scale by overflowing
        patient = self.config.not_finite == "skip" or (scaled and math.isfinite(loss))
        if not patient or self.skipped_in_a_row > IN_A_ROW:
            bad = [b for b, m in zip(batches, means, strict=True) if not math.isfinite(float(m))]
            looked_at = bad or (batches if math.isfinite(loss) else [])
            samples = [self.dataset[i] for batch in looked_at for i in batch.samples]
            raise refusal(step, loss, norm, samples, self._kept(), self.skipped_in_a_row)
        self.progress.skipped += 1
        if scaled:  # the scaler leaves the step out, and lowers its scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.log.note(f"step {step + 1}: the gradient is not finite; the step is left out ({self.progress.skipped}).")

    def _kept(self) -> str:
        return f"the checkpoint of step {self.last_good} is kept" if self.last_good else "no checkpoint was written yet"

    def _place(self, batch: Batch) -> tuple[Tensors, Tensor, Tensor]:
        device = self.accelerator.device
        move = {k: v.to(device, non_blocking=True) for k, v in batch.inputs.items()}
        return move, batch.target.to(device, non_blocking=True), batch.valid.to(device, non_blocking=True)

    def _set_rates(self, step: int) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate_at(step, self.steps, self.config)

    def _evaluate(self, done: int) -> None:
        """Measure, and add what was found to the checkpoint of the same step."""
        if not len(self.dataset.validation):
            return
        measured = self.evaluate()
        self.progress.evaluations.append({"step": done, **measured})
        self.log.evaluation(done, measured)
        if self._is_better(measured):
            self.progress.best_loss, self.progress.best_step = measured["loss"], done
            self.progress.best_success = measured.get("success", self.progress.best_success)
            self.progress.bad_evaluations = 0
        else:
            self.progress.bad_evaluations += 1
        if self.accelerator.is_main_process:
            checkpoints.update(self.folder, done, self.progress)
            self._prune()

    def _is_better(self, measured: Evaluation) -> bool:
        best = self.progress
        if "success" in measured:
            return better(measured["success"], measured["loss"], best.best_success, best.best_loss)
        return measured["loss"] < best.best_loss

    def _save(self, done: int, identity: dict[str, Any]) -> None:
        """Write a checkpoint of what was trained in `done` steps. Raises `TrainingError` where it is not finite."""
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        self.progress.drawn, self.progress.steps = self.order.drawn(done), self.steps
        names = {id(p): n for n, p in self.parameters.items()}
        weights = self.weights()
        state = sharding.whole(checkpoints.optimizer_tensors(self.plain_optimizer, names))
        require_finite({**weights, **state}, done, self._kept())
        average = {} if self.average is None else self.average.whole()
        if self.accelerator.is_main_process:
            checkpoints.save(self.folder, Checkpoint(done, weights, state, self.progress, average), identity)
        self.last_good = done
        if self.accelerator.is_main_process:
            self._prune()

    def _prune(self) -> None:
        best = self.progress.best_step if self.config.select != "last" else None
        checkpoints.prune(self.folder, self.config.keep, best)

    def _resume(self, identity: dict[str, Any]) -> int:
        found = checkpoints.latest(self.folder, self.log.note) if self.config.resume == "auto" else None
        if found is None:
            return 0
        state, theirs = found
        changed = checkpoints.require_same(theirs, identity, self.folder)
        self._load_weights(state.weights)
        if self.average is not None:
            self.average.load(state.average)
        checkpoints.restore_optimizer(self.plain_optimizer, self.parameters, state.optimizer)
        self.progress = state.progress
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self.last_good = state.step
        self.order.go_on(state.step, self.progress.drawn or state.step * checkpoints.step_size(theirs))
        before, self.steps = self.progress.steps, self.config.max_steps or self.order.steps_of(self.config.epochs)
        if self.steps < state.step:
            raise TrainingError(
                f"'{self.folder}' is {state.step} steps far, and {self.steps} are asked for. Make a bundle of an "
                f"earlier checkpoint (athena checkpoint {self.config.run_folder} --step N --out BUNDLE), or start "
                "again with --resume never."
            )
        self.log.rewind(state.step)
        self.log.note(f"Going on from the checkpoint of step {state.step} of {self.steps} in '{self.folder}'.")
        if before and before != self.steps and self.config.schedule != "constant":
            changed.append(
                f"The run was planned for {before} steps and now has {self.steps}: from here on the learning rate "
                f"follows the {self.config.schedule} schedule of the new length."
            )
        for text in changed:
            self.log.note(text)
        return state.step

    def _say_plan(self, first: int) -> None:
        """What an epoch means, and a warm-up that the run is too short for."""
        if self.config.weight:
            self.log.note(MarkWeights.parse(self.config.weight).meaning(self.dataset))
        self.log.note(self.order.meaning(self.steps))
        for part in (self.loader.pairs, self.loader.other):
            if part is not None:
                self.log.note(part.meaning)
        if first < self.steps and (said := long_warmup(self.steps, self.config)):
            self.log.note(said)


def _mix(*numbers: int) -> int:
    """A seed from several numbers."""
    return int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1)[0])
