"""Products with quantised weights on an NVIDIA card, in Triton: one row, some rows, and a weight unpacked for many.

Codes and scales are read as they are stored (`packed.store`); products are summed in float32. Every kernel runs in
Triton's interpreter on a processor, which is how they are tested. Knows no layers and no models.
"""

# A kernel's arguments are pointers and constants when it runs, whatever they are when it is called.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SOME = 32  # rows up to which unpacking inside of the product costs less than unpacking the weight first
_SMALL_WEIGHT = 1 << 24  # weights of a layer up to which a program takes four outputs; eight where there are many
SMALLEST_BLOCK = 32  # inputs that a product takes at a time at least
# A float32 of this exponent has a last place of one: its lower bits are an integer as they stand.
_INTEGER = tl.constexpr(0x4B000000)
_BASE = tl.constexpr(8388608.0)


@triton.jit
def _code(word, BIT: tl.constexpr, BITS: tl.constexpr):
    """The code at a bit of a word, times 2 to the power of that bit: without a shift and without a conversion."""
    MASK: tl.constexpr = ((1 << BITS) - 1) << BIT
    SIGN: tl.constexpr = 1 << (BITS - 1 + BIT)  # flipped, two's complement is the code and an offset
    return ((word & MASK) ^ (_INTEGER | SIGN)).to(tl.float32, bitcast=True) - (_BASE + SIGN)


