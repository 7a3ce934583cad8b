"""Small quantised layers with random numbers, and the layer that multiplies them."""

import torch

from athena_vla.models.weights import packed
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.packed_linear import PackedLinear, Scratch


def layer(weight: Packed, bias: torch.Tensor | None = None, kind: torch.dtype | None = None) -> PackedLinear:
    stored = packed.store("w", weight)
    return PackedLinear(stored["w" + packed.CODES[weight.bits]], stored["w.scales"], weight.bits, bias, Scratch(kind))


def random_weight(rows: int, columns: int, group: int, bits: int, seed: int = 0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    scales = (torch.rand(rows, columns // group, generator=generator) * 0.02 + 1e-4).half()
    return Packed(codes, scales, bits)  # pyright: ignore[reportArgumentType]
