"""Family `openvla`: actions as tokens of the language model, one after the other, as the released openvla-7b.

Reads images and the instruction, never the state. Each joint of each time step is one of 256 tokens; `loops.token_loop`
chooses them.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from athena_vla.models.action_tokens import ActionTokens
from athena_vla.models.architecture import SMALLEST_WEIGHT, Graph, Tensors
from athena_vla.models.body.body_spec import full_7b_body, tiny_body
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.body.prompt import EOS
from athena_vla.models.contract import Spec
from athena_vla.models.loops.token_loop import OpenVLASpec
from athena_vla.models.vla import LONGEST_PROMPT, CausalDecoder, VisionLanguageModel
from athena_vla.models.weights.packed_linear import CardLinear


def tiny_spec(
    *, action_dim: int, state_dim: int, horizon: int = 1, cameras: int = 1, **body: int | float
) -> OpenVLASpec:
    """A specification for two CPU cores; `body` overrides the sizes of `prismatic.tiny_body`."""
    return OpenVLASpec(
        horizon=horizon,
        action_dim=action_dim,
        state_dim=state_dim,
        cameras=cameras,
        body=tiny_body(**body),  # pyright: ignore[reportArgumentType]
    )


def full_7b_spec(*, action_dim: int = 7, state_dim: int = 0, horizon: int = 1, cameras: int = 1) -> OpenVLASpec:
    """The released openvla-7b's sizes."""
    return OpenVLASpec(
        horizon=horizon, action_dim=action_dim, state_dim=state_dim, cameras=cameras, body=full_7b_body()
    )


class WordsGraph(nn.Module):
    """Graph `words`: token ids to the decoder's rows."""

    def __init__(self, model: "OpenVLA") -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model.body.language_model.embed(input_ids),)


class LanguageGraph(nn.Module):
    """Graph `language`: rows behind a cache to the logits of the token after the last, and the rows' own cache.

    Prompt and single tokens are calls of one graph, so that an engine holds the weights once. Every layer's cache is
    an input of its own: taken out of one large tensor, each would be copied first.
    """

    def __init__(self, model: "OpenVLA") -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Tensor, valid: Tensor, position: Tensor, **cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        language = self.model.body.language_model
        layers = range(language.spec.layers)
        keys, values = ([cache[f"{kind}_{i}"] for i in layers] for kind in ("keys", "values"))
        hidden, key, value = language.extend(rows, valid, position, keys, values)
        last = valid.long().sum(dim=1) - 1
        row = torch.gather(hidden, 1, last[:, None, None].expand(-1, 1, hidden.shape[2]))
        return self.model.choices(row)[:, 0], key, value