@triton.jit
def _one_row(
    x,
    codes,
    scales,
    add,
    y,
    outputs,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ADD: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """`y[outputs] = weight @ x`, and `+ add`: R outputs of a program, W words of 32 bits of their codes at a time."""
    EACH: tl.constexpr = 32 // BITS  # codes of a word
    WORDS: tl.constexpr = K // EACH
    rows = tl.program_id(0) * R + tl.arange(0, R)
    inside = rows < outputs
    place = rows.to(tl.int64)[:, None]
    total = tl.zeros((R, W), tl.float32)
    for first in range(0, WORDS, W):
        word = first + tl.arange(0, W)
        both = inside[:, None] & (word < WORDS)[None, :]
        w = tl.load(codes + place * WORDS + word[None, :], mask=both, other=0)
        # Inputs are read side by side and taken apart in registers: each word's eight, or four.
        at = first * EACH + tl.arange(0, W * EACH)
        v = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(v, (W, EACH // 2, 2)))
        if BITS == 4:
            even, even_high = tl.split(tl.reshape(even, (W, 2, 2)))
            odd, odd_high = tl.split(tl.reshape(odd, (W, 2, 2)))
            x0, x4 = tl.split(even)
            x1, x5 = tl.split(odd)
            x2, x6 = tl.split(even_high)
            x3, x7 = tl.split(odd_high)
            high = w >> 20  # 23 bits are an integer: five codes as they stand, three shifted down
            part = _code(w, 0, 4) * x0[None, :]
            part += _code(w, 4, 4) * (x1 * (1.0 / 16))[None, :]
            part += _code(w, 8, 4) * (x2 * (1.0 / 256))[None, :]
            part += _code(w, 12, 4) * (x3 * (1.0 / 4096))[None, :]
            part += _code(w, 16, 4) * (x4 * (1.0 / 65536))[None, :]
            part += _code(high, 0, 4) * x5[None, :]
            part += _code(high, 4, 4) * (x6 * (1.0 / 16))[None, :]
            part += _code(high, 8, 4) * (x7 * (1.0 / 256))[None, :]
        else:
            x0, x2 = tl.split(even)
            x1, x3 = tl.split(odd)
            high = w >> 16
            part = _code(w, 0, 8) * x0[None, :]
            part += _code(w, 8, 8) * (x1 * (1.0 / 256))[None, :]
            part += _code(high, 0, 8) * x2[None, :]
            part += _code(high, 8, 8) * (x3 * (1.0 / 256))[None, :]
        scale = tl.load(scales + place * (K // GROUP) + (word * EACH // GROUP)[None, :], mask=both, other=0.0)
        total += part * scale.to(tl.float32)
    found = tl.sum(total, axis=1)
    if ADD:
        found += tl.load(add + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + rows, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _some_rows(
    x,
    codes,
    scales,
    y,
    count,
    outputs,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    B: tl.constexpr,
):
    """`y[count, outputs] = x @ weight.T`, B bytes of an output's codes at a time.

    With 4 bits `x` is `[2, count, K / 2]`: inputs of the low halves of the bytes, then those of the high halves.
    """
    HALVES: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = K // HALVES
    row = tl.program_id(1) * M + tl.arange(0, M)
    output = tl.program_id(0) * N + tl.arange(0, N)
    row_in, output_in = row < count, output < outputs
    at_row = row.to(tl.int64)[:, None] * BYTES
    at_output = output.to(tl.int64)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, BYTES, B):
        byte = first + tl.arange(0, B)
        there = byte < BYTES
        c = tl.load(
            codes + at_output[None, :] * BYTES + byte[:, None], mask=output_in[None, :] & there[:, None], other=0
        )
        a = tl.load(x + at_row + byte[None, :], mask=row_in[:, None] & there[None, :], other=0.0)
        if BITS == 4:
            low = ((c & 15) ^ 8).to(tl.int8) - 8
            part = tl.dot(a, low.to(a.dtype))
            a = tl.load(x + count * BYTES + at_row + byte[None, :], mask=row_in[:, None] & there[None, :], other=0.0)
            high = ((c >> 4) ^ 8).to(tl.int8) - 8
            part = tl.dot(a, high.to(a.dtype), part)
        else:
            part = tl.dot(a, c.to(a.dtype))
        scale = tl.load(scales + at_output * (K // GROUP) + first * HALVES // GROUP, mask=output_in, other=0.0)
        total += part * scale.to(tl.float32)[None, :]
    where = y + row.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=row_in[:, None] & output_in[None, :])


@triton.jit
def _unpack(codes, scales, weight, outputs, K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, B: tl.constexpr):
    """The weight itself, rounded once from float32: one output and B bytes of its codes in a program."""
    HALVES: tl.constexpr = 8 // BITS
    BYTES: tl.constexpr = K // HALVES
    output = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * B + tl.arange(0, B)
    c = tl.load(codes + output * BYTES + byte, mask=byte < BYTES, other=0)
    if BITS == 4:
        low, high = ((c & 15) ^ 8).to(tl.float32) - 8.0, ((c >> 4) ^ 8).to(tl.float32) - 8.0
        value = tl.interleave(low, high)
    else:
        value = c.to(tl.float32)
    column = tl.program_id(1) * B * HALVES + tl.arange(0, B * HALVES)
    there = column < K
    scale = tl.load(scales + output * (K // GROUP) + column // GROUP, mask=there, other=0.0).to(tl.float32)
    tl.store(weight + output * K + column, (value * scale).to(weight.dtype.element_ty), mask=there)


def one_row(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bits: int,
    rows: int = 0,
    words: int = 512,
    warps: int = 4,
    add: Tensor | None = None,
) -> Tensor:
    """`[outputs]` of one row `x` `[inputs]`, and `add` `[outputs]`."""
    outputs, inputs = _sizes(codes, bits)
    y = torch.empty(outputs, dtype=x.dtype, device=x.device)
    rows = rows or (4 if outputs * inputs <= _SMALL_WEIGHT else 8)
    options: dict[str, Any] = {"GROUP": inputs // scales.shape[1], "BITS": bits, "R": rows, "W": words}
    options |= {"ADD": add is not None, "num_warps": warps}
    grid = (triton.cdiv(outputs, rows),)
    _one_row[grid](x, codes.view(torch.int32), scales, y if add is None else add, y, outputs, K=inputs, **options)
    return y


def some_rows(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bits: int,
    tile: tuple[int, int] = (0, 32),
    warps: int = 4,
    stages: int = 4,
) -> Tensor:
    """`[rows, outputs]` of `x` `[rows, inputs]`."""
    (outputs, inputs), count = _sizes(codes, bits), len(x)
    if bits == 4:
        x = x.view(count, inputs // 2, 2).permute(2, 0, 1)
    x = x.contiguous()
    y = torch.empty(count, outputs, dtype=x.dtype, device=x.device)
    m = tile[0] or min(64, max(16, triton.next_power_of_2(count)))
    group = inputs // scales.shape[1]
    options: dict[str, Any] = {"GROUP": group, "BITS": bits, "M": m, "N": tile[1], "B": block(group) * bits // 8}
    grid = (triton.cdiv(outputs, tile[1]), triton.cdiv(count, m))
    _some_rows[grid](x, codes, scales, y, count, outputs, K=inputs, **options, num_warps=warps, num_stages=stages)
    return y


def unpacked(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The weight `[outputs, inputs]`, rounded once from float32."""
    outputs, inputs = _sizes(codes, bits)
    weight = torch.empty(outputs, inputs, dtype=dtype, device=codes.device)
    size = 1024
    grid = (outputs, triton.cdiv(codes.shape[1], size))
    _unpack[grid](codes, scales, weight, outputs, K=inputs, GROUP=inputs // scales.shape[1], BITS=bits, B=size)
    return weight


def block(group: int) -> int:
    """How many inputs a product takes at a time: a power of two within a group, or any for one scale per output."""
    return min(128, group & -group) if group & -group >= SMALLEST_BLOCK else 0


def linear(x: Tensor, codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """`[rows, outputs]` in the type of `x` `[rows, inputs]`, by the kernel that suits so many rows."""
    (_, inputs), count = _sizes(codes, bits), len(x)
    if count == 1 and inputs % 8 == 0:
        return one_row(x[0], codes, scales, bits)[None]
    if count <= SOME and block(inputs // scales.shape[1]):
        return some_rows(x, codes, scales, bits)
    return torch.nn.functional.linear(x, unpacked(codes, scales, bits, x.dtype))


def _sizes(codes: Tensor, bits: int) -> tuple[int, int]:
    return codes.shape[0], codes.shape[1] * 8 // bits
