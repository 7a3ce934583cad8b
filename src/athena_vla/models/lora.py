"""LoRA, QLoRA and DoRA on full module paths: attach, count, save, load. Through peft and bitsandbytes.

Also says what trains when no adapter is used (`full`, `heads`), so that one list of tensors is saved for every method.
Knows nothing of training, data or files.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athena_vla.errors import BundleError, MissingDependency, ModelError, UnknownName
from athena_vla.models.architecture import Architecture
from athena_vla.models.weights import nf4 as four_bit
from athena_vla.models.weights.store import misfits

Method = Literal["lora", "full", "heads"]
Quantization = Literal["none", "nf4"]
ADAPTER = "default"  # the name that peft gives an adapter which nobody named
_NOT_IN_4_BIT = ("lm_head",)  # logits decide on actions; QLoRA leaves the output layer alone


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What trains beside the heads; JSON-serialisable, stored in the bundle, enough to attach again."""

    method: Method = "lora"
    """lora: adapters; full: every weight; heads: the robot's own heads only. Heads always train in full."""
    rank: int = 32
    """Rank r of the two factors."""
    alpha: float = 16.0
    """The product of the factors is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapter's input, in training only."""
    targets: tuple[str, ...] = ("all-linear",)
    """Short names of decoder layers, or all-linear. Resolved to full paths: tower names collide."""
    vision: bool = False
    """Vision towers train too; without, their features can be cached."""
    projector: bool = False
    """The projector trains too."""
    dora: bool = False
    """Weight-decomposed LoRA: direction and magnitude separately."""
    quantization: Quantization = "none"
    """nf4: the decoder's frozen weights in 4 bits (QLoRA), needs bitsandbytes."""
    double_quantization: bool = True
    """nf4 only: quantise the scales too, 0.4 bits per weight less."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("quantization", self.quantization, get_args(Quantization)),
        ):
            if value not in known:
                raise UnknownName(f"{name} of fine-tuning", value, known)
        if self.method == "lora" and (self.rank < 1 or not self.targets):
            raise ModelError(f"LoRA needs rank >= 1 and at least one target; got {self.rank} and {self.targets}.")
        if not (math.isfinite(self.alpha) and self.alpha > 0 and 0 <= self.dropout < 1):
            raise ModelError(f"LoRA alpha {self.alpha} must be a positive number and dropout {self.dropout} in [0, 1).")
        if self.method == "full" and self.quantization != "none":
            raise ModelError("Weights in 4 bits cannot be trained in full; use method lora, or quantization none.")


@dataclass(frozen=True)
class Trainables:
    """Parameter counts; weights in 4 bits count as weights, not as bytes."""

    trainable: int
    total: int

    @property
    def percent(self) -> float:
        return 100.0 * self.trainable / self.total

    def __str__(self) -> str:
        return f"trainable {self.trainable:,} of {self.total:,} parameters ({self.percent:.3f}%)"


def attach(model: Architecture, settings: LoraSettings) -> Trainables:
    """Freeze the model in place, but for the adapters put on it and the robot's heads.

    Raises `UnknownName` for a target the family does not have, `MissingDependency`, `ModelError`.
    """
    if any(is_wrapped(m) for m in model.modules()):
        raise ModelError("The model already has adapters; merge them before attaching others.")
    model.requires_grad_(False)
    if settings.quantization == "nf4":
        quantize_nf4_(model, double=settings.double_quantization)
    if settings.method == "lora":
        _inject(model, settings)
    elif settings.method == "full":
        _train_body(model, settings)
    for path in model.head_modules():
        model.get_submodule(path).requires_grad_(True)
    for parameter in model.parameters():
        # Small updates vanish in bfloat16: what trains is kept in float32, whatever the frozen weights are.
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return count(model)


def left_out(model: Architecture, settings: LoraSettings) -> tuple[str, ...]:
    """Targets that this family has no layer for, such as the output layer of a family that reads no tokens."""
    if settings.method != "lora":
        return ()
    return tuple(
        t for t in settings.targets if t != "all-linear" and not model.lora_modules((t,), vision=False, projector=False)
    )


def trust_autocast(model: nn.Module, *, on: bool) -> None:
    """Leave the choice of precision inside adapters to autocast: peft's own conversions copy every input twice."""
    for module in model.modules():
        if is_wrapped(module):
            module.cast_input_dtype_enabled = not on  # pyright: ignore[reportArgumentType]  a plain attribute


def fuse_forward(model: nn.Module, *, on: bool) -> None:
    """Compute adapted layers as one product with `W + scale * B A` instead of three products.

    The same numbers to rounding, and faster where layers are small and memory traffic dominates, as on CPUs. Only for
    plain LoRA on float linear layers without dropout; the others keep peft's forward.
    """
    for module in model.modules():
        if not (is_wrapped(module) and type(module).__name__ == "Linear"):
            continue
        if not on:
            module.__dict__.pop("forward", None)
        elif not cast(Mapping[str, object], module.lora_variant) and not _has_dropout(module) and _is_wide(module):
            module.forward = _FusedForward(module)


