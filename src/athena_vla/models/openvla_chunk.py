"""Family `openvla_chunk`: one query token per time step, one forward pass per chunk, L1; the default to deploy.

The decoder reads [BOS, patches, prompt, state, queries] causally, so a pretrained decoder keeps its mask. One small
head turns each query's hidden state into the joints of that time step: parameters do not grow with the horizon.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from athena_vla.models.architecture import Graph
from athena_vla.models.body.body_spec import PrismaticSpec, full_7b_body, tiny_body
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.contract import Spec
from athena_vla.models.loops.parallel_loop import ChunkSpec
from athena_vla.models.loops.shared_loop import VlaSpec
from athena_vla.models.parallel import ParallelModel, positions_behind
from athena_vla.models.robot_sizes import Sizes
from athena_vla.models.vla import LONGEST_PROMPT, CausalDecoder

_TIME_WAVES = 32  # sines and cosines that tell one query from the next
_WIDE_HEAD = 1024  # hidden units of the head on a body at least as wide


def tiny_spec(*, action_dim: int, state_dim: int, horizon: int = 8, cameras: int = 1, **body: int | float) -> ChunkSpec:
    """A specification for two CPU cores; `body` overrides the sizes of `prismatic.tiny_body`."""
    return ChunkSpec(
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=tiny_body(**body, output=False),  # pyright: ignore[reportArgumentType]
    )


def full_7b_spec(*, action_dim: int, state_dim: int, horizon: int = 16, cameras: int = 1) -> ChunkSpec:
    """On openvla-7b's body, without its token output."""
    return ChunkSpec(
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=full_7b_body(output=False),
        head_width=_WIDE_HEAD,
    )


