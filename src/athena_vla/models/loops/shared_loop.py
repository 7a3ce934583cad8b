"""What the families' host loops share: a specification with a body, and one batch of inputs from observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from athena_vla.errors import InvalidObservation, ModelError
from athena_vla.models.body.body_spec import PrismaticSpec
from athena_vla.models.body.images import pixels
from athena_vla.models.body.prompt import Prompter
from athena_vla.models.contract import Array, Engine, HostLoop, ModelInput, Spec, Value

SINGLE_TOKEN = "step"  # the stage in which tokens are decoded one by one


@dataclass(frozen=True, kw_only=True)
class VlaSpec(Spec):
    """A body and the robot's sizes."""

    body: PrismaticSpec

    def __post_init__(self) -> None:
        for name in ("horizon", "action_dim", "cameras"):
            if getattr(self, name) < 1:
                raise ModelError(f"A {type(self).__name__} needs at least one {name}, it has {getattr(self, name)}.")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VlaSpec":
        values: dict[str, Any] = {k: PrismaticSpec.from_dict(v) if k == "body" else v for k, v in raw.items()}
        return cls(**values)


def stage_of(graph: str, inputs: Mapping[str, Value]) -> str:
    """What a call is named where time is counted: a graph with a cache reads the prompt, then single tokens."""
    if "position" not in inputs:
        return graph
    return SINGLE_TOKEN if inputs["valid"].shape[1] == 1 else "prefill"


class VlaLoop(HostLoop):
    """Base of the loops; abstract."""

    def __init__(self, spec: VlaSpec, tokenizer_files: Mapping[str, bytes]) -> None:
        super().__init__(spec, tokenizer_files)
        self.body_spec = spec.body
        self.prompter = Prompter(tokenizer_files, spec.body.template, spec.body.max_prompt_tokens)

    def collate(self, inputs: Sequence[ModelInput]) -> dict[str, Array]:
        """`pixel_values`, `input_ids`, `prompt_mask`, `state`: right-padded."""
        for item in inputs:
            self._require(item)
        # Items may share their images: several questions about one frame, or blank ones beside cached features.
        pictures = {id(item.images): item for item in inputs}
        whole = replace(self.body_spec.images, crop_area=1.0)
        ready = {
            key: np.concatenate([pixels(im, whole if item.cropped else self.body_spec.images) for im in item.images])
            for key, item in pictures.items()
        }
        known = {text: self.prompter.answer_ids(text) for text in {item.instruction for item in inputs}}
        prompts = [known[item.instruction] for item in inputs]
        lengths = np.array([len(p) for p in prompts])
        ids = np.full((len(prompts), int(lengths.max())), self.prompter.pad, dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return {
            "pixel_values": np.stack([ready[id(item.images)] for item in inputs]),
            "input_ids": ids,
            "prompt_mask": np.arange(ids.shape[1])[None, :] < lengths[:, None],
            "state": np.stack([item.state for item in inputs]).astype(np.float32),
        }

    def see(self, engine: Engine, inputs: Mapping[str, Value]) -> Value:
        """Patch embeddings through the graph `vision`; inputs may carry them as `patches`."""
        if "patches" in inputs:
            return inputs["patches"]
        return engine.run("vision", {"pixel_values": inputs["pixel_values"]})["patches"]

    def _require(self, item: ModelInput) -> None:
        if len(item.images) != self.spec.cameras:
            raise InvalidObservation(f"The model takes {self.spec.cameras} cameras, it got {len(item.images)}.")
        if item.state.shape != (self.spec.state_dim,) or not np.isfinite(item.state).all():
            raise InvalidObservation(f"The model takes {self.spec.state_dim} finite state values, it got {item.state}.")
        rows = 0 if item.given is None else len(item.given)
        if rows > self.prefix:
            raise InvalidObservation(
                f"The model goes on from at most {self.prefix} rows of the chunk before, it was given {rows}. "
                "Train it with --prefix, or give none."
            )
