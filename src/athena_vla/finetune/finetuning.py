"""The stage: base and dataset in, fine-tuned bundle out. Checks first, trains, measures, writes one artefact.

Knows bundles, datasets and the loop; how processes are started is in `launch`.
"""

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

import athena_vla.bundle as bundles
from athena_vla import files
from athena_vla.bundle import Golden
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.mixed import MixedSet
from athena_vla.errors import TrainingError
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune import features, launch, sharding
from athena_vla.finetune.base import Start, open_sets, start
from athena_vla.finetune.batches import Loader
from athena_vla.finetune.evaluation import weak_joints
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.log import STEP, RunLog
from athena_vla.finetune.loop import Trainer
from athena_vla.finetune.result import FinetuneResult, result_of
from athena_vla.finetune.solving import Players, nobody
from athena_vla.finetune.written import Outcome, answers, is_small, write_bundle
from athena_vla.gate import Gate, failed
from athena_vla.models import lora, precision
from athena_vla.models.architecture import Architecture
from athena_vla.models.lora import LoraSettings
from athena_vla.models.released.pretrained import Release
from athena_vla.progress import Progress, shown
from athena_vla.stopping import Interrupted

PICTURES_PER_SAMPLE = 6.0  # whose vision features are computed in the time that one sample trains


Advice = Callable[[Architecture, FinetuneConfig, LoraSettings], str]


def plain_advice(model: Architecture, config: FinetuneConfig, settings: LoraSettings) -> str:
    """What to say after running out of memory where no planner is at hand."""
    return f"The memory ran out with --batch {config.batch}. `athena plan --gpu` shows what fits."


def finetune(
    config: FinetuneConfig,
    out_of_memory: Advice = plain_advice,
    progress: Progress | None = None,
    players: Players = nobody,
) -> FinetuneResult:
    """Fine-tune as configured; started under torchrun, one process of many.

    `out_of_memory` words the advice for a device that was too small; the planner has a better one. Without a `progress`
    of the caller it is shown on standard error. `players` makes who plays scenes, for a selection by success.

    Raises `TrainingError`, `DatasetError`, `BundleError`, `ModelError`, and `Interrupted`, which says what is kept.
    """
    started: list[Start] = []
    try:
        launch.require_cards(config)
        if max(config.processes, config.gpus) > 1 and not launch.is_distributed():
            launch.run(config, functools.partial(finetune, out_of_memory=out_of_memory, players=players))
            return result_of(config)
        config = launch.with_precision(config)
        with (
            launch.one_accelerator(config) as accelerator,
            launch.threads(config.threads),
            _claim(config, accelerator.is_main_process),
            contextlib.nullcontext(progress) if progress is not None else shown() as told,
        ):
            return _finetune(config, accelerator, started, told, players)
    except torch.OutOfMemoryError as error:
        if started:
            raise TrainingError(out_of_memory(started[0].model, config, started[0].settings)) from error
        raise TrainingError(
            f"The memory ran out while '{config.model}' was opened, before any step: a base of this size does not fit. "
            "`athena plan --gpu` shows what fits; --quantization nf4 takes a quarter of a large base's memory."
        ) from error
    except KeyboardInterrupt as error:  # also before the first step, and while the result is measured and written
        if str(error):
            raise
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(checkpoints.kept(config.run_folder / "checkpoints"), number) from error


