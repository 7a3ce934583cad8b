"""Quantised weights multiplied as they lie on disk: codes memory-mapped, unpacked just before use.

Products are in the native type of the machine.

Nothing is repacked when a model is opened, so the first pass of a 7B model starts at once and its memory is that of the
file. Unpacking a weight pays for many rows; a few, as in decoding, go through a compiled kernel. Knows no families.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athena_vla.errors import ModelError
from athena_vla.models.architecture import Architecture
from athena_vla.models.precision import multiply_natively, product_type
from athena_vla.models.weights import gemv_kernel
from athena_vla.models.weights.packed import CODES, SCALES, Packed, from_nibbles
from athena_vla.models.weights.store import TensorStore, misfits

BLOCK = 1 << 20  # weights unpacked at a time: 2 MB in 16 bits, which a core's cache holds
FEW = 8  # rows up to which reading the weight once for each costs less than unpacking it
PLANES = 4  # codes in a word of 16 bits
# A bfloat16 of exponent 7 has a last place of one: 0x4300 | n is the number 128 + n, without any arithmetic. Codes are
# two's complement, so flipping their sign bit gives code + 8.
ONE_TWENTY_EIGHT = 0x4300
SIGN = 8
OFFSET = 128.0 + SIGN


class Scratch:
    """Memory that all layers of a model unpack into, one after the other: not for two passes at the same time.

    `kind` is the type that weights are unpacked into and multiplied in: bfloat16 where it is native, else float32.
    """

    def __init__(self, kind: torch.dtype | None = None) -> None:
        self.kind = kind or product_type("cpu")
        self.weights = torch.empty(0, dtype=self.kind)
        self.numbers = torch.empty(0, dtype=torch.bfloat16)
        self.offset = self.one = self.zero = self.nothing = torch.empty(0)

    def reserve(self, weights: int, numbers: int, groups: int) -> None:
        """Room for a whole weight, and for a block of numbers with their scales."""
        with torch.inference_mode(False):  # what is made in inference mode could not be written outside of it
            if self.weights.numel() < weights:
                self.weights = torch.empty(weights, dtype=self.kind)
            if self.numbers.numel() < numbers:
                self.numbers = torch.empty(numbers, dtype=torch.bfloat16)
            if self.offset.numel() < groups:
                self.offset, self.one = torch.full((groups,), OFFSET), torch.ones(groups)
                self.zero = torch.zeros(groups)


class CodedLinear(nn.Module):
    """A linear layer on codes in the stored layout (`packed.store`): computes what the de-quantised weight would."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None) -> None:
        super().__init__()
        self.bits = bits
        self.out_features = codes.shape[0]
        self.in_features = codes.shape[1] * (2 if bits == 4 else 1)
        self.group = self.in_features // scales.shape[1]
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x.reshape(-1, self.in_features).to(torch.bfloat16))
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def product(self, rows: Tensor) -> Tensor:
        """`[rows, outputs]` in bfloat16, without the bias."""
        raise NotImplementedError


