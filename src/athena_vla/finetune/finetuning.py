"""The stage: base and dataset in, fine-tuned bundle out. Checks first, trains, measures, writes one artefact.

Knows bundles, datasets and the loop; how processes are started is in `launch`.
"""

import contextlib
import dataclasses
import functools
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

import athena_vla.bundle as bundles
from athena_vla.bundle import Bundle, Golden, Manifest
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune import features, launch, sharding
from athena_vla.finetune.base import bound_model, open_base, require_usable
from athena_vla.finetune.batches import Loader
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.finetune.log import RunLog
from athena_vla.finetune.loop import Trainer, kept
from athena_vla.finetune.result import FinetuneResult, result_of
from athena_vla.models import lora, precision
from athena_vla.models.architecture import Architecture
from athena_vla.models.lora import LoraSettings
from athena_vla.models.released.pretrained import Release
from athena_vla.policy import Policy, asked, record_golden, sensitivity
from athena_vla.stopping import Interrupted

GOLDEN_EXAMPLES = 4
_LARGE = 1_000_000_000  # parameters; larger models answer where and as they were trained


Advice = Callable[[Architecture, FinetuneConfig, LoraSettings], str]


def plain_advice(model: Architecture, config: FinetuneConfig, settings: LoraSettings) -> str:
    """What to say after running out of memory where no planner is at hand."""
    return f"The memory ran out with --batch {config.batch}. `athena plan --gpu` shows what fits."


def finetune(config: FinetuneConfig, out_of_memory: Advice = plain_advice) -> FinetuneResult:
    """Fine-tune as configured; started under torchrun, one process of many.

    `out_of_memory` words the advice for a device that was too small; the planner has a better one.

    Raises `TrainingError`, `DatasetError`, `BundleError`, `ModelError`, and `Interrupted`, which says what is kept.
    """
    try:
        if config.processes > 1 and not launch.is_distributed():
            launch.run(config, functools.partial(finetune, out_of_memory=out_of_memory))
            return result_of(config)
        config = launch.with_precision(config)
        with launch.one_accelerator(config) as accelerator, launch.threads(config.threads):
            return _finetune(config, accelerator, out_of_memory)
    except KeyboardInterrupt as error:  # also before the first step, and while the result is measured and written
        if str(error):
            raise
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(kept(config.run_folder / "checkpoints"), number) from error


def _finetune(config: FinetuneConfig, accelerator: Accelerator, out_of_memory: Advice) -> FinetuneResult:
    with accelerator.main_process_first():  # a recording trained on in place is prepared by one process
        dataset = Dataset.open(config.data, config.robot)
    require_usable(dataset, config)
    base = open_base(config)
    torch.manual_seed(config.seed)
    model = bound_model(base, dataset, config, str(accelerator.device))
    settings = LoraSettings(**config.lora())
    trainables = lora.attach(model, settings)
    if config.gradient_checkpointing:
        model.checkpoint_layers()
    log = RunLog(config, main=accelerator.is_main_process)
    _start_again(config, accelerator, log)
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
    missing = lora.left_out(model, settings)
    notes = (f"No adapter on {', '.join(missing)}: the family {model.family} has no such layer.",) if missing else ()
    for note in notes:
        log.note(note)
    model.to(accelerator.device)
    identity = {"config": config.identity(), "dataset": dataset.hash, "base": base.hash}
    identity = {**identity.pop("config"), **identity, "processes": accelerator.num_processes}
    with accelerator.main_process_first():
        cached = features.prepare(model, dataset, config, accelerator, _reporter(log))
    if cached is not None:
        log.note(
            f"Vision is frozen: features of {len(cached.stored):,} pictures x {cached.variants} variants come from "
            f"{dataset.path / '.cache'} ({cached.stored.nbytes / 1e9:.2f} GB)."
        )
    trainer = Trainer(model, dataset, Loader(dataset, model, config, cached), config, accelerator, log)
    launch.restart_peak_memory()
    started, cpu = time.monotonic(), time.process_time()
    before = (checkpoints.steps(trainer.folder) or [0])[-1]
    try:
        steps = trainer.train(identity)
    except torch.OutOfMemoryError as error:
        raise TrainingError(out_of_memory(model, config, settings)) from error
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    spent = cpu if accelerator.device.type == "cpu" else seconds
    peak = launch.peak_memory_gb()
    chosen = steps
    if config.select == "best" and trainer.progress.best_step not in (0, steps):
        chosen = trainer.progress.best_step
        trainer.restore(chosen)
    measured = next((e for e in trainer.progress.evaluations if e["step"] == chosen), {})
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
            failed = [g.replace("_", " ") for g, outcome in gates.items() if not outcome["passed"]]
            if failed:
                result = dataclasses.replace(
                    result, notes=(*notes, f"It fails gates and is not served: {', '.join(failed)}. Train longer.")
                )
            _write(model, tensors, golden, gates, dataset, base, config, settings, trainer, result)
            result.write()
    log.close()
    accelerator.wait_for_everyone()
    return result


