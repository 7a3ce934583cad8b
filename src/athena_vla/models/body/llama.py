"""The Llama decoder: RMS norm, rotary positions, grouped queries, SDPA; whole sequences, and rows behind a cache.

Equal to transformers' Llama in the tests, with the released parameter names. Every layer is a small pure module, so
that a graph of any size can be assembled layer by layer. Knows nothing of images, prompts or actions.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from athena_vla.models.body.attention import attend
from athena_vla.models.body.body_spec import LlamaSpec


class RmsNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel of torch's in place of eight
            with torch.autocast("cuda", enabled=False):
                y = F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)
            return y.to(_product_dtype(y))
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        y = self.weight * wide.to(x.dtype)
        # Under autocast each linear layer would convert the same tensor again.
        return y.to(_product_dtype(y))


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    if kind == "meta":  # models without weights are traced and counted; there is no autocast for them
        return x.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rotary(positions: Int[Tensor, "b l"], head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines `[b, 1, l, head_width]` in float32: the sines of the first half are negated."""
    exponent = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponent)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_width / 2) by its angle."""
    first, second = x.chunk(2, dim=-1)
    if x.is_cuda:
        return torch.addcmul(x * cos.to(x.dtype), torch.cat([second, first], dim=-1), sin.to(x.dtype))
    return x * cos.to(x.dtype) + torch.cat([second, first], dim=-1) * sin.to(x.dtype)


def attention_mask(valid: Bool[Tensor, "b l"], causal: bool = True) -> Bool[Tensor, "b 1 l l"]:
    """True where a row may look: never at padding, and with `causal` never ahead."""
    length = valid.shape[1]
    mask = valid[:, None, None, :].expand(-1, 1, length, length)
    if not causal:
        return mask
    place = torch.arange(length, device=valid.device)
    return mask & (place[None, :] <= place[:, None])


def _bias(mask: Bool[Tensor, "b 1 l s"], dtype: torch.dtype) -> Tensor:
    """What is added to scores: nothing where a row may look."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _aligned(bias: Tensor) -> Tensor:
    """The same with rows that begin at a multiple of 16 numbers: torch's kernels copy any other at every layer."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 16))[..., :length]


class SelfAttention(nn.Module):
    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = spec.heads, spec.kv_heads, spec.head_width
        self.q_proj = nn.Linear(spec.width, spec.heads * spec.head_width, bias=False)
        self.k_proj = nn.Linear(spec.width, spec.kv_heads * spec.head_width, bias=False)
        self.v_proj = nn.Linear(spec.width, spec.kv_heads * spec.head_width, bias=False)
        self.o_proj = nn.Linear(spec.heads * spec.head_width, spec.width, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, self.head_width).transpose(1, 2)  # [B, heads, L, width]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every row."""
        return rotate(self.split(self.k_proj(x), self.kv_heads), cos, sin), self.split(self.v_proj(x), self.kv_heads)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Rows of `x` look at `keys` and `values` where `mask` `[b, 1, rows of x, rows of keys]` allows."""
        q = rotate(self.split(self.q_proj(x), self.heads), cos, sin)
        if self.kv_heads != self.heads:
            keys = keys.repeat_interleave(self.heads // self.kv_heads, dim=1)
            values = values.repeat_interleave(self.heads // self.kv_heads, dim=1)
        y = attend(q, keys.to(q.dtype), values.to(q.dtype), mask)
        return self.o_proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def attend_cached(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
    ) -> Tensor:
        """New rows against a cache and themselves; `cache` and `new` are keys and values.

        `biases` are added to the scores of the cache `[b, 1, 1, cache]` and of the new rows `[b, 1, l, l]`.

        Joining the new rows to the cache would copy the cache in every layer, which costs more than the attention; on a
        card it costs less than the launches that it saves.
        """
        if x.is_cuda:
            return self._attend_joined(x, cos, sin, cache, new, biases)
        q = rotate(self.split(self.q_proj(x), self.heads), cos, sin) * self.head_width**-0.5
        groups = self.heads // self.kv_heads
        keys, values, key, value = (t if groups == 1 else t.repeat_interleave(groups, dim=1) for t in (*cache, *new))
        past = q @ keys.to(q.dtype).transpose(-1, -2) + biases[0]
        own = q @ key.transpose(-1, -2) + biases[1]
        weights = torch.cat([past, own], dim=-1).float().softmax(-1).to(q.dtype)
        slots = keys.shape[2]
        y = weights[..., :slots] @ values.to(q.dtype) + weights[..., slots:] @ value
        return self.o_proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def _attend_joined(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
    ) -> Tensor:
        """`attend_cached` in as few kernels as it takes."""
        batch, rows, groups = x.shape[0], x.shape[1], self.heads // self.kv_heads
        q = rotate(self.split(self.q_proj(x), self.heads), cos, sin).flatten(0, 1)
        keys, values = (torch.cat([c.to(x.dtype), n], dim=2) for c, n in zip(cache, new, strict=True))
        if groups != 1:
            keys, values = (t.repeat_interleave(groups, dim=1) for t in (keys, values))
        bias = torch.cat([biases[0].expand(-1, -1, rows, -1), biases[1]], dim=-1).expand(-1, self.heads, -1, -1)
        keys = keys.flatten(0, 1).transpose(1, 2)
        scores = torch.baddbmm(bias.reshape(-1, rows, bias.shape[-1]), q, keys, alpha=self.head_width**-0.5)
        y = scores.softmax(-1) @ values.flatten(0, 1)
        return self.o_proj(y.view(batch, self.heads, rows, -1).transpose(1, 2).reshape(batch, rows, -1))


class Mlp(nn.Module):
    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.up_proj = nn.Linear(spec.width, spec.mlp_width, bias=False)
        self.down_proj = nn.Linear(spec.mlp_width, spec.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(spec.width, spec.rms_epsilon)
        self.self_attn = SelfAttention(spec)
        self.post_attention_layernorm = RmsNorm(spec.width, spec.rms_epsilon)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, tail: int = 0) -> Tensor:
        """Whole sequences; with `tail`, hidden states of the last rows only."""
        y = self.input_layernorm(x)
        keys, values = self.self_attn.project(y, cos, sin)
        if tail:
            x, y, mask = x[:, -tail:], y[:, -tail:], mask[:, :, -tail:]
            cos, sin = cos[:, :, -tail:], sin[:, :, -tail:]
        x = x + self.self_attn.attend(y, cos, sin, keys, values, mask)
        return x + self.mlp(self.post_attention_layernorm(x))

    def extend(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        biases: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New rows behind a cache; returns their hidden states and the keys and values to be stored for them."""
        y = self.input_layernorm(x)
        new = self.self_attn.project(y, cos, sin)
        x = x + self.self_attn.attend_cached(y, cos, sin, cache, new, biases)
        return x + self.mlp(self.post_attention_layernorm(x)), *new