class Queries(nn.Module):
    """One token per time step: a learned token plus a learned map of the step's sines. No parameter counts steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(width))
        self.time = nn.Linear(2 * _TIME_WAVES, width, bias=False)

    def forward(self, horizon: int) -> Float[Tensor, "h e"]:
        weight = self.time.weight
        step = torch.arange(horizon, device=weight.device, dtype=torch.float32)
        wave = torch.arange(_TIME_WAVES, device=weight.device, dtype=torch.float32) / _TIME_WAVES
        angles = step[:, None] * (0.002**wave)[None, :]  # periods from 6 to 3,000 steps
        features = torch.cat([angles.sin(), angles.cos()], dim=1).to(weight.dtype)
        return self.base + self.time(features)


class Given(nn.Module):
    """What a query learns about its row where that is decided already: the action, and that it is given.

    A row is its action in [-1, 1] and a one; a row that is not given is all zeros and adds nothing. The weights begin
    at zero, so the option changes no answer before it has been trained.
    """

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, action_dim + 1))

    def forward(self, given: Float[Tensor, "b p r"]) -> Float[Tensor, "b p e"]:
        return F.linear(given.to(self.weight.dtype), self.weight)


class ChunkHead(nn.Module):
    """Hidden state of one time step to its joints, the same weights for every step."""

    def __init__(self, width: int, hidden: int, action_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, action_dim)

    def forward(self, hidden: Float[Tensor, "b h e"]) -> Float[Tensor, "b h d"]:
        # Heads may be kept in float32 above a body in bfloat16.
        return self.fc2(F.gelu(self.fc1(self.norm(hidden.to(self.norm.weight.dtype)))))


class RowsGraph(nn.Module):
    """Graph `rows`: patches, prompt and what the model reads besides, to the rows of the decoder."""

    def __init__(self, model: "OpenVLAChunk") -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        patches: Tensor,
        input_ids: Tensor,
        prompt_mask: Tensor,
        state: Tensor | None = None,
        given: Tensor | None = None,
    ) -> tuple[Tensor]:
        return (self.model.rows(patches, input_ids, prompt_mask, state, given)[0],)


class OpenVLAChunk(ParallelModel):
    family: ClassVar[str] = "openvla_chunk"
    spec_type: ClassVar[type[Spec]] = ChunkSpec

    def __init__(self, spec: ChunkSpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files, body)
        self.chunk_spec = spec
        width = spec.body.text.width
        self.queries = Queries(width)
        self.head = ChunkHead(width, spec.head_width, spec.action_dim)
        if spec.prefix:
            self.given = Given(width, spec.action_dim)
        self._initialize_heads()

    @property
    def action_tokens(self) -> int:
        return self.spec.horizon

    def hidden(
        self,
        patches: Tensor,
        input_ids: Tensor,
        prompt_mask: Tensor,
        state: Tensor | None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the queries `[b, h, e]`."""
        x, valid, positions = self.rows(patches, input_ids, prompt_mask, state, given)
        return self.body.language_model(x, attention_mask(valid), positions, tail=self.chunk_spec.horizon)

    def rows(
        self,
        patches: Tensor,
        input_ids: Tensor,
        prompt_mask: Tensor,
        state: Tensor | None,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder reads `[b, n, e]`, which of it counts `[b, n]`, and where it stands `[b, n]`."""
        x, valid = self.body.splice(patches, input_ids, prompt_mask)
        queries = self.queries(self.chunk_spec.horizon).to(x.dtype)[None].expand(x.shape[0], -1, -1)
        if given is not None:
            # Causal: what the first queries are given reaches every later one.
            known = queries[:, : self.prefix] + self.given(given).to(x.dtype)
            queries = torch.cat([known, queries[:, self.prefix :]], dim=1)
        extra = [queries] if state is None else [self.state_projector(state).to(x.dtype), queries]
        x = torch.cat([x, *extra], dim=1)
        real = torch.ones_like(valid[:, :1]).expand(-1, x.shape[1] - valid.shape[1])
        positions = positions_behind(valid, real, prompt_mask)
        return x, torch.cat([valid, real], dim=1), positions

    def causal_decoder(self) -> CausalDecoder:
        vision, language, head = self.graphs()
        reads, sizes = language.example, (language.dynamic, language.profiles)
        rows = Graph("rows", RowsGraph(self), reads, ("rows",), *sizes)
        horizon = self.spec.horizon
        longest = self.spec.cameras * self.body_spec.patches + LONGEST_PROMPT + horizon + 1
        return CausalDecoder((vision, rows, head), horizon, False, 0, 0, longest)

    def head_modules(self) -> list[str]:
        given = ["given"] if self.prefix else []
        return [*(["state_projector"] if self.proprio else []), "queries", *given, "head"]

    @classmethod
    def spec_on(cls, body: PrismaticSpec, sizes: Sizes, **own: int) -> VlaSpec:
        width = _WIDE_HEAD if body.text.width >= _WIDE_HEAD else ChunkSpec.head_width
        return super().spec_on(body, sizes, **{"head_width": width, **own})

    def rebind(self, spec: Spec) -> "OpenVLAChunk":
        """Another robot on the same body. The query tokens and the head's first layer, whose sizes no robot changes,
        are carried over; the state projector and the last layer start fresh. For the same robot with another prefix
        all of it is carried over.
        """
        assert isinstance(spec, ChunkSpec)
        other = super().rebind(spec)
        if spec != self.chunk_spec and dataclasses.replace(spec, prefix=self.prefix) == self.chunk_spec:
            for path in set(self.head_modules()) & set(other.head_modules()):
                other.get_submodule(path).load_state_dict(self.get_submodule(path).state_dict())
            return other
        assert isinstance(other, OpenVLAChunk)
        if other.chunk_spec.head_width == self.chunk_spec.head_width:
            assert isinstance(other.head, ChunkHead)
            assert isinstance(self.head, ChunkHead)
            other.head.norm.load_state_dict(self.head.norm.state_dict())
            other.head.fc1.load_state_dict(self.head.fc1.state_dict())
        other.queries.load_state_dict(self.queries.state_dict())
        return other

    @torch.no_grad()
    def _initialize_heads(self) -> None:
        assert isinstance(self.head, ChunkHead)
        nn.init.normal_(self.queries.base, std=0.5)
        nn.init.normal_(self.queries.time.weight, std=(2 * _TIME_WAVES) ** -0.5 / 2)
        nn.init.normal_(self.head.fc2.weight, std=0.02)
        nn.init.zeros_(self.head.fc2.bias)