def _start_again(config: FinetuneConfig, accelerator: Accelerator, log: RunLog) -> None:
    """With `--resume never` earlier checkpoints go, and it is said."""
    folder = config.run_folder / "checkpoints"
    if config.resume == "never" and checkpoints.steps(folder) and accelerator.is_main_process:
        log.note(f"Starting again: checkpoints of steps {checkpoints.steps(folder)} in '{folder}' are removed.")
        checkpoints.remove_all(folder)
    if not checkpoints.steps(folder):
        log.restart()
    accelerator.wait_for_everyone()


def _answers(trainer: Trainer, dataset: Dataset) -> tuple[Golden, dict[str, Any]]:
    """What the trained model answers to a few frames, and whether it sees and listens at all."""
    model = trainer.model
    lora.trust_autocast(model, on=False)
    lora.fuse_forward(model, on=False)
    if trainer.config.compile:
        model.compile_layers(on=False)
    model.eval()
    small = sum(p.numel() for p in model.parameters()) < _LARGE
    if not trainer.sharded and small:
        model.cpu().float()
    narrow = contextlib.nullcontext() if small else trainer.accelerator.autocast()
    pool = dataset.validation if len(dataset.validation) else dataset.train
    places = np.unique(np.linspace(0, len(pool) - 1, GOLDEN_EXAMPLES).round().astype(int))
    observations = asked([dataset[int(i)] for i in pool[places]], model.prefix)
    with sharding.gathered(trainer.root), narrow:
        policy = Policy.of_model(model, dataset.robot, dataset.normalizer)
        golden = record_golden(policy, observations)
        return golden, sensitivity(policy, observations)


def _write(
    model: Architecture,
    tensors: dict[str, torch.Tensor],
    golden: Golden,
    gates: dict[str, Any],
    dataset: Dataset,
    base: Bundle | Release,
    config: FinetuneConfig,
    settings: LoraSettings,
    trainer: Trainer,
    result: FinetuneResult,
) -> None:
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
        gates=gates,
        stage_info={
            "steps": result.steps,
            "chosen_step": result.chosen_step,
            "trainable": result.trainable,
            "total": result.total,
            "validation": result.validation,
            "evaluations": [
                {"step": e["step"], "loss": e["loss"], "mae_rad": e["mae_rad"]} for e in trainer.progress.evaluations
            ],
            "machine": platform.processor() or platform.machine(),
        },
    )
    with bundles.writing(config.out, manifest, golden, model.tokenizer_files()) as folder:
        bundles.save_tensors(tensors, folder / bundles.ADAPTER_FILE)


def _where(model: str) -> str:
    return model if model.startswith(bundles.BUILTIN) else str(Path(model).resolve())


def _reporter(log: RunLog) -> Any:
    last = [0.0]

    def report(done: int, total: int) -> None:
        if time.monotonic() - last[0] > 5 or done == total:
            last[0] = time.monotonic()
            log.note(f"vision features: {done} of {total} pictures")

    return report
