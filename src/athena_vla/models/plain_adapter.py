"""An adapter in the layout that plain peft reads, with module names of the released checkpoints.

A fine-tuned model wraps the released body as `body`; without that word its paths are those of the base. Heads of the
robot are no part of an adapter: they stay beside it, under their own names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from athena_vla.errors import ModelError
from athena_vla.models.lora import ADAPTER, LoraSettings

BODY = "body."
_PEFT = "base_model.model."  # what peft puts before the path of a wrapped module
_MAGNITUDE = f"lora_magnitude_vector.{ADAPTER}.weight"
_PARTS = {
    f"lora_A.{ADAPTER}.weight": "lora_A.weight",
    f"lora_B.{ADAPTER}.weight": "lora_B.weight",
    f"lora_embedding_A.{ADAPTER}": "lora_embedding_A",
    f"lora_embedding_B.{ADAPTER}": "lora_embedding_B",
    _MAGNITUDE: "lora_magnitude_vector",
}


@dataclass(frozen=True)
class PlainAdapter:
    """What peft reads, and what it does not: the robot's heads."""

    weights: dict[str, Tensor]  # adapter_model.safetensors
    targets: tuple[str, ...]  # whole paths in the base
    heads: dict[str, Tensor]  # by their names in our models
    settings: LoraSettings

    def config(self, base: str) -> dict[str, object]:
        """adapter_config.json; `base` is a Hub id, or "" where the base has none."""
        return {
            "base_model_name_or_path": base or None,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": self.settings.dropout,
            "peft_type": "LORA",
            "r": self.settings.rank,
            "target_modules": list(self.targets),
            "task_type": None,
            "use_dora": self.settings.dora,
        }


def plain_adapter(tensors: Mapping[str, Tensor], settings: LoraSettings, where: object) -> PlainAdapter:
    """What a training stored, for peft. Raises `ModelError` where it holds no adapter of layers in the base."""
    if settings.method != "lora":
        raise ModelError(
            f"'{where}' was trained with --method {settings.method}: it has no LoRA adapter. Publish the bundle itself."
        )
    weights, heads, targets = dict[str, Tensor](), dict[str, Tensor](), set[str]()
    for name, tensor in tensors.items():
        ours = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        if ours is None:
            heads[name] = tensor
            continue
        path = name.removesuffix(f".{ours}")
        if not path.startswith(BODY):
            raise ModelError(f"'{where}' adapts '{path}', which is no layer of a base: peft could not find it.")
        path = path.removeprefix(BODY)
        targets.add(path)
        weights[f"{_PEFT}{path}.{_PARTS[ours]}"] = tensor
    if not weights:
        raise ModelError(f"'{where}' holds no adapter. Publish the bundle itself.")
    return PlainAdapter(weights, tuple(sorted(targets)), heads, settings)
