"""The contract between a model family and the rest: named pure graphs plus one host loop, and the table of families.

Training knows `collate`, `loss` and the LoRA targets; export knows `graphs`; nobody else asks a family anything.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor, nn

from athena_vla.errors import ModelError, UnknownName

Tensors = dict[str, Tensor]
Run = Callable[[str, Tensors], Tensors]  # run(graph_name, inputs) -> outputs

# The literal table of families; imported on demand, so that a missing extra hurts only its own family.
FAMILIES: dict[str, str] = {
    "openvla": "athena_vla.models.openvla:OpenVLA",
    "openvla_oft": "athena_vla.models.openvla_oft:OpenVLAOFT",
    "openvla_chunk": "athena_vla.models.openvla_chunk:OpenVLAChunk",
}
DEFAULT_FAMILY = "openvla_chunk"  # one pass per chunk: the one to deploy
SMALLEST_WEIGHT = 1e-6  # a loss is divided by no less: a batch in which no step counts has the loss 0


@dataclass(frozen=True)
class ModelInput:
    """One observation as any family sees it: images in the embodiment's camera order, state in [-1, 1]."""

    images: tuple[NDArray[np.uint8], ...]  # each [height, width, 3] RGB
    state: NDArray[np.float32]  # [S] normalised
    instruction: str
    given: NDArray[np.float32] | None = None  # [p, D] normalised: the answer's first rows, already decided
    cropped: bool = False  # the images are crops already, as in training: the centre is not cut out of them again


@dataclass(frozen=True)
class Graph:
    """A pure function of tensors: what is compiled, exported, quantised and timed."""

    name: str
    module: nn.Module  # forward(**example) -> tuple of tensors in the order of `outputs`
    example: Tensors
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)  # input -> axis -> name
    # Kinds of calls: of each varying axis the smallest, usual and largest size. Engines are built for each kind.
    profiles: tuple[Mapping[str, tuple[int, int, int]], ...] = ()

    def __post_init__(self) -> None:
        # torch.onnx.export merges two inputs that are the same tensor object and is then silently wrong.
        owners: dict[int, str] = {}
        for name, tensor in self.example.items():
            if tensor.is_meta:  # no memory at all
                continue
            twin = owners.setdefault(tensor.untyped_storage().data_ptr(), name)
            if twin != name:
                raise ModelError(f"Graph '{self.name}': example inputs '{twin}' and '{name}' share memory.")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every family's specification has; a family adds its own fields and stays JSON-serialisable."""

    horizon: int  # H, rows of a chunk
    action_dim: int  # D
    state_dim: int  # S
    cameras: int  # images per observation

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Architecture(nn.Module, ABC):
    """A vision-language-action model; every family is a final subclass with its own `spec_type`."""

    family: ClassVar[str]
    spec_type: ClassVar[type[Spec]]

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def collate(self, inputs: Sequence[ModelInput]) -> Tensors:
        """Batch of graph inputs on the CPU. Raises `InvalidObservation` for images or text no model can take."""

    @abstractmethod
    def loss(self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]) -> Float[Tensor, ""]:
        """Training loss on targets in [-1, 1]: a mean over the steps that are valid.

        `valid` is a flag, or a weight that is not negative, of each step.
        """

    def counted(self, valid: Shaped[Tensor, "b h"]) -> Float[Tensor, ""]:
        """How many terms `loss` averages over, or the sum of their weights: loss times this is their sum.

        Sums of several batches, parts of one step or of several processes, divided by the sum of this, are the loss
        of all of them together.
        """
        return valid.sum().float()

    @abstractmethod
    def graphs(self) -> tuple[Graph, ...]:
        """Everything `decode` runs, by name, with example inputs of batch 1."""

    def require_instruction(self, text: str) -> None:
        """Raises `InvalidObservation` for an instruction that `collate` would not take."""

    @property
    def reads_state(self) -> bool:
        """Whether actions may depend on the state; where they may, the gates demand that they do."""
        return False

    @property
    def prefix(self) -> int:
        """Most rows of its answer that the model can be given, to go on from them; 0: it was not trained for that."""
        return 0

    def vision_modules(self) -> list[str]:
        """Module paths that every call runs exactly once per camera batch: towers and projector."""
        return []

    def noise(self, batch: int, generator: torch.Generator) -> Tensors:
        """Random inputs of `decode`; empty for deterministic families."""
        return {}

    @abstractmethod
    def decode(self, run: Run, inputs: Tensors, noise: Tensors) -> Float[Tensor, "b h d"]:
        """The host loop: calls graphs only through `run`, returns actions in [-1, 1]."""

    @abstractmethod
    def lora_modules(self, targets: Sequence[str], *, vision: bool, projector: bool) -> list[str]:
        """Full module paths for short target names such as `q_proj`; tower names collide, so never by suffix."""

    @abstractmethod
    def head_modules(self) -> list[str]:
        """Module paths that are new for each robot and therefore always trained in full and saved with the adapter."""

    def checkpoint_layers(self, *, on: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping what is inside them. Raises `ModelError`."""
        raise ModelError(f"The {self.family} family cannot recompute its layers; train without gradient checkpointing.")

    def compile_layers(self, *, on: bool) -> None:
        """Run the repeated layers through torch.compile, or as written again. Raises `ModelError`."""
        raise ModelError(f"The {self.family} family has no layers to compile; train without --compile.")

    @abstractmethod
    def rebind(self, spec: Spec) -> "Architecture":
        """The same body with heads for another robot (action and state size, cameras, horizon); heads start fresh."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Files that `from_spec` needs beside the spec to rebuild the tokenizer."""

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Spec, tokenizer_files: Mapping[str, bytes]) -> "Architecture":
        """A model with freshly initialised weights."""


def family(name: str) -> type[Architecture]:
    """The family's class. Raises `UnknownName`."""
    if name not in FAMILIES:
        raise UnknownName("model family", name, FAMILIES)
    module, _, attribute = FAMILIES[name].partition(":")
    return cast(type[Architecture], getattr(importlib.import_module(module), attribute))


def spec_from_dict(name: str, raw: Mapping[str, Any]) -> Spec:
    """Inverse of `Spec.to_dict`; unknown keys are refused, nested dataclasses are the family's own business."""
    kind = family(name).spec_type
    known = {f.name for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise UnknownName(f"field of the {name} specification", key, sorted(known))
    return kind(**raw)


def run_torch(model: Architecture) -> Run:
    """Run the model's own graphs eagerly; the reference every other backend is compared with.

    Inputs may lie on the CPU in float32, as `collate` makes them; they are moved to the model's device and type.
    """
    graphs = {g.name: g for g in model.graphs()}
    # Of each graph by itself: heads may be kept in float32 above a body in bfloat16.
    weights = {n: next(p for p in g.module.parameters() if p.is_floating_point()) for n, g in graphs.items()}

    def run(name: str, inputs: Tensors) -> Tensors:
        if name not in graphs:
            raise UnknownName("graph", name, graphs)
        weight = weights[name]
        placed = {k: v.to(weight.device, weight.dtype if v.is_floating_point() else v.dtype) for k, v in inputs.items()}
        with torch.inference_mode():
            return dict(zip(graphs[name].outputs, graphs[name].module(**placed), strict=True))

    return run