def _finetune(
    config: FinetuneConfig, accelerator: Accelerator, started: list[Start], told: Progress, players: Players
) -> FinetuneResult:
    with accelerator.main_process_first():  # a recording trained on in place is prepared by one process
        dataset = open_sets(config)
    player = players(dataset, config.select_scenes) if config.select == "success" else None
    begin = start(config, dataset, str(accelerator.device))
    started.append(begin)
    model, base, settings, trainables = begin.model, begin.base, begin.settings, begin.trainables
    if config.gradient_checkpointing:
        model.checkpoint_layers()
    log = RunLog(config, main=accelerator.is_main_process, progress=told)
    _start_again(config, accelerator, log)
    if isinstance(dataset, MixedSet):
        log.note(f"Data: {dataset.meaning}")
    elif Path(config.sets[0]).resolve() != dataset.path.resolve():  # trained on in place: what its build says
        frames = sum(int(e["length"]) for e in dataset.episodes)
        log.note(f"Data: '{config.data}' is trained on in place; {len(dataset.episodes)} episodes, {frames} frames.")
        for line in dataset.told:
            log.note(f"Data: {line}")
    if isinstance(base, Release):
        log.note(
            f"Base: the released checkpoint {base.source}, family {model.family}. Its own action statistics are of "
            f"other robots; this run uses those of dataset {dataset.hash[:16]} ({dataset.robot.name})."
        )
    elif base.robot.hash != dataset.robot.hash:
        log.note(
            f"Base: '{config.model}' was made for '{base.robot.name}', the dataset holds motions of "
            f"'{dataset.robot.name}': statistics are the dataset's, and heads that depend on the joints start fresh."
        )
    log.note(str(trainables))
    log.note(f"Precision: {config.precision}. {precision.sentence(accelerator.device)}")
    if unused := launch.unused_cards(accelerator.device, accelerator.num_processes):
        log.note(unused)
    missing = lora.left_out(model, settings)
    notes = (f"No adapter on {', '.join(missing)}: the family {model.family} has no such layer.",) if missing else ()
    for note in notes:
        log.note(note)
    model.to(accelerator.device)
    identity = {"config": config.identity(), "dataset": dataset.hash, "base": base.hash}
    identity = {**identity.pop("config"), **identity, "processes": accelerator.num_processes}
    log.progress.plan(_expected(dataset, config))
    if config.image_size:
        dataset.cache_frames((config.image_size, config.image_size))
    with accelerator.main_process_first():
        cached = features.prepare(model, dataset, config, accelerator, log.progress)
    if log.progress.what != features.PICTURES:
        log.progress.skip(features.PICTURES)
    if cached is None and not config.image_size:
        dataset.prepare_frames()  # before workers are started, each of which would do it
    if cached is not None:
        log.note(
            f"Vision is frozen: features of {len(cached.stored):,} images x {cached.variants} variants come from "
            f"{dataset.path / '.cache'} ({cached.stored.nbytes / 1e9:.2f} GB)."
        )
    trainer = Trainer(model, dataset, Loader(dataset, model, config, cached), config, accelerator, log, player)
    launch.restart_peak_memory()
    started_at, cpu = time.monotonic(), time.process_time()
    before = (checkpoints.steps(trainer.folder) or [0])[-1]
    steps = trainer.train(identity)
    seconds, cpu = time.monotonic() - started_at, time.process_time() - cpu
    spent = cpu if accelerator.device.type == "cpu" else seconds
    peak = launch.peak_memory_gb()
    progress = trainer.progress
    chosen = steps
    trainer.settle()
    if config.select != "last" and progress.best_step not in (0, steps):
        if progress.best_step in checkpoints.steps(trainer.folder):
            chosen = progress.best_step
            trainer.restore(chosen)
        else:  # a run that began under an earlier version, which did not keep it
            log.note(
                f"The best step {progress.best_step} has no checkpoint any more: the last step's weights are taken."
            )
    measured = next((e for e in progress.evaluations if e["step"] == chosen), {})
    weak = weak_joints(measured["per_joint_rad"], dataset.robot) if measured else ""
    left_out = f"{progress.skipped} steps were left out: their gradient was not finite." if progress.skipped else ""
    notes = (*notes, *(text for text in (weak, left_out) if text))
    result = FinetuneResult(
        bundle=config.out,
        run_folder=config.run_folder,
        steps=steps,
        chosen_step=chosen,
        trainable=trainables.trainable,
        total=trainables.total,
        seconds=round(seconds, 3),
        samples_per_second=round((steps - before) * trainer.order.step_size / max(seconds, 1e-9), 1),
        validation={k: v for k, v in measured.items() if k != "step"},
        notes=notes,
        step_seconds=round(spent / max(1, steps - before), 4),
        peak_memory_gb=round(peak, 3),
    )
    tensors = trainer.weights()
    if accelerator.is_main_process or trainer.sharded:  # a sharded model answers only when all processes ask it
        golden, gates = _answers(trainer, dataset)
        if accelerator.is_main_process:
            missed = [g.label for g in failed(gates.values())]
            if missed:
                result = dataclasses.replace(
                    result, notes=(*notes, f"It fails gates and is not served: {', '.join(missed)}. Train longer.")
                )
            write_bundle(config, begin, tensors, golden, gates, Outcome(steps, chosen, progress.evaluations))
            result.write()
    log.close()
    accelerator.wait_for_everyone()
    return result


@contextlib.contextmanager
def _claim(config: FinetuneConfig, main: bool) -> Iterator[None]:
    """Hold OUT for this run. A bundle there is replaced where this run goes on with its own training, or is told to."""
    if not main:
        yield
        return
    with files.lock(config.out, TrainingError):
        goes_on = config.resume == "auto" and bool(checkpoints.steps(config.run_folder / "checkpoints"))
        if not goes_on or config.overwrite or not bundles.is_bundle(config.out):
            with bundles.claim(config.out, overwrite=config.overwrite, reads=Path(config.model)):
                yield
        else:
            yield


def _expected(dataset: Dataset, config: FinetuneConfig) -> dict[str, float]:
    """The parts of a run and how long they take, as samples that train in that time."""
    samples = config.max_steps * config.batch * config.accumulation or config.epochs * len(dataset.train)
    pictures = len(set(dataset.frame_of_sample.tolist())) * (1 + config.augment_variants * config.augment)
    return {features.PICTURES: pictures / PICTURES_PER_SAMPLE, STEP: samples}


def _start_again(config: FinetuneConfig, accelerator: Accelerator, log: RunLog) -> None:
    """With `--resume never` or `--overwrite` earlier checkpoints go, and it is said."""
    folder = config.run_folder / "checkpoints"
    anew = config.resume == "never" or config.overwrite
    if anew and checkpoints.steps(folder) and accelerator.is_main_process:
        log.note(f"Starting again: checkpoints of steps {checkpoints.steps(folder)} in '{folder}' are removed.")
        checkpoints.remove_all(folder)
    if not checkpoints.steps(folder):
        log.restart()
    accelerator.wait_for_everyone()


def _answers(trainer: Trainer, dataset: Dataset) -> tuple[Golden, dict[str, Gate]]:
    """What the trained model answers to a few frames, and whether it sees and listens at all."""
    model = trainer.model
    trainer.as_it_trains(False)
    small = is_small(model)
    if not trainer.sharded and small:
        model.cpu().float()
    narrow = contextlib.nullcontext() if small else trainer.accelerator.autocast()
    with sharding.gathered(trainer.root), narrow:
        return answers(model, dataset)