class Decoder(nn.Module):
    """Token table, layers and final norm."""

    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.rows, spec.width)
        self.layers = nn.ModuleList(DecoderLayer(spec) for _ in range(spec.layers))
        self.norm = RmsNorm(spec.width, spec.rms_epsilon)


class OnCard(Protocol):
    """What a layer computes, in as few kernels as a card takes (`card_layer.CardLayer`)."""

    def whole(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, /) -> Tensor: ...

    def one(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        position: Tensor,
        cache: tuple[Tensor, Tensor],
        new: tuple[Tensor, Tensor],
        /,
    ) -> Tensor: ...


class Llama(nn.Module):
    def __init__(self, spec: LlamaSpec) -> None:
        super().__init__()
        self.spec = spec
        self.on_card: Sequence[OnCard] = ()  # set while a card acts: takes the place of the layers
        self.checkpointing = False  # recompute each layer in the backward pass: less memory, a third more time
        self.model = Decoder(spec)
        if spec.output:
            self.lm_head = nn.Linear(spec.width, spec.rows, bias=False)

    def embed(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l e"]:
        return self.model.embed_tokens(ids)

    def forward(
        self,
        x: Float[Tensor, "b l e"],
        mask: Bool[Tensor, "b 1 l l"],
        positions: Int[Tensor, "b l"],
        tail: int = 0,
    ) -> Float[Tensor, "b rows e"]:
        """Hidden states after the final norm; with `tail`, of the last `tail` rows only, which is all they cost."""
        cos, sin = rotary(positions, self.spec.head_width, self.spec.rope_theta)
        cos, sin = cos.to(_product_dtype(x)), sin.to(_product_dtype(x))
        on_card = [cos.flatten(0, 2), sin.flatten(0, 2), _aligned(_bias(mask, x.dtype))] if self.on_card else []
        for i, layer in enumerate(self.model.layers):
            rows = tail if i == self.spec.layers - 1 else 0
            if self.on_card and not rows:
                x = self.on_card[i].whole(x, *on_card)
            elif self.checkpointing and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(layer, x, cos, sin, mask, rows, use_reentrant=False))
            else:
                x = layer(x, cos, sin, mask, rows)
        return self.model.norm(x)

    def extend(
        self,
        x: Float[Tensor, "b l e"],
        valid: Bool[Tensor, "b l"],
        position: Int[Tensor, " b"],
        keys: Sequence[Tensor] | Tensor,
        values: Sequence[Tensor] | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows from `position` on, behind a cache whose slots from `position` on are ignored: a whole prompt behind an
        empty cache, then token after token. Caches are `[b, kv_heads, cache, width]` per layer, one after the other or
        stacked.

        Returns the hidden states and the rows' keys and values `[layers, b, kv_heads, l, head_width]`: the caller
        writes them into the slots from `position` on, so that a cache is never copied through a graph.
        """
        place = position[:, None] + torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = rotary(place, self.spec.head_width, self.spec.rope_theta)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        if self.on_card and x.shape[:2] == (1, 1):
            return self._extend_one(x, cos, sin, position, keys, values)
        slots = torch.arange(keys[0].shape[2], device=x.device)
        filled = (slots[None, :] < position[:, None])[:, None, None]
        biases = (_bias(filled, x.dtype), _bias(attention_mask(valid), x.dtype))
        new_keys, new_values = [], []
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, DecoderLayer)
            x, key, value = layer.extend(x, cos, sin, biases, (keys[i], values[i]))
            new_keys.append(key)
            new_values.append(value)
        return self.model.norm(x), torch.stack(new_keys), torch.stack(new_values)

    def _extend_one(
        self,
        x: Float[Tensor, "1 1 e"],
        cos: Tensor,
        sin: Tensor,
        position: Int[Tensor, " 1"],
        keys: Sequence[Tensor] | Tensor,
        values: Sequence[Tensor] | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`extend` by one row on a card."""
        new_keys, new_values = self.room(x, 1), self.room(x, 1)
        row, cos, sin = x[0, 0], cos.flatten(), sin.flatten()
        for i, layer in enumerate(self.on_card):
            new = (new_keys[i, 0, :, 0], new_values[i, 0, :, 0])
            row = layer.one(row, cos, sin, position, (keys[i][0], values[i][0]), new)
        return self.model.norm(row)[None, None], new_keys, new_values

    def room(self, like: Tensor, slots: int) -> Float[Tensor, "layers b kv slots w"]:
        """Empty slots of a cache, of the batch, type and place of `like`."""
        spec = self.spec
        return like.new_zeros(spec.layers, like.shape[0], spec.kv_heads, slots, spec.head_width)

    @torch.no_grad()
    def initialize(self) -> None:
        """Weights to train from scratch: small residual branches."""
        std = min(0.02 * (768 / self.spec.width) ** 0.5, 0.06)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=std / (2 * self.spec.layers) ** 0.5)
            elif name.endswith("lm_head.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("embed_tokens.weight"):
                nn.init.normal_(parameter, std=0.5)  # words must weigh as much as patches from the first step
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=std)
