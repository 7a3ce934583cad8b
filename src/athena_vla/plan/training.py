"""Will a fine-tuning fit into a GPU's memory: weights, adapter states, activations, from sizes alone. Predicted."""

from dataclasses import dataclass

from athena_vla.models import lora
from athena_vla.models.lora import LoraSettings
from athena_vla.models.vla import VisionLanguageModel
from athena_vla.plan.devices import Device

NF4_BITS = 4.127  # per weight with double quantisation; 4.5 without
STATES = 16  # [bytes] per trained parameter: float32 weight, gradient, two Adam moments
FRAGMENTATION = 1.08  # allocator slack seen in practice on long runs
GRAPH_GB = 1.0  # CUDA context, libraries, workspaces


@dataclass(frozen=True)
class TrainingMemory:
    """Peak memory of one GPU, in parts [GB]."""

    weights_gb: float
    states_gb: float
    activations_gb: float
    logits_gb: float
    overhead_gb: float
    trainable: int
    limit_gb: float
    kind: str = "predicted"

    @property
    def total_gb(self) -> float:
        return (
            self.weights_gb + self.states_gb + self.activations_gb + self.logits_gb
        ) * FRAGMENTATION + self.overhead_gb

    @property
    def fits(self) -> bool:
        return self.total_gb <= self.limit_gb

    def __str__(self) -> str:
        return (
            f"PREDICTED: {self.total_gb:.1f} of {self.limit_gb:.0f} GB ({'fits' if self.fits else 'does NOT fit'}): "
            f"weights {self.weights_gb:.1f}, trained states {self.states_gb:.1f} ({self.trainable:,} parameters), "
            f"activations {self.activations_gb:.1f}, logits {self.logits_gb:.2f}, overhead {self.overhead_gb:.1f}"
        )


def training_memory(
    model: VisionLanguageModel,
    settings: LoraSettings,
    device: Device,
    *,
    batch: int = 1,
    checkpointing: bool = True,
    shards: int = 1,
) -> TrainingMemory:
    """Peak memory per GPU for a model on the meta device; `shards` > 1 splits weights and states (FSDP).

    Activations: with checkpointing, the input of every decoder layer plus one layer's inside; in bfloat16.
    """
    text = model.body_spec.text
    total = sum(p.numel() for p in model.parameters())
    trainable = trainable_parameters(model, settings)
    frozen = total - (trainable if settings.method == "full" else 0)
    quantized = 0
    if settings.quantization == "nf4":
        paths = model.lora_modules(("all-linear",), vision=False, projector=False)
        quantized = sum(model.get_parameter(f"{p}.weight").numel() for p in paths if not p.endswith("lm_head"))
    bits = NF4_BITS if settings.double_quantization else 4.5
    weights = (frozen - quantized) * 2 + quantized * bits / 8 if settings.method != "full" else 0.0
    tokens = batch * (
        model.spec.cameras * model.body_spec.patches + 40 + max(model.spec.horizon, model.spec.action_dim)
    )
    boundary = tokens * text.width * 2
    # Norms, q, k, v, attention output, gate, up, product, down: what backward of one layer keeps, in bfloat16.
    adapters = 1 if settings.method == "lora" else 0
    inside = tokens * (10 * text.width + 4 * text.mlp_width + adapters * 7 * text.width) * 2
    layers = text.layers
    activations = boundary * layers + inside if checkpointing else inside * layers
    vision = 0.0
    for tower in model.body_spec.towers:
        rows = batch * model.spec.cameras * (tower.patches + 5)
        per_block = rows * (10 * tower.width + 2 * tower.mlp_width) * 2
        vision += per_block * (tower.blocks if settings.vision and not checkpointing else 2)
    logits = tokens * text.rows * (4 + 2) if text.output else 0
    return TrainingMemory(
        weights_gb=weights / shards / 1e9,
        states_gb=trainable * STATES / shards / 1e9,
        activations_gb=(activations + vision) / 1e9,
        logits_gb=logits / 1e9,
        overhead_gb=GRAPH_GB,
        trainable=trainable,
        limit_gb=device.memory_gb,
    )


def trainable_parameters(model: VisionLanguageModel, settings: LoraSettings) -> int:
    """Exactly what `lora.attach` would train, counted without attaching."""
    heads = {id(p): p.numel() for path in model.head_modules() for p in model.get_submodule(path).parameters()}
    if settings.method == "heads":
        return sum(heads.values())
    if settings.method == "full":
        return lora.count(model).total
    total = sum(heads.values())
    for path in model.lora_modules(settings.targets, vision=settings.vision, projector=settings.projector):
        module = model.get_submodule(path)
        weight = module.weight
        rows, columns = int(weight.shape[0]), int(weight.shape[1])  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
        total += settings.rank * (rows + columns) + (rows if settings.dora else 0)
    return total
