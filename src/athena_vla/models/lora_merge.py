"""An adapter folded into its weight: the one formula, and a whole model merged in place with it.

`athena merge` uses the formula weight by weight on files, `merge_` on a model in memory. Knows nothing of bundles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from athena_vla.errors import ModelError
from athena_vla.models.architecture import Architecture
from athena_vla.models.lora import ADAPTER, is_wrapped, replace_module
from athena_vla.models.weights import nf4 as four_bit


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one weight: two factors and, with DoRA, a magnitude."""

    a: Tensor  # linear [r, in]; embedding [r, rows]
    b: Tensor  # linear [out, r]; embedding [width, r]
    magnitude: Tensor | None  # DoRA: linear [out], one per row; embedding [width], one per column
    embedding: bool  # the weight is a table [rows, width], whose columns are what a linear layer's rows are

    def fold(self, name: str, weight: Tensor, scale: float) -> Tensor:
        """The weight with the adapter in it, float32. Raises `ModelError` where that is not finite."""
        product = (self.b.float() @ self.a.float()) * scale
        total = weight.float() + (product.t() if self.embedding else product)
        if self.magnitude is not None:
            length = torch.linalg.norm(total, dim=0 if self.embedding else 1)
            factor = self.magnitude.float() / length
            total = (factor[None, :] if self.embedding else factor[:, None]) * total
        if not bool(total.isfinite().all()):
            raise ModelError(
                f"The adapter of '{name}' gives weights that are not finite. Its run diverged: take an earlier "
                "checkpoint of it (athena checkpoint RUN --step N --out BUNDLE)."
            )
        return total


@torch.no_grad()
def merge_(model: Architecture, *, wide: bool = False) -> Architecture:
    """Fold the adapters into their layers, in place: afterwards the plain model, names and types as before `attach`.

    4-bit weights are de-quantised first, so that the sum is with the very numbers the adapter was trained against.
    `wide`: merged weights stay in float32, as they are before they are rounded to the type they are stored in.
    """
    plain_(model)
    for path, module in [(n, m) for n, m in model.named_modules() if is_wrapped(m)]:
        base = cast(nn.Module, module.base_layer)
        stored = cast(Tensor, base.weight).data
        scale = float(cast(Mapping[str, float], module.scaling)[ADAPTER])
        merged = _factors(module).fold(f"{path}.weight", stored, scale)
        base.weight = nn.Parameter(merged if wide else merged.to(stored.dtype), requires_grad=False)
        replace_module(model, path, base)
    return model


@torch.no_grad()
def plain_(model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
    """Layers in 4 bits become plain ones, in place: with the numbers they compute with, or with `weights` by path."""
    for path, module in [(n, m) for n, m in model.named_modules() if four_bit.is_four_bit(m)]:
        weight = four_bit.dequantized(module) if weights is None else weights[path.removesuffix(".base_layer")]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            linear.bias = nn.Parameter(cast(Tensor, module.bias).data, requires_grad=False)
        replace_module(model, path, linear)


def _factors(module: nn.Module) -> Factors:
    """The adapter of one wrapped layer."""
    magnitudes = cast(Mapping[str, nn.Module], getattr(module, "lora_magnitude_vector", None) or {})
    magnitude = cast(Tensor, magnitudes[ADAPTER].weight) if ADAPTER in magnitudes else None
    tables = cast(Mapping[str, Tensor], module.lora_embedding_A)
    if ADAPTER in tables:
        return Factors(tables[ADAPTER], cast(Mapping[str, Tensor], module.lora_embedding_B)[ADAPTER], magnitude, True)
    a, b = (cast(Mapping[str, nn.Linear], kind)[ADAPTER].weight for kind in (module.lora_A, module.lora_B))
    return Factors(a, b, magnitude, False)
