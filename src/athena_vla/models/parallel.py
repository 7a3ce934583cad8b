"""What the families share that read a whole chunk out of one pass: state token, graphs, L1 loss and host loop.

A family says which hidden states stand for its actions, and brings the head that reads them.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from athena_vla.models.architecture import SMALLEST_WEIGHT, Graph, Tensors
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.loops.parallel_loop import ParallelSpec
from athena_vla.models.vla import LONGEST_PROMPT, VisionLanguageModel


def positions_behind(valid: Tensor, real: Tensor, prompt_mask: Tensor) -> Tensor:
    """Positions `[b, l + n]` of rows of which the prompt's `valid` `[b, l]` and the `real` `[b, n]` behind it count.

    The prompt's padding lies between the two and is not counted, so its amount changes nothing; its own rows stand
    where the last word does. By the prompt's length: a running sum is a loop over rows in TensorRT.
    """
    counted = torch.cat([valid, real], dim=1)
    behind = torch.cat([torch.zeros_like(valid), real], dim=1)
    padded = (~prompt_mask).long().sum(dim=1, keepdim=True)
    place = torch.arange(counted.shape[1], device=valid.device)[None] - padded * behind.long()
    return torch.where(counted, place, valid.long().sum(dim=1, keepdim=True) - 1)


class StateProjector(nn.Module):
    """The state as one token."""

    def __init__(self, state_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Float[Tensor, "b s"]) -> Float[Tensor, "b 1 e"]:
        return self.fc2(F.gelu(self.fc1(state.to(self.fc1.weight.dtype))))[:, None]


class LanguageGraph(nn.Module):
    """Graph `language`: patches, prompt and, where the model reads them, state and rows given, to hidden states."""

    def __init__(self, model: "ParallelModel") -> None:
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
        return (self.model.hidden(patches, input_ids, prompt_mask, state, given),)


class HeadGraph(nn.Module):
    """Graph `head`: hidden states to actions in [-1, 1]."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (self.head(hidden).clamp(-1.0, 1.0),)


class ParallelModel(VisionLanguageModel):
    """Base of the parallel families; abstract. A family sets `head`."""

    head: nn.Module

    def __init__(self, spec: ParallelSpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files, body)
        self.proprio = spec.proprio
        if spec.proprio:
            self.state_projector = StateProjector(spec.state_dim, spec.body.text.width)

    @property
    @abstractmethod
    def action_tokens(self) -> int:
        """How many hidden states stand for a chunk."""

    @abstractmethod
    def hidden(
        self,
        patches: Tensor,
        input_ids: Tensor,
        prompt_mask: Tensor,
        state: Tensor | None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of the actions `[b, action_tokens, e]`; `given` is None for a model whose `prefix` is 0."""

    def loss(self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]) -> Float[Tensor, ""]:
        """Mean absolute error over joints and valid steps."""
        return (self._errors(inputs, target) * valid).sum() / self.counted(valid).clamp(min=SMALLEST_WEIGHT)

    def sums(
        self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        return (self._errors(inputs, target) * valid).sum(dim=1), valid.sum(dim=1).float()

    def _errors(self, inputs: Tensors, target: Tensor) -> Tensor:
        """Mean absolute error over joints `[b, h]`."""
        state = inputs["state"] if self.proprio else None
        patches = self.encode_images(inputs)
        hidden = self.hidden(patches, inputs["input_ids"], inputs["prompt_mask"], state, inputs.get("given"))
        return (self.head(hidden).float() - target).abs().mean(dim=2)

    def graphs(self) -> tuple[Graph, ...]:
        inputs = self.example_inputs()
        patches, hidden = self.example_embeddings(self.spec.cameras * self.body_spec.patches, self.action_tokens)
        language = {"patches": patches} | {k: inputs[k] for k in ("input_ids", "prompt_mask")}
        language |= {k: inputs[k] for k in (["state"] if self.proprio else []) + ["given"] if k in inputs}
        text = {0: "batch", 1: "tokens"}
        return (
            self.vision_graph(inputs),
            Graph(
                "language",
                LanguageGraph(self),
                language,
                ("hidden",),
                {n: text if n in ("input_ids", "prompt_mask") else {0: "batch"} for n in language},
                ({"tokens": (2, 32, LONGEST_PROMPT)},),
            ),
            Graph("head", HeadGraph(self.head), {"hidden": hidden}, ("actions",), {"hidden": {0: "batch"}}),
        )