class _FusedForward:
    """A forward of one wrapped layer; a class and not a closure, so that models can still be copied."""

    def __init__(self, module: nn.Module) -> None:
        base = cast(nn.Linear, module.base_layer)
        self.weight, self.bias = base.weight, base.bias
        self.a = cast(nn.Linear, cast(nn.ModuleDict, module.lora_A)[ADAPTER])
        self.b = cast(nn.Linear, cast(nn.ModuleDict, module.lora_B)[ADAPTER])
        self.scale = float(cast(Mapping[str, float], module.scaling)[ADAPTER])

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the sum is in float32; only the product is narrow
            weight = torch.addmm(self.weight, self.b.weight, self.a.weight, alpha=self.scale)
        return F.linear(x, weight, self.bias)


def _is_wide(module: nn.Module) -> bool:
    """Whether the frozen weight is in float32; one in 16 bits would be copied to float32 in every step."""
    return cast(nn.Linear, module.base_layer).weight.dtype == torch.float32


def _has_dropout(module: nn.Module) -> bool:
    return not isinstance(cast(nn.ModuleDict, module.lora_dropout)[ADAPTER], nn.Identity)


def count(model: nn.Module) -> Trainables:
    """Trainable and total parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_numel(p) for p in model.parameters())
    return Trainables(trainable, total)


def state(model: nn.Module) -> dict[str, Tensor]:
    """Everything that trains, by its full name: what a fine-tuned bundle stores. References, not copies."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `state` on a model with the same settings attached. Raises `BundleError` naming what does not fit."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    problems = misfits(own, tensors)
    if problems:
        raise BundleError(f"The adapter does not fit its base: {'; '.join(problems[:8])} ({len(problems)} in all).")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def four_bit_paths(model: Architecture) -> list[str]:
    """The layers that QLoRA keeps in 4 bits: the decoder's, without the output layer."""
    paths = model.lora_modules(("all-linear",), vision=False, projector=False)
    return [p for p in paths if not p.endswith(_NOT_IN_4_BIT)]


def quantize_nf4_(model: Architecture, *, double: bool) -> list[str]:
    """Replace the decoder's linear layers by bitsandbytes' 4-bit ones; returns their paths.

    Raises `MissingDependency`.
    """
    paths = four_bit_paths(model)
    for path in paths:
        layer = cast(nn.Linear, model.get_submodule(path))
        if four_bit.is_four_bit(layer):  # the checkpoint was read in 4 bits already
            continue
        weight = layer.weight
        bias = None if layer.bias is None else layer.bias.data
        compute = weight.dtype if weight.is_cuda else torch.float32
        small = four_bit.linear(weight.data, bias, double=double, compute=compute, device=weight.device)
        replace_module(model, path, small)
    # What peft asks before it wraps a 4-bit layer.
    model.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType]  a plain attribute
    return paths


def _inject(model: Architecture, settings: LoraSettings) -> None:
    four_bit.silence()  # peft imports bitsandbytes
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependency("peft", "train", "for LoRA") from error
    paths = model.lora_modules(settings.targets, vision=settings.vision, projector=settings.projector)
    if not paths:
        raise ModelError(
            f"The family {model.family} has no layer for {', '.join(settings.targets)}, so nothing would be adapted. "
            "Choose other --targets (all-linear takes every decoder layer), or --method heads."
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=paths,
        use_dora=settings.dora,
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft advises on tied embeddings and saving, which are not its business here
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    wrapped = {n for n, m in model.named_modules() if is_wrapped(m)}
    if wrapped != set(paths):
        raise ModelError(
            f"Adapters were asked for on {len(paths)} layers but sit on {len(wrapped)}; "
            f"differing: {sorted(wrapped ^ set(paths))[:8]}. This version of peft resolves names differently."
        )


def _train_body(model: Architecture, settings: LoraSettings) -> None:
    """Full fine-tuning: all weights, vision and projector as chosen; layers that nothing reads stay frozen."""
    model.requires_grad_(True)
    both = model.lora_modules(("all-linear",), vision=True, projector=True)
    language = model.lora_modules(("all-linear",), vision=False, projector=False)
    with_vision = set(model.lora_modules(("all-linear",), vision=True, projector=False)) - set(language)
    with_projector = set(both) - set(language) - with_vision
    frozen: set[str] = set()
    if not settings.vision:
        frozen |= {_root(p) for p in with_vision}
    if not settings.projector:
        frozen |= {_root(p) for p in with_projector}
    for path in frozen:
        model.get_submodule(path).requires_grad_(False)


def _root(path: str) -> str:
    """The part of the body a path belongs to: its first two names."""
    return ".".join(path.split(".")[:2])


def is_wrapped(module: nn.Module) -> bool:
    """Whether the layer carries an adapter."""
    return ADAPTER in getattr(module, "lora_A", {}) or ADAPTER in getattr(module, "lora_embedding_A", {})


def _numel(parameter: nn.Parameter) -> int:
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return math.prod(cast(Sequence[int], shape)) if shape is not None else parameter.numel()


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` says."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
