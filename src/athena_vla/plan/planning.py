"""The stage `plan`: will a policy fit on a device, how fast will it be, will a fine-tuning fit on a GPU. Predicted."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

import athena_vla.embodiment as embodiment
from athena_vla.bundle import Bundle, open_base
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import ModelError, UnknownName
from athena_vla.finetune.finetune_config import PRESETS, FinetuneConfig, parse_changes
from athena_vla.models import sizes
from athena_vla.models.architecture import DEFAULT_FAMILY
from athena_vla.models.lora import LoraSettings
from athena_vla.models.precision import resolved
from athena_vla.models.released.pretrained import Release, bind
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan import cost
from athena_vla.plan.activations import StepCost
from athena_vla.plan.devices import DEVICES, Device, in_mode
from athena_vla.plan.predict import BITS, Prediction, as_dict, predict
from athena_vla.plan.probe import HERE, Probe, here, is_here
from athena_vla.plan.targets import Target, device_targets, training_target
from athena_vla.plan.training import TrainingMemory, TrainingPlan, training_plan
from athena_vla.plan.ways import Way, ways
from athena_vla.plan.whole_run import WholeRun, between, whole_run

_WIDE = 1_000_000_000  # parameters; smaller bases are trained in float32 on a CPU


@dataclass(frozen=True)
class PlanConfig:
    """Settings of `athena plan`."""

    device: str = "jetson-orin-nx-16gb"
    """Device to run the policy on."""
    power_mode: str = ""
    """A slower power mode of a Jetson with published clocks: standard, which is an Orin NX or Nano without Super.
    Empty: the fastest one."""
    bundle: Path | None = None
    """A bundle whose own sizes count. None: the full-size model of `family` for `robot`."""
    family: str = ""
    """Family of the full-size model. Empty: the one-pass chunk family."""
    robot: str = "athena"
    """Robot the full-size model drives."""
    horizon: int = 16
    """Steps of a chunk of the full-size model."""
    precision: str = "int4"
    """Weights of the decoder: fp16, int8 or int4."""
    model: str = ""
    """Instead of `bundle`: what would be fine-tuned, as `athena train --model` takes it. A Hub id that is not in the
    local cache counts as openvla-7b's sizes."""
    gpu: str = ""
    """Also: does a fine-tuning fit on this GPU, such as rtx4090, how long is a step, and which micro-batch to take.
    here: this machine's GPU, or its processor where it has none."""
    probe: bool = True
    """Where the GPU is this machine's: train a few layers of the model's shape for seconds, and take the step time from
    that instead of from arithmetic. Loads no weights."""
    preset: str = "rtx4090"
    """The fine-tuning that is asked about."""
    change: str = ""
    """Fields of the preset to change, such as rank=16,quantization=nf4."""
    shards: int = 1
    """GPUs that share weights and states (FSDP)."""
    memory_gb: float = 0.0
    """Memory [GB] of the GPU, or of `device` where no GPU is named: a card of another size, or a limit. 0: as known."""
    price: float = 0.0
    """Price of one GPU for an hour: what the training costs is said, in the same unit."""
    data: Path | None = None
    """A built set to train on: its robot and horizon count, and its samples say how many steps and hours there are."""
    epochs: float = 0.0
    """Passes over the training split of `data`. 0: as the preset says."""


