"""A decoder's layers on an NVIDIA card, in as few kernels as they take: joined weights, and Triton between them.

Queries, keys and values lie in one weight, gate and up in another; the layer's own weights become views of these, so
that nothing is kept twice. For acting alone: no gradients, no adapters, no hooks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from athena_vla.models.body.llama import DecoderLayer, Llama
from athena_vla.models.weights.packed_linear import CardLinear, card_kernels, layer_kernels

SMALLEST_HEAD = 16  # numbers of a head that a kernel takes: a power of two


@dataclass(frozen=True)
class Joined:
    """Linear layers of one input as one: a float weight, or codes of one form with their scales."""

    weight: Tensor  # `[outputs, inputs]`, or codes
    scales: Tensor | None
    bits: int  # of codes

    def row(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """`[outputs]` of one row `[inputs]`, and `add`."""
        if self.scales is None:
            return layer_kernels().plain_row(x, self.weight, add)
        return card_kernels().one_row(x, self.weight, self.scales, self.bits, add=add)

    def rows(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """`[rows, outputs]`, and `add`."""
        weight = self.weight
        if self.scales is not None:
            weight = card_kernels().unpacked(weight, self.scales, self.bits, x.dtype)
        return F.linear(x, weight) if add is None else torch.addmm(add, x, weight.T)


def join(layers: list[nn.Module]) -> Joined | None:
    """One layer of several, whose weights become views of it; None where they are not of one form."""
    if all(type(m) is nn.Linear and m.bias is None for m in layers):
        weights = [m.weight for m in layers if isinstance(m, nn.Linear)]
        if len({w.dtype for w in weights}) != 1:
            return None
        whole = weights[0].data if len(weights) == 1 else torch.cat([w.data for w in weights])
        for weight, part in zip(weights, whole.split([len(w) for w in weights]), strict=True):
            weight.data = part
        return Joined(whole, None, 0)
    coded = [m for m in layers if isinstance(m, CardLinear) and m.bias is None and not m.in_features % 8]
    if len(coded) != len(layers) or len({(m.bits, m.group) for m in coded}) != 1:
        return None
    sizes, first = [m.out_features for m in coded], coded[0]
    if len(coded) == 1:
        return Joined(first.codes, first.scales, first.bits)
    codes, scales = torch.cat([m.codes for m in coded]), torch.cat([m.scales for m in coded])
    for layer, part, scale in zip(coded, codes.split(sizes), scales.split(sizes), strict=True):
        layer.codes, layer.scales = part, scale
    return Joined(codes, scales, first.bits)


class CardLayer:
    """What a `DecoderLayer` computes."""

    def __init__(self, layer: DecoderLayer, qkv: Joined, out: Joined, gate_up: Joined, down: Joined) -> None:
        self.layer, self.qkv, self.out, self.gate_up, self.down = layer, qkv, out, gate_up, down
        self.heads, self.groups = layer.self_attn.heads, layer.self_attn.kv_heads
        self.width = layer.self_attn.head_width

    def whole(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        """Whole sequences `[b, l, e]`; `cos` and `sin` `[b * l, width]`; `bias` `[b, 1, l, l]` is added to scores."""
        batch, length, wide = x.shape
        kernels, width = layer_kernels(), self.width
        flat = x.reshape(-1, wide)
        p = self.qkv.rows(self.layer.input_layernorm(flat))
        kernels.turn_rows(p, cos, sin, self.heads + self.groups)
        parts = p.view(batch, length, -1, width).transpose(1, 2).split([self.heads, self.groups, self.groups], dim=1)
        q, keys, values = parts
        if self.heads != self.groups:
            keys, values = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (keys, values))
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias.expand(-1, self.heads, -1, -1))
        flat = self.out.rows(y.transpose(1, 2).reshape(batch * length, -1), flat)
        h = kernels.gate(self.gate_up.rows(self.layer.post_attention_layernorm(flat)))
        return self.down.rows(h, flat).view(batch, length, wide)

    def one(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        position: Tensor,
        cache: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
    ) -> Tensor:
        """One row `[e]` behind the first slots of a cache; its keys and values are written to `new`."""
        kernels, first, second = layer_kernels(), self.layer.input_layernorm, self.layer.post_attention_layernorm
        p = self.qkv.row(kernels.norm_row(x, first.weight, first.epsilon))
        x = self.out.row(kernels.attend_row(p, cos, sin, cache, position, new), x)
        h = kernels.gate(self.gate_up.row(kernels.norm_row(x, second.weight, second.epsilon))[None])
        return self.down.row(h[0], x)


def card_layers(model: Llama) -> tuple[CardLayer, ...]:
    """The layers of a model as a card takes them; none without Triton, or where one has another form."""
    width = model.spec.head_width
    if layer_kernels() is None or width < SMALLEST_HEAD or width & (width - 1):
        return ()
    found: list[CardLayer] = []
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        own, mlp = layer.self_attn, layer.mlp
        groups: tuple[list[Any], ...] = (
            [own.q_proj, own.k_proj, own.v_proj], [own.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]
        )  # fmt: skip
        parts = [p for g in groups if (p := join(g)) is not None]
        if len(parts) != len(groups):
            return ()
        found.append(CardLayer(layer, *parts))
    return tuple(found)
