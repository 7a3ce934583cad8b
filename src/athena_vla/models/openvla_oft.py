"""Family `openvla_oft`: OpenVLA-OFT's parallel decoding, as its released checkpoints: zero placeholders, L1 head.

One placeholder per joint and time step, all attention bidirectional, hidden states read one position early. The head
takes a time step's joints together, so it grows with their number: for humanoids prefer `openvla_chunk`.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from athena_vla.models.body.body_spec import full_7b_body, tiny_body
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.body.prompt import EOS
from athena_vla.models.contract import Spec
from athena_vla.models.loops.parallel_loop import OftSpec
from athena_vla.models.parallel import ParallelModel, positions_behind


def tiny_spec(*, action_dim: int, state_dim: int, horizon: int = 4, cameras: int = 1, **body: int | float) -> OftSpec:
    """A specification for two CPU cores; `body` overrides the sizes of `prismatic.tiny_body`."""
    return OftSpec(
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=tiny_body(**body, output=False),  # pyright: ignore[reportArgumentType]
    )


def full_7b_spec(*, action_dim: int = 7, state_dim: int = 8, horizon: int = 8, cameras: int = 2) -> OftSpec:
    """The released LIBERO models' sizes."""
    return OftSpec(
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=full_7b_body(output=False),
    )


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    def __init__(self, blocks: int, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(nn.Module):
    """Hidden states of a time step's placeholders, side by side, to its joints; parameter names as released."""

    def __init__(self, blocks: int, width: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMlp(blocks, width * action_dim, width, action_dim)

    def forward(self, hidden: Float[Tensor, "b n e"]) -> Float[Tensor, "b h d"]:
        batch, count, width = hidden.shape
        hidden = hidden.to(self.model.fc1.weight.dtype)
        return self.model(hidden.reshape(batch, count // self.action_dim, self.action_dim * width))


def placeholder_states(
    body: Prismatic,
    patches: Float[Tensor, "b p e"],
    input_ids: Tensor,
    prompt_mask: Bool[Tensor, "b l"],
    state_token: Float[Tensor, "b 1 e"] | None,
    count: int,
) -> Float[Tensor, "b n e"]:
    """Hidden states that stand for the `count` actions, each read from the position before its placeholder.

    Sequence: BOS, patches, state, rest of the prompt, `count` zero vectors, end token; everything sees everything.
    """
    if state_token is not None:
        patches = torch.cat([patches, state_token.to(patches.dtype)], dim=1)
    x, valid = body.splice(patches, input_ids, prompt_mask)
    batch, length, width = x.shape
    end = body.language_model.embed(torch.zeros_like(input_ids[:, :1]) + EOS)
    blank = torch.zeros(batch, count, width, dtype=x.dtype, device=x.device)
    x = torch.cat([x, blank, end], dim=1)
    real = torch.ones_like(valid[:, :1]).expand(-1, count + 1)
    last = patches.shape[1] + prompt_mask.long().sum(dim=1) - 1
    positions = positions_behind(valid, real, prompt_mask)
    valid = torch.cat([valid, real], dim=1)
    hidden = body.language_model(x, attention_mask(valid, causal=False), positions)
    first = torch.gather(hidden, 1, last[:, None, None].expand(-1, 1, width))
    return torch.cat([first, hidden[:, length : length + count - 1]], dim=1)


class OpenVLAOFT(ParallelModel):
    family: ClassVar[str] = "openvla_oft"
    spec_type: ClassVar[type[Spec]] = OftSpec

    def __init__(self, spec: OftSpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files, body)
        self.head = L1Head(spec.head_blocks, spec.body.text.width, spec.action_dim)

    @property
    def action_tokens(self) -> int:
        return self.spec.horizon * self.spec.action_dim

    def hidden(
        self,
        patches: Tensor,
        input_ids: Tensor,
        prompt_mask: Tensor,
        state: Tensor | None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[b, h * d, e]`."""
        assert given is None  # `prefix` is 0
        token = None if state is None else self.state_projector(state)
        return placeholder_states(self.body, patches, input_ids, prompt_mask, token, self.action_tokens)

    def head_modules(self) -> list[str]:
        return [*(["state_projector"] if self.proprio else []), "head"]