@dataclass(frozen=True)
class Plan:
    """What was predicted."""

    prediction: Prediction
    training: TrainingPlan | None
    parameters: int
    targets: tuple[Target, ...] = ()
    ways: tuple[Way, ...] = ()  # other engines, and what would answer sooner
    run: WholeRun | None = None  # of the row that is advised, or else of the one asked for
    kind: str = "predicted"

    def __str__(self) -> str:
        judged = ["targets:", *(str(t) for t in self.targets)]
        acting = [f"{self.parameters:,} parameters", str(self.prediction)]
        acting += ["other ways, PREDICTED too:", *(str(w) for w in self.ways)] if self.ways else []
        training = [] if self.training is None else [str(self.training)]
        return "\n".join([self.answer, *judged, *training, *acting])

    @property
    def answer(self) -> str:
        """What was asked, in a sentence: of the training where a GPU was named, else of acting."""
        if self.training is None:
            p = self.prediction
            fast, slow = (seconds * 1e3 for seconds in p.action_seconds)
            fits = "fits" if p.fits else "does NOT fit"
            return (
                f"PREDICTED: {p.label}, {p.precision}: {fits} ({p.memory.value:.1f} of {p.memory.limit:.1f} GB); "
                f"one action takes {between(fast, slow)} ms"
            )
        asked, chosen = self.training.asked, self.training.chosen
        said = f"PREDICTED: training on {self.training.device} {'fits' if asked.fits else 'does NOT fit'} as asked "
        said += f"({asked.total_gb:.1f} of {asked.limit_gb:g} GB)"
        if chosen is None:
            return f"{said}; nothing else does"
        recompute = "--gradient-checkpointing" if chosen.checkpointing else "--no-gradient-checkpointing"
        said += f"; the fastest that fits is --batch {chosen.batch} --accumulation {chosen.accumulation} {recompute}"
        said += f" ({chosen.total_gb:.1f} GB, {between(*chosen.step_seconds)} s per step)"
        return said if self.run is None else f"{said}; {self.run}"

    def to_dict(self) -> dict[str, Any]:
        training = None
        if self.training is not None:
            training = dataclasses.asdict(self.training)
            for name in ("asked", "chosen"):
                row: TrainingMemory | None = getattr(self.training, name)
                training[name] = row and dataclasses.asdict(row) | {"total_gb": row.total_gb, "fits": row.fits}
        return {
            "kind": self.kind,
            "parameters": self.parameters,
            "prediction": as_dict(self.prediction),
            "training": training,
            "ways": [dataclasses.asdict(w) for w in self.ways],
            "targets": [dataclasses.asdict(t) | {"verdict": t.verdict} for t in self.targets],
            "run": self.run and dataclasses.asdict(self.run),
        }


def plan(config: PlanConfig) -> Plan:
    """Predict; nothing is run. Raises `UnknownName`, `BundleError`."""
    if config.device not in DEVICES:
        raise UnknownName("device", config.device, DEVICES)
    if config.gpu and config.gpu not in (*DEVICES, HERE):
        raise UnknownName("GPU", config.gpu, (*DEVICES, HERE))
    if config.precision not in BITS:
        raise UnknownName("precision", config.precision, BITS)
    _check(config)
    tuning = chosen_preset(config)
    dataset = Dataset.open(config.data) if config.data is not None else None
    model = _model(config, dataset)
    counted = cost.count(model)
    device = in_mode(DEVICES[config.device], config.power_mode)
    device = device if config.gpu else _resized(device, config.memory_gb)
    prediction = predict(counted, device, config.precision)
    joint_targets = model.spec.horizon * model.spec.action_dim
    targets = device_targets(
        prediction.action_seconds, joint_targets, prediction.tokens_per_second, jetson=device.jetson
    )
    if not config.gpu:
        other = ways(model, counted, device, config.precision)
        return Plan(prediction, None, counted.parameters, targets, other)
    training = _training(config, tuning, model)
    row = training.chosen or training.asked
    run = whole_run(
        row.step_seconds,
        row.batch * row.accumulation * config.shards,
        samples=0 if dataset is None else len(dataset.train),
        epochs=config.epochs or tuning.epochs,
        max_steps=0 if config.epochs else tuning.max_steps,
        price=config.price,
        cards=config.shards,
    )
    targets = (training_target(training.asked.total_gb), *targets)
    return Plan(prediction, training, counted.parameters, targets, run=run)