class OpenVLA(VisionLanguageModel):
    family: ClassVar[str] = "openvla"
    spec_type: ClassVar[type[Spec]] = OpenVLASpec
    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: OpenVLASpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files, body)
        self.token_spec = spec
        self.action_tokens = ActionTokens(spec.body.text.vocabulary)
        # No buffer: it stays in float64 whatever the weights become.
        self.edges = torch.from_numpy(self.action_tokens.edges)

    def choices(self, hidden: Float[Tensor, "b l e"]) -> Float[Tensor, "b l v"]:
        """Logits of the tokens that may be answered: the action tokens alone, where the choice is held to them."""
        output, tokens = self.body.language_model.lm_head, self.action_tokens
        if not self.token_spec.constrained:
            return output(hidden)
        if hidden.is_cuda and isinstance(output, CardLinear):  # what is not answered is not read either
            return output.some(tokens.first, tokens.vocabulary)(hidden)
        if hidden.is_cuda and type(output) is nn.Linear:
            return F.linear(hidden, output.weight[tokens.first : tokens.vocabulary])
        return output(hidden)[..., tokens.first : tokens.vocabulary]

    def answer_logits(self, inputs: Tensors, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n1 v"]:
        """Teacher-forced logits for each of `tokens` and for what follows the last."""
        ids, mask = inputs["input_ids"], inputs["prompt_mask"]
        batch, count = tokens.shape
        lengths = mask.long().sum(dim=1)
        # The answer follows each prompt directly; padding ends up behind it.
        full = torch.cat([ids, torch.full_like(ids[:, :1], self.prompter.pad).expand(-1, count)], dim=1)
        place = lengths[:, None] + torch.arange(count, device=ids.device)[None]
        full = full.scatter(1, place, tokens)
        valid = torch.arange(full.shape[1], device=ids.device)[None] < (lengths + count)[:, None]
        patches = self.encode_images(inputs)
        x, valid = self.body.splice(patches, full, valid)
        positions = torch.arange(x.shape[1], device=x.device)[None].expand(batch, -1)
        language = self.body.language_model
        # The last layer computes the words' rows only, and the large output layer those that predict an answer.
        hidden = language(x, attention_mask(valid), positions, tail=full.shape[1] - 1)
        rows = lengths[:, None] - 2 + torch.arange(count + 1, device=ids.device)[None]
        return language.lm_head(torch.gather(hidden, 1, rows[:, :, None].expand(-1, -1, hidden.shape[2])))

    def loss(self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]) -> Float[Tensor, ""]:
        """Cross entropy over action tokens and the end token, averaged over the batch's counted tokens."""
        each = self._entropies(inputs, target)
        loss = (each * self._counted_tokens(valid)).sum() / self.counted(valid).clamp(min=SMALLEST_WEIGHT)
        # On a card nobody has looked for NaN: it becomes the loss, which the training stops at.
        return loss + 0.0 * target.sum() if target.is_cuda else loss

    def sums(
        self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        counted = self._counted_tokens(valid)
        each = (self._entropies(inputs, target) * counted).sum(dim=1)
        return each + 0.0 * target.sum() if target.is_cuda else each, counted.sum(dim=1).float()

    def _entropies(self, inputs: Tensors, target: Tensor) -> Tensor:
        """Cross entropy of each action token and of the end token `[b, h * d + 1]`."""
        batch = target.shape[0]
        tokens = self._tokens_of(target.detach().float()).reshape(batch, -1)
        logits = self.answer_logits(inputs, tokens).float()
        wanted = torch.cat([tokens, torch.full_like(tokens[:, :1], EOS)], dim=1)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").reshape(wanted.shape)

    def _tokens_of(self, unit: Tensor) -> Tensor:
        """`ActionTokens.encode` where the actions are; on a card without reading them."""
        if not unit.is_cuda:
            return torch.from_numpy(self.action_tokens.encode(unit.numpy()))
        return self.encoded(unit)

    def encoded(self, unit: Tensor) -> Tensor:
        """The same in torch; NaN is not refused."""
        if self.edges.device != unit.device:
            self.edges = self.edges.to(unit.device, non_blocking=True)
        below = torch.bucketize(unit.clamp(-1.0, 1.0).double(), self.edges, right=True)
        return self.action_tokens.vocabulary - below

    def counted(self, valid: Shaped[Tensor, "b h"]) -> Float[Tensor, ""]:
        """Tokens: one per joint of a valid step, and the end token of a chunk whose last step is valid."""
        return self._counted_tokens(valid).sum().float()

    def _counted_tokens(self, valid: Tensor) -> Tensor:
        return torch.cat([valid.repeat_interleave(self.spec.action_dim, dim=1), valid[:, -1:]], dim=1)

    def graphs(self) -> tuple[Graph, ...]:
        inputs = self.example_inputs()
        text = self.body_spec.text
        patches = self.spec.cameras * self.body_spec.patches
        length = patches + inputs["input_ids"].shape[1]
        (rows,) = self.example_embeddings(length)
        caches = {f"{kind}_{i}": {0: "batch", 2: "cache"} for kind in ("keys", "values") for i in range(text.layers)}
        longest, answer = patches + LONGEST_PROMPT, self.spec.horizon * self.spec.action_dim
        return (
            self.vision_graph(inputs),
            Graph(
                "words",
                WordsGraph(self),
                {"input_ids": inputs["input_ids"]},
                ("words",),
                {"input_ids": {0: "batch", 1: "tokens"}},
                ({"tokens": (1, 32, LONGEST_PROMPT)},),
            ),
            Graph(
                "language",
                LanguageGraph(self),
                {
                    "rows": rows,
                    "valid": torch.ones(1, length, dtype=torch.bool, device=rows.device),
                    "position": torch.zeros(1, dtype=torch.int64, device=rows.device),
                    **{name: rows.new_zeros(1, text.kv_heads, 2, text.head_width) for name in caches},
                },
                ("logits", "keys", "values"),
                {"rows": {0: "batch", 1: "rows"}, "valid": {0: "batch", 1: "rows"}, "position": {0: "batch"}, **caches},
                (
                    {"rows": (patches + 1, length, longest), "cache": (1, 1, 1)},
                    {"rows": (1, 1, 1), "cache": (patches + 1, length, longest + answer)},
                ),
            ),
        )

    def causal_decoder(self) -> CausalDecoder:
        vision, words, _ = self.graphs()
        first, last = 0, self.body_spec.text.rows
        if self.token_spec.constrained:
            first, last = self.action_tokens.first, self.action_tokens.vocabulary
        answer = self.spec.horizon * self.spec.action_dim
        longest = self.spec.cameras * self.body_spec.patches + LONGEST_PROMPT + answer
        return CausalDecoder((vision, words), 1, True, first, last, longest)

    def head_modules(self) -> list[str]:
        """None: the language model's own output speaks every robot's tokens."""
        return []