class PackedLinear(CodedLinear):
    """The layer on a processor: codes unpacked into memory that all layers share, or by the compiled kernel."""

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None, scratch: Scratch) -> None:
        super().__init__(codes, scales, bits, bias)
        self.fits = gemv_kernel.fits(self.in_features, scales.shape[1])
        self.scratch = scratch
        if bits == 4:
            if self.group % PLANES:
                raise ModelError(f"Groups of {self.group} inputs cannot be unpacked by {PLANES}; quantise with 32.")
            aligned = codes if codes.storage_offset() % 2 == 0 else codes.clone()
            self.codes = aligned.view(torch.int16)

    def product(self, rows: Tensor) -> Tensor:
        kernel = gemv_kernel.kernel() if self.fits and len(rows) <= FEW else None
        return kernel(rows, self.codes, self.scales, self.bits).to(torch.bfloat16) if kernel else self._many(rows)

    def _many(self, rows: Tensor) -> Tensor:
        if self.bits == 4:
            # The words give codes k, k + 4, .. of a group before k + 1, k + 5, ..: the inputs are put in that order.
            rows = rows.view(len(rows), -1, self.group // PLANES, PLANES).transpose(2, 3).reshape(rows.shape)
        y = F.linear(rows.to(self.scratch.kind), self.unpack())
        if self.bits == 8 and self.group == self.in_features:  # one scale per output is cheaper on the outputs
            y *= self.scales.to(y.dtype).view(1, -1)
        return y.to(torch.bfloat16)

    def unpack(self) -> Tensor:
        """The weight in scratch memory, its inputs in the order of `forward`; 8-bit ones without a scale per output."""
        step = min(self.out_features, max(1, BLOCK // self.in_features))
        size = self.out_features * self.in_features
        self.scratch.reserve(size, step * self.in_features, step * (self.in_features // self.group))
        weights = self.scratch.weights[:size].view(self.out_features, self.in_features)
        if self.bits == 4:
            for first in range(0, self.out_features, step):
                self._four(first, min(first + step, self.out_features), weights)
            return weights
        weights.copy_(self.codes)  # exact: bfloat16 holds integers to 256
        if self.group != self.in_features:
            weights.view(self.out_features, -1, self.group).mul_(self.scales[:, :, None].to(weights.dtype))
        return weights

    def _four(self, first: int, last: int, weights: Tensor) -> None:
        """Masks and shifts make numbers of 128 + code + 8; what is left is an offset and a scale per group, which is
        what a batch norm of fixed statistics computes: in float32, rounded once where the type is narrower.
        """
        scratch, run = self.scratch, self.group // PLANES
        groups = (last - first) * (self.in_features // self.group)
        numbers = scratch.numbers[: groups * self.group]
        planes, words = numbers.view(torch.int16).view(-1, PLANES, run), self.codes[first:last].view(-1, run)
        for i in range(PLANES):
            torch.bitwise_right_shift(words, 4 * i, out=planes[:, i])
        planes.bitwise_and_(15).bitwise_xor_(ONE_TWENTY_EIGHT | SIGN)
        if scratch.kind == torch.float32:  # the batch norm takes and gives one type
            wide = weights[first:last].view(groups, self.group)
            wide.copy_(numbers.view(groups, self.group)).sub_(OFFSET)
            wide.mul_(self.scales[first:last].float().view(-1, 1))
            return
        torch.native_batch_norm(
            numbers.view(1, groups, self.group),
            self.scales[first:last].float().view(-1),
            scratch.zero[:groups],
            scratch.offset[:groups],
            scratch.one[:groups],
            False,
            0.0,
            0.0,
            out=(weights[first:last].view(1, groups, self.group), scratch.nothing, scratch.nothing),
        )


class CardLinear(CodedLinear):
    """The layer on an NVIDIA card: by Triton's kernels, or where Triton is absent by unpacking the weight."""

    def product(self, rows: Tensor) -> Tensor:
        kernels = card_kernels() if rows.is_cuda else None
        if kernels is None:
            return F.linear(rows, unpacked(self.codes, self.scales, self.bits))
        return kernels.linear(rows, self.codes, self.scales, self.bits)

    def some(self, first: int, last: int) -> "CardLinear":
        """The outputs from `first` to `last` alone, on the same memory."""
        bias = None if self.bias is None else self.bias[first:last]
        return CardLinear(self.codes[first:last], self.scales[first:last], self.bits, bias)


@cache
def card_kernels() -> Any:
    """The module of Triton's kernels; None where Triton is not installed, as on a Jetson."""
    try:
        from athena_vla.models.weights import triton_kernel
    except ImportError:
        return None
    return triton_kernel


@cache
def layer_kernels() -> Any:
    """The module of Triton's kernels between products; None where Triton is not installed."""
    try:
        from athena_vla.models.weights import triton_row
    except ImportError:
        return None
    return triton_row


def unpacked(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The weight in bfloat16, where its codes are, by torch alone."""
    whole = from_nibbles(codes) if bits == 4 else codes
    return Packed(whole, scales, 4 if bits == 4 else 8).dequantize().to(torch.bfloat16)


def packed_model(meta_model: Architecture, store: TensorStore, device: str = "cpu") -> Architecture:
    """The model with the weights of a quantised folder: on a processor codes and 16-bit tensors memory-mapped, on a
    card copied to it as they are.

    Everything is handed on in bfloat16 but in the robot's own heads: they are small, and nothing comes after them to
    hide a rounding. Raises `ModelError` where weights and model do not fit.
    """
    problems = misfits(meta_model.state_dict(), {n: torch.empty(store.shape(n), device="meta") for n in store.names})
    if problems:
        raise ModelError(f"The weights of '{store.folder}' do not fit: {'; '.join(problems[:8])} ({len(problems)}).")
    store.read_ahead()
    heads = tuple(f"{path}." for path in meta_model.head_modules())
    for path, module in meta_model.named_modules():
        prefix = f"{path}." if path else ""
        for name in [n for n, _ in module.named_parameters(recurse=False) if prefix + n not in store.packed]:
            kind = torch.float32 if prefix.startswith(heads) else torch.bfloat16
            setattr(module, name, nn.Parameter(store.mapped(prefix + name).to(device, kind), requires_grad=False))
    scratch = Scratch() if torch.device(device).type == "cpu" else None
    for path in (n.removesuffix(".weight") for n in sorted(store.packed)):
        parent, _, name = path.rpartition(".")
        module = meta_model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise ModelError(f"'{path}' is quantised but is no linear layer; de-quantise it, or quantise again.")
        parts = _parts(store, f"{path}.weight", device)
        layer = (
            PackedLinear(**parts, bias=module.bias, scratch=scratch)
            if scratch
            else CardLinear(**parts, bias=module.bias)
        )
        setattr(meta_model.get_submodule(parent), name, layer)
    multiply_natively(meta_model, device)
    return meta_model.eval()


def _parts(store: TensorStore, name: str, device: str) -> Mapping[str, Any]:
    bits = next(b for b, suffix in CODES.items() if name + suffix in store.places)
    codes, scales = (store.mapped(name + suffix).to(device) for suffix in (CODES[bits], SCALES))
    return {"codes": codes, "scales": scales, "bits": bits}
