"""Family `openvla`: actions as tokens of the language model, one after the other, as the released openvla-7b.

Reads images and the instruction, never the state. Each joint of each time step is one of 256 tokens; greedy decoding
can be held to action tokens and to bins inside joint limits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from athena_vla.errors import ModelError
from athena_vla.models.action_tokens import ActionTokens
from athena_vla.models.architecture import SMALLEST_WEIGHT, Graph, Run, Spec, Tensors
from athena_vla.models.body.llama import attention_mask
from athena_vla.models.body.prismatic import Prismatic, full_7b_body, spliced, tiny_body
from athena_vla.models.body.prompt import EOS
from athena_vla.models.choice import Allowed, Chooses
from athena_vla.models.vla import LONGEST_PROMPT, VisionLanguageModel, VlaSpec


@dataclass(frozen=True, kw_only=True)
class OpenVLASpec(VlaSpec):
    constrained: bool = True  # greedy choice among the 256 action tokens only


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


class OpenVLA(VisionLanguageModel, Chooses):
    family: ClassVar[str] = "openvla"
    spec_type: ClassVar[type[Spec]] = OpenVLASpec
    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: OpenVLASpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files, body)
        if not spec.body.text.output:
            raise ModelError(
                "The openvla family reads actions from the language model's token output; its body has none."
            )
        self.token_spec = spec
        self.action_tokens = ActionTokens(spec.body.text.vocabulary)

    @property
    def tokens_per_chunk(self) -> int:
        return self.spec.horizon * self.spec.action_dim

    def choices(self, hidden: Float[Tensor, "b l e"]) -> Float[Tensor, "b l v"]:
        """Logits of the tokens that may be answered: the action tokens alone, where the choice is held to them."""
        logits = self.body.language_model.lm_head(hidden)
        if not self.token_spec.constrained:
            return logits
        return logits[..., self.action_tokens.first : self.action_tokens.vocabulary]

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
        batch = target.shape[0]
        tokens = torch.from_numpy(self.action_tokens.encode(target.detach().float().cpu().numpy()))
        tokens = tokens.reshape(batch, -1).to(target.device)
        logits = self.answer_logits(inputs, tokens).float()
        wanted = torch.cat([tokens, torch.full_like(tokens[:, :1], EOS)], dim=1)
        each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").reshape(wanted.shape)
        return (each * self._counted_tokens(valid)).sum() / self.counted(valid).clamp(min=SMALLEST_WEIGHT)

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
        longest = patches + LONGEST_PROMPT
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
                    {"rows": (1, 1, 1), "cache": (patches + 1, length, longest + self.tokens_per_chunk)},
                ),
            ),
        )

    def decode(self, run: Run, inputs: Tensors, noise: Tensors) -> Float[Tensor, "b h d"]:
        """Greedy decoding. Raises `ModelError` where an unconstrained model leaves the action tokens."""
        return self.decode_among(run, inputs, None)

    def decode_among(self, run: Run, inputs: Tensors, allowed: Allowed | None) -> Float[Tensor, "b h d"]:
        """Greedy decoding among the bins that are allowed."""
        tokens = self.decode_ids(run, inputs, allowed)
        if not self.token_spec.constrained and allowed is None:
            wrong = (tokens < self.action_tokens.first) | (tokens >= self.action_tokens.vocabulary)
            if bool(wrong.any()):
                found = sorted(set(tokens[wrong].tolist()))[:5]
                raise ModelError(
                    f"The model answered with tokens that are no actions ({found}). Fine-tune it for this robot, "
                    "or set `constrained` in its specification to choose among action tokens only."
                )
        return torch.from_numpy(self._values(tokens)).reshape(-1, self.spec.horizon, self.spec.action_dim)

    def decode_ids(self, run: Run, inputs: Tensors, allowed: Allowed | None = None) -> Int[Tensor, "b n"]:
        """The chosen token ids, through the graphs."""
        words = run("words", {"input_ids": inputs["input_ids"]})["words"]
        patches = self.run_vision(run, inputs).to(words.device)
        rows, valid = spliced(patches, words, inputs["prompt_mask"].to(words.device))
        language, joints, count = self.body.language_model, self.spec.action_dim, self.tokens_per_chunk
        # The prompt looks at nothing but itself: one empty slot, since engines take no empty tensors.
        keys, values = language.room(rows, 1), language.room(rows, 1)
        position = valid.new_zeros(len(valid), dtype=torch.int64)
        chosen: list[Tensor] = []
        allow: Tensor | None = None  # [b, d, bins]: what the present row may be
        for i in range(count):
            out = run("language", {"rows": rows, "valid": valid, "position": position, **_per_layer(keys, values)})
            if allowed is not None and i % joints == 0:
                so_far = torch.stack(chosen, dim=1).cpu() if chosen else torch.empty(len(rows), 0, dtype=torch.int64)
                allow = torch.from_numpy(allowed(self._values(so_far).reshape(len(rows), -1, joints)))
            chosen.append(self._choose(out["logits"], None if allow is None else allow[:, i % joints]))
            if i == count - 1:
                break
            if i == 0:
                keys, values = (_grown(out.pop(name), count - 1) for name in ("keys", "values"))
            else:
                batch = torch.arange(len(rows), device=rows.device)
                for cache, new in ((keys, out["keys"]), (values, out["values"])):
                    # [layers, b, kv, 1, width] -> the slot of each row
                    cache[:, batch, :, position] = new[:, :, :, 0].transpose(0, 1).to(cache)
            position = position + valid.sum(dim=1)
            rows = run("words", {"input_ids": chosen[-1][:, None]})["words"]
            valid = torch.ones_like(valid[:, :1])
        return torch.stack(chosen, dim=1)

    @property
    def bins(self) -> NDArray[np.float64]:
        return self.action_tokens.values

    def head_modules(self) -> list[str]:
        """None: the language model's own output speaks every robot's tokens."""
        return []

    def _choose(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        if allowed is None and not self.token_spec.constrained:
            return logits.argmax(dim=1)
        first, last = self.action_tokens.first, self.action_tokens.vocabulary
        action = logits if self.token_spec.constrained else logits[:, first:last]
        if allowed is not None:
            # Ids count down from the top as values go up.
            action = action.masked_fill(~allowed.flip(1).to(action.device), -torch.inf)
        return action.argmax(dim=1) + first

    def _values(self, tokens: Tensor) -> NDArray[np.float32]:
        return self.action_tokens.decode(tokens.cpu().numpy()).astype(np.float32)


def _per_layer(keys: Tensor, values: Tensor) -> Tensors:
    """The cache's layers as inputs of the graph: views."""
    return {f"keys_{i}": k for i, k in enumerate(keys)} | {f"values_{i}": v for i, v in enumerate(values)}


def _grown(cache: Tensor, slots: int) -> Tensor:
    """The prompt's cache with empty slots behind it."""
    wide = cache.new_zeros((*cache.shape[:3], cache.shape[3] + slots, cache.shape[4]))
    wide[:, :, :, : cache.shape[3]] = cache
    return wide
