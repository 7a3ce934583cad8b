"""Scaled dot-product attention, by the fastest route for where it runs. Knows no model.

Inference, export and GPUs always take torch's kernel. In training on a CPU in bfloat16 the fused backward of torch
2.13 takes four times as long as the same matrix products written out (benchmarks/bench_train.py measures both).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`[b, heads, rows, width]` queries against keys and values; True in `mask` allows a look."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            return _WrittenOut.apply(q, k, v, mask)  # pyright: ignore[reportReturnType]
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _WrittenOut(torch.autograd.Function):
    """Keeps the attention weights for the backward pass: quadratic memory, which short sequences can afford."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scale = q.shape[-1] ** -0.5
        if mask is None:
            scores = torch.matmul(q * scale, k.transpose(-1, -2))
        else:
            batch, heads, rows, width = q.shape
            columns = k.shape[2]
            bias = torch.where(mask, 0.0, -1e9).to(q.dtype).expand(batch, heads, rows, columns)
            scores = torch.baddbmm(
                bias.reshape(batch * heads, rows, columns),
                q.reshape(batch * heads, rows, width),
                k.reshape(batch * heads, columns, width).transpose(1, 2),
                alpha=scale,
            ).view(batch, heads, rows, columns)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return weights @ v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        gradient = gradients[0].to(weights.dtype)
        scale = q.shape[-1] ** -0.5
        inner = torch._softmax_backward_data(gradient @ v.transpose(-1, -2), weights, -1, weights.dtype)
        return (inner @ k) * scale, (inner.transpose(-1, -2) @ q) * scale, weights.transpose(-1, -2) @ gradient, None
