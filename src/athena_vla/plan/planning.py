"""The stage `plan`: will a policy fit on a device, how fast will it be, will a fine-tuning fit on a GPU. Predicted."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

import athena_vla.embodiment as embodiment
from athena_vla.bundle import Bundle, open_base
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
from athena_vla.plan.devices import DEVICES
from athena_vla.plan.predict import BITS, Prediction, as_dict, predict
from athena_vla.plan.probe import HERE, Probe, here, is_here
from athena_vla.plan.training import TrainingMemory, TrainingPlan, training_plan

_WIDE = 1_000_000_000  # parameters; smaller bases are trained in float32 on a CPU


@dataclass(frozen=True)
class PlanConfig:
    """Settings of `athena plan`."""

    device: str = "jetson-orin-nx-16gb"
    """Device to run the policy on."""
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


@dataclass(frozen=True)
class Plan:
    """What was predicted."""

    prediction: Prediction
    training: TrainingPlan | None
    parameters: int
    kind: str = "predicted"

    def __str__(self) -> str:
        parts = [f"{self.parameters:,} parameters", str(self.prediction)]
        return "\n".join(parts if self.training is None else [*parts, str(self.training)])

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
        }


def plan(config: PlanConfig) -> Plan:
    """Predict; nothing is run. Raises `UnknownName`, `BundleError`."""
    if config.device not in DEVICES:
        raise UnknownName("device", config.device, DEVICES)
    if config.gpu and config.gpu not in (*DEVICES, HERE):
        raise UnknownName("GPU", config.gpu, (*DEVICES, HERE))
    if config.precision not in BITS:
        raise UnknownName("precision", config.precision, BITS)
    tuning = chosen_preset(config)
    model = _model(config)
    counted = cost.count(model)
    prediction = predict(counted, DEVICES[config.device], config.precision)
    training = _training(config, tuning, model) if config.gpu else None
    return Plan(prediction, training, counted.parameters)


def _training(config: PlanConfig, tuning: FinetuneConfig, model: VisionLanguageModel) -> TrainingPlan:
    settings = LoraSettings(**tuning.lora())
    device, place = here() if config.gpu == HERE else (DEVICES[config.gpu], torch.device("cuda"))
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


def _model(config: PlanConfig) -> VisionLanguageModel:
    family = config.family or DEFAULT_FAMILY
    robot = embodiment.load(config.robot)
    asked = Sizes(
        action_dim=robot.action_dim,
        state_dim=robot.state_dim,
        horizon=config.horizon,
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
