"""The stage `plan`: will a policy fit on a device, how fast will it be, will a fine-tuning fit on a GPU. Predicted."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla import embodiment
from athena_vla.bundle import Bundle
from athena_vla.errors import UnknownName
from athena_vla.models import sizes
from athena_vla.models.architecture import FAMILIES
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan import cost
from athena_vla.plan.devices import DEVICES
from athena_vla.plan.predict import BITS, Prediction, as_dict, predict
from athena_vla.plan.training import TrainingMemory, training_memory


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
    gpu: str = ""
    """Also: does a fine-tuning fit on this GPU, such as rtx4090."""
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    """The fine-tuning that is asked about."""
    batch: int = 1
    """Samples per step and GPU."""
    checkpointing: bool = True
    """Gradient checkpointing."""
    shards: int = 1
    """GPUs that share weights and states (FSDP)."""


@dataclass(frozen=True)
class Plan:
    """What was predicted."""

    prediction: Prediction
    training: TrainingMemory | None
    parameters: int
    kind: str = "predicted"

    def __str__(self) -> str:
        parts = [f"{self.parameters / 1e9:.2f} G parameters", str(self.prediction)]
        return "\n".join(parts if self.training is None else [*parts, str(self.training)])

    def to_dict(self) -> dict[str, Any]:
        training = None
        if self.training is not None:
            training = dataclasses.asdict(self.training) | {
                "total_gb": self.training.total_gb,
                "fits": self.training.fits,
            }
        return {
            "kind": self.kind,
            "parameters": self.parameters,
            "prediction": dict(as_dict(self.prediction)),
            "training": training,
        }


def plan(config: PlanConfig) -> Plan:
    """Predict; nothing is run. Raises `UnknownName`, `BundleError`."""
    if config.device not in DEVICES:
        raise UnknownName("device", config.device, DEVICES)
    if config.gpu and config.gpu not in DEVICES:
        raise UnknownName("GPU", config.gpu, DEVICES)
    if config.precision not in BITS:
        raise UnknownName("precision", config.precision, BITS)
    model = _model(config)
    counted = cost.count(model)
    prediction = predict(counted, DEVICES[config.device], config.precision)
    training = None
    if config.gpu:
        training = training_memory(
            model,
            config.lora,
            DEVICES[config.gpu],
            batch=config.batch,
            checkpointing=config.checkpointing,
            shards=config.shards,
        )
    return Plan(prediction, training, counted.parameters)


def _model(config: PlanConfig) -> VisionLanguageModel:
    if config.bundle is not None:
        model = Bundle.open(config.bundle).skeleton().eval()
        assert isinstance(model, VisionLanguageModel)
        return model
    robot = embodiment.load(config.robot)
    family = config.family or list(FAMILIES)[-1]
    spec = sizes.full_size(
        family,
        action_dim=robot.action_dim,
        state_dim=robot.state_dim,
        horizon=config.horizon,
        cameras=len(robot.camera_names),
    )
    return sizes.weightless(family, spec)
