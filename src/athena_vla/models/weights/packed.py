"""The one quantised form of a weight: symmetric codes with fp16 scales; 4 bits in groups along the input, or 8 bits.

Maps without loss to ONNX INT4/INT8 Q/DQ, to ONNX Runtime's MatMulNBits and to compressed checkpoints. Knows nothing of
how the codes were chosen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float16, Int8, UInt8
from torch import Tensor

from athena_vla.errors import ModelError

Bits = Literal[4, 8]
CODES = {4: ".codes4", 8: ".codes8"}
SCALES = ".scales"
SMALLEST_SCALE = 6.1e-5  # the smallest normal fp16: denormal scales are flushed to zero by some kernels


@dataclass(frozen=True)
class Packed:
    """A weight `[out, in]` as codes and scales: weight = codes * scales, one scale per `group` inputs."""

    codes: Int8[Tensor, "out in"]  # in [-8, 7] or [-127, 127]
    scales: Float16[Tensor, "out groups"]
    bits: Bits

    def __post_init__(self) -> None:
        if self.codes.shape[1] % self.scales.shape[1] or self.codes.shape[0] != self.scales.shape[0]:
            raise ModelError(
                f"Codes of shape {list(self.codes.shape)} and scales of shape {list(self.scales.shape)} do not fit."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def bytes(self) -> int:
        return self.codes.numel() * self.bits // 8 + self.scales.numel() * 2

    def rows(self, first: int, last: int) -> "Packed":
        """Some of the outputs."""
        return Packed(self.codes[first:last].clone(), self.scales[first:last].clone(), self.bits)

    def dequantize(self) -> Float[Tensor, "out in"]:
        """float32, the very numbers every runtime has to compute with."""
        rows, columns = self.codes.shape
        grouped = self.codes.reshape(rows, -1, self.group).float() * self.scales.float()[:, :, None]
        return grouped.reshape(rows, columns)


def nibbles(codes: Int8[Tensor, "out in"]) -> UInt8[Tensor, "out half"]:
    """Two's-complement 4-bit codes, two per byte along the input, the first in the low half (ONNX's INT4 order)."""
    low, high = codes[:, 0::2].to(torch.uint8) & 15, codes[:, 1::2].to(torch.uint8) & 15
    return low | (high << 4)


def from_nibbles(packed: UInt8[Tensor, "out half"]) -> Int8[Tensor, "out in"]:
    """Inverse of `nibbles`."""
    both = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(packed.shape[0], -1).to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def store(name: str, weight: Packed) -> dict[str, Tensor]:
    """The tensors of one weight as a file holds them."""
    codes = nibbles(weight.codes) if weight.bits == 4 else weight.codes
    return {name + CODES[weight.bits]: codes.contiguous(), name + SCALES: weight.scales.contiguous()}


def load(name: str, tensors: Mapping[str, Tensor]) -> Packed:
    """Inverse of `store`. Raises `ModelError` where a part is missing."""
    for bits, suffix in CODES.items():
        if name + suffix in tensors:
            if name + SCALES not in tensors:
                raise ModelError(f"The quantised weight '{name}' has codes but no scales.")
            codes = tensors[name + suffix]
            return Packed(from_nibbles(codes) if bits == 4 else codes, tensors[name + SCALES], 4 if bits == 4 else 8)
    raise ModelError(f"There is no quantised weight '{name}'.")


def packed_names(keys: Iterable[str]) -> list[str]:
    """Names of the quantised weights among the keys of a file."""
    return sorted(k.removesuffix(s) for k in keys for s in CODES.values() if k.endswith(s))


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with every quantised weight de-quantised to float32; the others as they are."""
    names = packed_names(tensors)
    parts = {n + s for n in names for s in (*CODES.values(), SCALES)}
    plain = {k: t for k, t in tensors.items() if k not in parts}
    return plain | {n: load(n, tensors).dequantize() for n in names}