def _check(config: PlanConfig) -> None:
    for name in ("memory_gb", "price", "epochs"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ModelError(f"--{name.replace('_', '-')} must be a number of at least 0; got {getattr(config, name)}.")
    if not config.gpu and (config.price or config.epochs):
        raise ModelError("--price and --epochs are of a training; name the GPU as well, such as --gpu rtx4090.")
    if config.epochs and config.data is None:
        raise ModelError("--epochs needs the set that is passed over; name it with --data.")


def _resized(device: Device, memory_gb: float) -> Device:
    """The device with another memory; 0 leaves it as it is."""
    if not memory_gb:
        return device
    return dataclasses.replace(device, label=f"{device.label}, with {memory_gb:g} GB", memory_gb=memory_gb)


def _training(config: PlanConfig, tuning: FinetuneConfig, model: VisionLanguageModel) -> TrainingPlan:
    settings = LoraSettings(**tuning.lora())
    device, place = here() if config.gpu == HERE else (DEVICES[config.gpu], torch.device("cuda"))
    device = _resized(device, config.memory_gb)
    on_cpu = place.type == "cpu"
    if config.gpu == HERE or is_here(config.gpu):
        tuning = dataclasses.replace(tuning, precision=resolved(tuning.precision, place))
    wide = on_cpu and sum(p.numel() for p in model.parameters()) < _WIDE
    # As training decides, where the disk has room for them.
    vision_trains = (tuning.vision or tuning.projector) and tuning.method != "heads"
    cached = tuning.cache_features != "never" and not vision_trains
    timing: dict[str, Any] = {}
    if config.probe and (config.gpu == HERE or is_here(config.gpu)):
        timing = {"retime": Probe(model, tuning, place, cached=cached, wide=wide).timed}
    return training_plan(
        model,
        settings,
        device,
        batch=tuning.batch,
        accumulation=tuning.accumulation,
        checkpointing=tuning.gradient_checkpointing,
        optimizer=tuning.optimizer,
        shards=config.shards,
        cached=cached,
        cost=StepCost(model, settings, on_cpu=on_cpu, wide=wide, precision=tuning.precision),
        **timing,
    )


def chosen_preset(config: PlanConfig) -> FinetuneConfig:
    """Raises `UnknownName` for a preset or field."""
    if config.preset not in PRESETS:
        raise UnknownName("preset", config.preset, PRESETS)
    return dataclasses.replace(PRESETS[config.preset], **parse_changes(config.change))


def _model(config: PlanConfig, dataset: Dataset | None) -> VisionLanguageModel:
    family = config.family or DEFAULT_FAMILY
    robot = embodiment.load(config.robot) if dataset is None else dataset.robot
    asked = Sizes(
        action_dim=robot.action_dim,
        state_dim=robot.state_dim,
        horizon=config.horizon if dataset is None else dataset.horizon,
        cameras=len(robot.camera_names),
    )
    base = _base(config)
    if isinstance(base, Bundle):
        if config.model and (config.family or base.robot.hash != robot.hash):
            with torch.device("meta"):
                return cast(VisionLanguageModel, bind(base.meta_model(), config.family or base.manifest.family, asked))
        model = base.meta_model().eval()
        assert isinstance(model, VisionLanguageModel)
        return model
    if base is not None:
        return sizes.weightless(family, base.spec(family, asked))
    return sizes.weightless(family, sizes.full_size(family, **asked.of_a_robot()))


def _base(config: PlanConfig) -> Bundle | Release | None:
    """The model whose sizes count; None for the full-size one. Nothing is downloaded."""
    if config.bundle is not None:
        return Bundle.open(config.bundle)
    if not config.model:
        return None
    if not Path(config.model).expanduser().exists() and config.model.count("/") == 1:
        name = config.model.partition("@")[0]
        try:
            return Release.open(config.model, offline=True)
        except ModelError:
            if name.rpartition("/")[2].startswith("openvla-7b"):
                return None
            raise
    return open_base(config.model)
