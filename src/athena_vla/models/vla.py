"""What the three families share: a body, its prompts and images, one batch of inputs, and where adapters may sit.

Knows nothing of how a family reads actions out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from athena_vla.errors import ModelError
from athena_vla.models.architecture import Architecture, Graph, Tensors
from athena_vla.models.body.body_spec import PrismaticSpec
from athena_vla.models.body.card_layer import CardLayer, card_layers
from athena_vla.models.body.prismatic import Prismatic
from athena_vla.models.body.prompt import Prompter
from athena_vla.models.body.tiny_tokenizer import TINY_VOCABULARY, tiny_tokenizer_files
from athena_vla.models.contract import ModelInput, Spec
from athena_vla.models.loops.shared_loop import VlaLoop, VlaSpec
from athena_vla.models.robot_sizes import Sizes

LONGEST_PROMPT = 256  # tokens an engine is built for; OpenVLA's prompts have about 30


def cropped(body: PrismaticSpec, area: float | None) -> PrismaticSpec:
    """The body seeing the middle `area` of each image; itself where that is None."""
    return body if area is None else dataclasses.replace(body, images=dataclasses.replace(body.images, crop_area=area))


class PatchGraph(nn.Module):
    """Graph `vision`: pixels of all cameras to patch embeddings."""

    def __init__(self, body: Prismatic) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.body.vision(pixel_values),)


@dataclass(frozen=True)
class CausalDecoder:
    """What another runtime needs in order to run the decoder alone, from rows to hidden states or logits."""

    graphs: tuple[Graph, ...]  # what is left of the model: vision, and what makes rows and reads hidden states
    outputs: int  # last rows whose hidden states are read
    logits: bool  # whether logits are read in their place, of the tokens from `first` to `last`
    first: int
    last: int
    context: int  # most rows of a prompt and its answer


class VisionLanguageModel(Architecture):
    """Base of the families; abstract."""

    reads_tokens: ClassVar[bool] = False  # needs the language model's token output

    def __init__(self, spec: VlaSpec, tokenizer_files: Mapping[str, bytes], body: Prismatic | None = None) -> None:
        super().__init__(spec, tokenizer_files)
        self.body = body if body is not None else Prismatic(spec.body)
        self.body_spec = spec.body
        self._card_layers: tuple[CardLayer, ...] | None = None  # made when a card first asks

    @property
    def prompter(self) -> Prompter:
        assert isinstance(self.loop, VlaLoop)
        return self.loop.prompter

    def require_instruction(self, text: str) -> None:
        self.prompter.answer_ids(text)

    def encode_images(self, inputs: Tensors) -> Tensor:
        """Patch embeddings of a batch; inputs may carry them as `patches` where the vision part is frozen."""
        return inputs["patches"] if "patches" in inputs else self.body.vision(inputs["pixel_values"])

    def with_images_encoded(self, inputs: Tensors) -> Tensors:
        return {**{k: v for k, v in inputs.items() if k != "pixel_values"}, "patches": self.encode_images(inputs)}

    def vision_graph(self, example: Tensors) -> Graph:
        """Graph `vision` of every family."""
        pixel_values = {"pixel_values": example["pixel_values"]}
        return Graph("vision", PatchGraph(self.body), pixel_values, ("patches",), {"pixel_values": {0: "batch"}})

    def lora_modules(self, targets: Sequence[str], *, vision: bool, projector: bool) -> list[str]:
        found = self.body.linear_modules(tuple(targets), vision=vision, projector=projector)
        return [f"body.{name}" for name in found]

    def vision_modules(self) -> list[str]:
        towers = [f"body.vision_backbone.{name}" for name, _ in self.body.vision_backbone.named_children()]
        return [*towers, "body.projector"]

    def checkpoint_layers(self, *, on: bool = True) -> None:
        self.body.language_model.checkpointing = on

    def compile_layers(self, *, on: bool) -> None:
        for layer in self.body.language_model.model.layers:
            # Layers alone, not the whole: one compilation serves them all. Prompts differ in length, hence dynamic.
            layer.__dict__.pop("forward", None)
            if on:
                layer.forward = torch.compile(layer.forward, dynamic=True)

    @contextmanager
    def on_card(self) -> Iterator[None]:
        language = self.body.language_model
        if self._card_layers is None:
            self._card_layers = card_layers(language)
        language.on_card = self._card_layers
        try:
            yield
        finally:
            language.on_card = ()

    def causal_decoder(self) -> CausalDecoder | None:
        """For runtimes that decode causally; None for a model that reads its action rows both ways."""
        return None

    def example_inputs(self) -> Tensors:
        """A black image and a short prompt: example inputs of the graphs."""
        side = self.body_spec.towers[0].image_size
        image = np.zeros((side, side, 3), dtype=np.uint8)
        item = ModelInput(
            images=(image,) * self.spec.cameras,
            state=np.zeros(self.spec.state_dim, dtype=np.float32),
            instruction="raise the arm",
        )
        return self.place(self.collate([item]))

    def example_embeddings(self, *lengths: int) -> tuple[Tensor, ...]:
        """Zero embeddings `[1, length, e]` of the model's type and place; nothing is computed for them."""
        weight = self.body.language_model.model.norm.weight
        return tuple(weight.new_zeros((1, n, weight.shape[0])) for n in lengths)

    def place(self, inputs: Tensors) -> Tensors:
        """Inputs on the model's device, pixels in its type."""
        weight = self.body.language_model.model.norm.weight
        return {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}

    @classmethod
    def from_spec(cls, spec: Spec, tokenizer_files: Mapping[str, bytes]) -> Self:
        """Freshly initialised; without files, a tiny specification takes the tokenizer that ships."""
        assert isinstance(spec, VlaSpec)
        files = tokenizer_files
        if not files:
            if spec.body.text.vocabulary != TINY_VOCABULARY:
                raise ModelError(
                    f"A model with {spec.body.text.vocabulary} text tokens needs its own tokenizer files; "
                    f"only the tiny vocabulary of {TINY_VOCABULARY} ships."
                )
            files = tiny_tokenizer_files()
        model = cls(spec, files)
        if not model.body.language_model.model.norm.weight.is_meta:
            model.body.initialize()
        return model

    def rebind(self, spec: Spec) -> Self:
        assert isinstance(spec, VlaSpec)
        if cropped(spec.body, 1.0) != cropped(self.body_spec, 1.0):
            raise ModelError("A model can be bound to another robot, not to another body; the specifications differ.")
        return type(self)(spec, self.tokenizer_files(), self.body)

    @classmethod
    def spec_on(cls, body: PrismaticSpec, sizes: Sizes, **own: int) -> VlaSpec:
        """The family's specification on a body; `own` are fields of this family alone. Raises `ModelError`."""
        fields = {**sizes.named(cls.spec_type, cls.family), **own}
        return cast(VlaSpec, cls.spec_type(**fields, body=cropped(body, sizes.crop_area)))  # pyright: ignore
