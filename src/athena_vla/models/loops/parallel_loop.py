"""The host loops of the families that read a whole chunk out of one pass: vision, language, head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from athena_vla.errors import ModelError
from athena_vla.models.contract import Array, Engine, ModelInput, Spec, Value
from athena_vla.models.loops.shared_loop import VlaLoop, VlaSpec


@dataclass(frozen=True, kw_only=True)
class ParallelSpec(VlaSpec):
    proprio: bool = True  # the state is an input; without, the policy sees images and words only


@dataclass(frozen=True, kw_only=True)
class ChunkSpec(ParallelSpec):
    head_width: int = 256
    prefix: int = 0  # most rows of the chunk before that the model is given, to go on from them; 0 = never any

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prefix < self.horizon:
            raise ModelError(
                f"A prefix of {self.prefix} rows does not fit a chunk of {self.horizon}: at least one row stays free."
            )

    def to_dict(self) -> dict[str, Any]:
        raw = super().to_dict()
        if not self.prefix:  # a model without the option is written, and hashed, as before there was one
            del raw["prefix"]
        return raw


@dataclass(frozen=True, kw_only=True)
class OftSpec(ParallelSpec):
    head_blocks: int = 2


class ParallelLoop(VlaLoop):
    """Base of the parallel loops; abstract."""

    def __init__(self, spec: ParallelSpec, tokenizer_files: Mapping[str, bytes]) -> None:
        super().__init__(spec, tokenizer_files)
        self.proprio = spec.proprio

    @property
    def reads_state(self) -> bool:
        return self.proprio

    def decode(self, engine: Engine, inputs: Mapping[str, Value], noise: Mapping[str, Value]) -> Float[Array, "b h d"]:
        names = ("input_ids", "prompt_mask", *(("state",) if self.proprio else ()), "given")
        language = {"patches": self.see(engine, inputs), **{n: inputs[n] for n in names if n in inputs}}
        hidden = engine.run("language", language)["hidden"]
        return engine.memory.read(engine.run("head", {"hidden": hidden})["actions"]).astype(np.float32, copy=False)


class ChunkLoop(ParallelLoop):
    family: ClassVar[str] = "openvla_chunk"
    spec_type: ClassVar[type[Spec]] = ChunkSpec

    def __init__(self, spec: ChunkSpec, tokenizer_files: Mapping[str, bytes]) -> None:
        super().__init__(spec, tokenizer_files)
        self.chunk_spec = spec

    @property
    def prefix(self) -> int:
        return self.chunk_spec.prefix

    def collate(self, inputs: Sequence[ModelInput]) -> dict[str, Array]:
        """With the option on also `given` `[b, p, d + 1]`: rows and a one, zeros where no row is given."""
        arrays = super().collate(inputs)
        if self.prefix:
            arrays["given"] = np.zeros((len(inputs), self.prefix, self.spec.action_dim + 1), dtype=np.float32)
            for place, item in zip(arrays["given"], inputs, strict=True):
                if item.given is not None:
                    place[: len(item.given), :-1] = item.given
                    place[: len(item.given), -1] = 1.0
        return arrays


class OftLoop(ParallelLoop):
    family: ClassVar[str] = "openvla_oft"
    spec_type: ClassVar[type[Spec]] = OftSpec
