"""What a decoder's layer does on an NVIDIA card besides its products, in Triton: one kernel for each of torch's five.

A decoding step is short kernels one after the other, and on a card a short kernel costs the same as one of ten times
its work. Sums are in float32. Every kernel runs in Triton's interpreter on a processor, which is how they are tested.
"""

# A kernel's arguments are pointers and constants when it runs, whatever they are when it is called.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 128  # of a cache, read at a time
TURNED = 16  # rows that a program turns
LOWEST = tl.constexpr(-1e30)  # a score that nothing comes of


@triton.jit
def _plain_row(
    x, weight, add, y, outputs, K: tl.constexpr, ADD: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """`y = weight @ x`, and `+ add`: R outputs of a program, W inputs at a time."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    inside = rows < outputs
    place = rows.to(tl.int64)[:, None] * K
    total = tl.zeros((R, W), tl.float32)
    for first in range(0, K, W):
        k = first + tl.arange(0, W)
        w = tl.load(weight + place + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
        v = tl.load(x + k, mask=k < K, other=0.0)
        total += w.to(tl.float32) * v.to(tl.float32)[None, :]
    found = tl.sum(total, axis=1)
    if ADD:
        found += tl.load(add + rows, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + rows, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _turned(p, at, cos, sin, n, W: tl.constexpr):
    """W numbers of a head, each pair (i, i + W / 2) turned by its angle."""
    pair = (n + W // 2) % W
    own, other = tl.load(p + at + n).to(tl.float32), tl.load(p + at + pair).to(tl.float32)
    return own * cos + other * sin


@triton.jit
def _attend_row(
    p,
    cos,
    sin,
    keys,
    values,
    position,
    y,
    new_keys,
    new_values,
    slots,
    scale,
    H: tl.constexpr,
    G: tl.constexpr,
    W: tl.constexpr,
    B: tl.constexpr,
):
    """One head of one row: it looks at the slots before `position` and at itself.

    `p` is `[H + 2 G, W]`: queries, keys and values of the row, not turned yet.
    """
    head = tl.program_id(0)
    group = head // (H // G)
    n = tl.arange(0, W)
    c, s = tl.load(cos + n).to(tl.float32), tl.load(sin + n).to(tl.float32)
    q = _turned(p, head * W, c, s, n, W) * scale
    key = _turned(p, (H + group) * W, c, s, n, W)
    value = tl.load(p + (H + G + group) * W + n)
    if head % (H // G) == 0:
        tl.store(new_keys + group * W + n, key.to(new_keys.dtype.element_ty))
        tl.store(new_values + group * W + n, value)
    filled = tl.load(position).to(tl.int32)
    base = group.to(tl.int64) * slots * W
    # Each place of a block keeps its own largest score and sums: nothing waits for the others until the end.
    top = tl.full((B,), LOWEST, tl.float32)
    weight = tl.zeros((B,), tl.float32)
    total = tl.zeros((B, W), tl.float32)
    for first in range(0, filled, B):
        slot = first + tl.arange(0, B)
        there = slot < filled
        at = base + slot[:, None] * W + n[None, :]
        k = tl.load(keys + at, mask=there[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + at, mask=there[:, None], other=0.0).to(tl.float32)
        score = tl.where(there, tl.sum(k * q[None, :], axis=1), LOWEST)
        higher = tl.maximum(top, score)
        shrunk, share = tl.exp(top - higher), tl.where(there, tl.exp(score - higher), 0.0)
        total = total * shrunk[:, None] + v * share[:, None]
        weight = weight * shrunk + share
        top = higher
    own = tl.sum(q * key, axis=0)
    highest = tl.maximum(tl.max(top, axis=0), own)
    shrunk, share = tl.exp(top - highest), tl.exp(own - highest)
    whole = tl.sum(weight * shrunk, axis=0) + share
    seen = tl.sum(total * shrunk[:, None], axis=0) + value.to(tl.float32) * share
    tl.store(y + head * W + n, (seen / whole).to(y.dtype.element_ty))


@triton.jit
def _norm_row(x, weight, y, epsilon, K: tl.constexpr, W: tl.constexpr):
    """`x / sqrt(mean(x ** 2) + epsilon) * weight`, of one row in one program."""
    n = tl.arange(0, W)
    v = tl.load(x + n, mask=n < K, other=0.0).to(tl.float32)
    w = tl.load(weight + n, mask=n < K, other=0.0).to(tl.float32)
    scaled = v * tl.rsqrt(tl.sum(v * v, axis=0) / K + epsilon)
    tl.store(y + n, (scaled * w).to(y.dtype.element_ty), mask=n < K)


@triton.jit
def _turn_rows(p, cos, sin, rows, wide, W: tl.constexpr, B: tl.constexpr):
    """Queries and keys of B rows of `p` `[rows, wide]` turned where they are: one head in a program."""
    row = tl.program_id(0) * B + tl.arange(0, B)
    there = (row < rows)[:, None]
    n = tl.arange(0, W // 2)[None, :]
    at = row.to(tl.int64)[:, None] * wide + tl.program_id(1) * W + n
    angle = row[:, None] * W + n
    low, high = tl.load(p + at, mask=there), tl.load(p + at + W // 2, mask=there)
    first, second = low.to(tl.float32), high.to(tl.float32)
    c, s = tl.load(cos + angle, mask=there).to(tl.float32), tl.load(sin + angle + W // 2, mask=there).to(tl.float32)
    tl.store(p + at, (first * c - second * s).to(low.dtype), mask=there)
    tl.store(p + at + W // 2, (second * c + first * s).to(low.dtype), mask=there)


@triton.jit
def _gate(x, y, columns, B: tl.constexpr):
    """`silu(x[:, :columns]) * x[:, columns:]`, B columns of a row in a program."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * B + tl.arange(0, B)
    there = at < columns
    gate = tl.load(x + row * 2 * columns + at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * columns + columns + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + row * columns + at, (gate / (1.0 + tl.exp(-gate)) * up).to(y.dtype.element_ty), mask=there)


def plain_row(
    x: Tensor, weight: Tensor, add: Tensor | None = None, rows: int = 1, words: int = 1024, warps: int = 8
) -> Tensor:
    """`[outputs]`: `weight` `[outputs, inputs]` times one row `x` `[inputs]`, and `add` `[outputs]`."""
    outputs, inputs = weight.shape
    y = torch.empty(outputs, dtype=x.dtype, device=x.device)
    size = min(words, triton.next_power_of_2(inputs))
    grid = (triton.cdiv(outputs, rows),)
    _plain_row[grid](
        x, weight, y if add is None else add, y, outputs, K=inputs, ADD=add is not None, R=rows, W=size, num_warps=warps
    )
    return y


def attend_row(
    p: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: tuple[Tensor, Tensor],
    position: Tensor,
    new: tuple[Tensor, Tensor],
    block: int = SLOTS,
    warps: int = 16,
) -> Tensor:
    """`[heads * width]` of one row. `p` `[(heads + 2 groups) * width]`: its queries, keys and values.

    `cache`: keys and values `[groups, slots, width]`; `position` `[1]`: how many slots are looked at; `new`: keys and
    values `[groups, width]`, which are written.
    """
    groups, slots, width = cache[0].shape
    heads = len(p) // width - 2 * groups
    y = torch.empty(heads * width, dtype=p.dtype, device=p.device)
    _attend_row[(heads,)](
        p, cos, sin, *cache, position, y, *new, slots, width**-0.5, H=heads, G=groups, W=width, B=block, num_warps=warps
    )
    return y


def norm_row(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of one row `[inputs]`."""
    y = torch.empty_like(x)
    size = triton.next_power_of_2(len(x))
    _norm_row[(1,)](x, weight, y, epsilon, K=len(x), W=size, num_warps=16 if size > 2048 else 4)
    return y


def turn_rows(p: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """The first `heads` of every row of `p` `[rows, wide]` in place; `cos` and `sin` are `[rows, width]`."""
    rows, wide = p.shape
    width = cos.shape[-1]
    _turn_rows[(triton.cdiv(rows, TURNED), heads)](p, cos, sin, rows, wide, W=width, B=TURNED, num_warps=4)


def gate(x: Tensor) -> Tensor:
    """`[rows, columns]`: silu of the first half of every row of `x` `[rows, 2 columns]`, times the other half."""
    rows, columns = x.shape[0], x.shape[1] // 2
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    size = min(1024, triton.next_power_of_2(columns))
    _gate[(rows, triton.cdiv(columns, size))](x, y, columns, B=size, num_warps=4)
    return y
