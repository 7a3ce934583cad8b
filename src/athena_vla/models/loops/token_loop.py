"""The host loop of the family whose actions are tokens of the language model, one after the other.

Greedy choice, which can be held to action tokens and, row by row of a chunk, to what a robot may do next. Knows no
robot, and no units but [-1, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from athena_vla.errors import ModelError
from athena_vla.models.action_tokens import ActionTokens
from athena_vla.models.contract import Array, Engine, Spec, Value, Values
from athena_vla.models.loops.shared_loop import VlaLoop, VlaSpec

# From the rows chosen so far [b, r, d] to what the next row may be: [b, d, bins], at least one bin each.
Allowed: TypeAlias = Callable[[Float[np.ndarray, "b r d"]], Bool[np.ndarray, "b d bins"]]


@dataclass(frozen=True, kw_only=True)
class OpenVLASpec(VlaSpec):
    constrained: bool = True  # greedy choice among the 256 action tokens only


class TokenLoop(VlaLoop):
    """`language` reads rows behind a cache: the prompt behind an empty one, then token after token."""

    family: ClassVar[str] = "openvla"
    spec_type: ClassVar[type[Spec]] = OpenVLASpec

    def __init__(self, spec: OpenVLASpec, tokenizer_files: Mapping[str, bytes]) -> None:
        super().__init__(spec, tokenizer_files)
        if not spec.body.text.output:
            raise ModelError(
                "The openvla family reads actions from the language model's token output; its body has none."
            )
        self.constrained = spec.constrained
        self.action_tokens = ActionTokens(spec.body.text.vocabulary)

    @property
    def tokens_per_chunk(self) -> int:
        return self.spec.horizon * self.spec.action_dim

    @property
    def bins(self) -> NDArray[np.float64]:
        """[bins] the values in [-1, 1] that can be chosen, ascending."""
        return self.action_tokens.values

    def decode(self, engine: Engine, inputs: Mapping[str, Value], noise: Mapping[str, Value]) -> Float[Array, "b h d"]:
        """Greedy decoding. Raises `ModelError` where an unconstrained model leaves the action tokens."""
        return self.decode_among(engine, inputs, None)

    def decode_among(
        self, engine: Engine, inputs: Mapping[str, Value], allowed: Allowed | None
    ) -> Float[Array, "b h d"]:
        """Like `decode`, with each row chosen from what `allowed` says of it; None allows all."""
        tokens = self.decode_ids(engine, inputs, allowed)
        if not self.constrained and allowed is None:
            wrong = (tokens < self.action_tokens.first) | (tokens >= self.action_tokens.vocabulary)
            if bool(wrong.any()):
                found = sorted(set(tokens[wrong].tolist()))[:5]
                raise ModelError(
                    f"The model answered with tokens that are no actions ({found}). Fine-tune it for this robot, "
                    "or set `constrained` in its specification to choose among action tokens only."
                )
        return self._values(tokens).reshape(-1, self.spec.horizon, self.spec.action_dim)

    def decode_ids(
        self, engine: Engine, inputs: Mapping[str, Value], allowed: Allowed | None = None
    ) -> Int[np.ndarray, "b n"]:
        """The chosen token ids, through the graphs."""
        memory, joints, count = engine.memory, self.spec.action_dim, self.tokens_per_chunk
        ids, mask = np.asarray(inputs["input_ids"]), np.asarray(inputs["prompt_mask"])
        words = engine.run("words", {"input_ids": ids})["words"]
        rows = memory.splice(words, self.see(engine, inputs))
        seen = np.ones((len(ids), self.spec.cameras * self.body_spec.patches), dtype=bool)
        valid = np.concatenate([mask[:, :1], seen, mask[:, 1:]], axis=1)
        # The prompt looks at nothing but itself: one empty slot, since engines take no empty tensors.
        keys: Value = self._empty(len(ids))
        values: Value = keys.copy()
        past = _per_layer(keys, values)
        position = np.zeros(len(ids), dtype=np.int64)
        chosen: list[Value] = []
        allow: Bool[np.ndarray, "b d bins"] | None = None  # what the present row may be
        for i in range(count):
            out = engine.run("language", {"rows": rows, "valid": valid, "position": position, **past})
            if allowed is not None and i % joints == 0:
                so_far = memory.joined(chosen) if chosen else np.zeros((len(ids), 0), dtype=np.int64)
                allow = allowed(self._values(so_far).reshape(len(ids), -1, joints))
            chosen.append(self._choose(engine, out["logits"], None if allow is None else allow[:, i % joints]))
            if i == count - 1:
                break
            if i == 0:
                keys, values = (memory.grown(out.pop(name), count - 1) for name in ("keys", "values"))
                past = _per_layer(memory.layers(keys), memory.layers(values))
            else:
                memory.write(keys, out["keys"], position)
                memory.write(values, out["values"], position)
            position = position + valid.sum(axis=1)
            rows = engine.run("words", {"input_ids": chosen[-1]})["words"]
            valid = np.ones((len(ids), 1), dtype=bool)
        return memory.joined(chosen)

    def _empty(self, batch: int) -> NDArray[np.float32]:
        text = self.body_spec.text
        return np.zeros((text.layers, batch, text.kv_heads, 1, text.head_width), dtype=np.float32)

    def _choose(self, engine: Engine, logits: Value, allowed: Bool[np.ndarray, "b bins"] | None) -> Value:
        """`[b, 1]` token ids. A model held to action tokens answers with their logits alone."""
        memory, tokens = engine.memory, self.action_tokens
        if allowed is None and not self.constrained:
            return memory.largest(logits, 0, self.body_spec.text.rows, None, 0)
        first = 0 if self.constrained else tokens.first
        # Ids count down from the top as values go up.
        flipped = None if allowed is None else np.ascontiguousarray(allowed[:, ::-1])
        return memory.largest(logits, first, first + tokens.bins, flipped, tokens.first)

    def _values(self, tokens: Int[np.ndarray, "b n"]) -> NDArray[np.float32]:
        return self.action_tokens.decode(tokens).astype(np.float32)


def _per_layer(keys: Value, values: Value) -> Values:
    """The cache's layers as inputs of the graph."""
    return {f"keys_{i}": k for i, k in enumerate(keys)} | {f"values_{i}": v for i, v in enumerate(values)}
