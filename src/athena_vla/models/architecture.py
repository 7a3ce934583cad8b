"""The torch side of a model family: named pure graphs, their loss, what may be adapted; and the table of families.

Training knows `collate`, `loss` and the LoRA targets; export knows `graphs`. How graphs become actions is the family's
host loop (`contract.HostLoop`), which needs no torch; `decode` runs it on this model's tensors.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from athena_vla.errors import ModelError, UnknownName
from athena_vla.models.contract import Engine, HostLoop, ModelInput, Spec, Taken, Value, Values, loop_type
from athena_vla.models.torch_memory import Calling, TorchMemory

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


class Architecture(nn.Module, ABC):
    """A vision-language-action model; every family is a final subclass with its own `spec_type` and host loop."""

    family: ClassVar[str]
    spec_type: ClassVar[type[Spec]]

    def __init__(self, spec: Spec, tokenizer_files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.spec = spec
        self.loop: HostLoop = loop_type(self.family)(spec, tokenizer_files)

    def collate(self, inputs: Sequence[ModelInput]) -> Tensors:
        """Batch of graph inputs on the CPU. Raises `InvalidObservation` for images or text no model can take."""
        return {name: torch.from_numpy(array) for name, array in self.loop.collate(inputs).items()}

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

    def sums(
        self, inputs: Tensors, target: Float[Tensor, "b h d"], valid: Shaped[Tensor, "b h"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Of each sample the sum of what `loss` averages over, and `counted`: the first over the second, of all samples
        together, is `loss`. Raises `ModelError` for a family whose loss is no sum over samples.
        """
        raise ModelError(f"The {self.family} family has no loss of each sample; train without --language-margin.")

    def with_images_encoded(self, inputs: Tensors) -> Tensors:
        """The same inputs, ready to be answered several times without looking at the images again."""
        return inputs

    @abstractmethod
    def graphs(self) -> tuple[Graph, ...]:
        """Everything `decode` runs, by name, with example inputs of batch 1."""

    def require_instruction(self, text: str) -> None:
        """Raises `InvalidObservation` for an instruction that `collate` would not take."""

    @property
    def reads_state(self) -> bool:
        """Whether actions may depend on the state; where they may, the gates demand that they do."""
        return self.loop.reads_state

    @property
    def prefix(self) -> int:
        """Most rows of its answer that the model can be given, to go on from them; 0: it was not trained for that."""
        return self.loop.prefix

    def vision_modules(self) -> list[str]:
        """Module paths that every call runs exactly once per camera batch: towers and projector."""
        return []

    def noise(self, batch: int, generator: np.random.Generator) -> Tensors:
        """Random inputs of `decode`; empty for deterministic families."""
        return {name: torch.from_numpy(array) for name, array in self.loop.noise(batch, generator).items()}

    def decode(self, run: Run, inputs: Tensors, noise: Tensors) -> Float[Tensor, "b h d"]:
        """The host loop on tensors: calls graphs only through `run`, returns actions in [-1, 1] on the CPU."""
        # The loop looks at ids and masks itself; floats stay on the device.
        seen = {k: v if v.is_floating_point() else v.cpu().numpy() for k, v in inputs.items()}
        return torch.from_numpy(self.loop.decode(Calling(run), seen, noise))

    def engine(self) -> Engine:
        """This model as it is now as an engine: its device and types are asked here."""
        return TorchEngine(self)

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

    @contextmanager
    def on_card(self) -> Iterator[None]:
        """Inside, graphs run by what was written for NVIDIA cards, where there is anything: no hooks, no gradients."""
        yield

    @abstractmethod
    def rebind(self, spec: Spec) -> "Architecture":
        """The same body with heads for another robot (action and state size, cameras, horizon); heads start fresh."""

    def tokenizer_files(self) -> dict[str, bytes]:
        """Files that `from_spec` needs beside the spec to rebuild the tokenizer."""
        return dict(self.loop.tokenizer_files)

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


class TorchEngine(Engine):
    """The model's own graphs, eagerly. Inputs are moved to the model's device and type.

    The weights are asked now where inputs belong: make the engine when the model is where it stays.
    """

    def __init__(self, model: Architecture, taken: Taken | None = None) -> None:
        self.model = model
        self.memory = TorchMemory()
        self.graphs = {g.name: g for g in model.graphs()}
        # Of each graph by itself: heads may be kept in float32 above a body in bfloat16.
        self.weights = {
            n: next(p for p in g.module.parameters() if p.is_floating_point()) for n, g in self.graphs.items()
        }
        self.device = next(iter(self.weights.values())).device
        self.taken = taken or Taken("torch", str(self.device))

    def run(self, graph: str, values: Values, /) -> Values:
        return self.compute(graph, self.placed(graph, values))

    @torch.inference_mode()
    def placed(self, graph: str, values: Values) -> Tensors:
        """The inputs where the graph's weights are, floats in their type."""
        if graph not in self.graphs:
            raise UnknownName("graph", graph, self.graphs)
        return {k: _placed(v, self.weights[graph]) for k, v in values.items()}

    @torch.inference_mode()
    def compute(self, graph: str, placed: Tensors) -> Tensors:
        """The graph's outputs by name, eagerly."""
        return dict(zip(self.graphs[graph].outputs, self.graphs[graph].module(**placed), strict=True))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def limit(self, threads: int) -> None:
        torch.set_num_threads(threads)

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """Calls of each tower and of the projector, by hooks."""
        counts = dict.fromkeys(self.model.vision_modules(), 0)

        def hook(name: str) -> Callable[..., None]:
            def count(*_: Any) -> None:
                counts[name] += 1

            return count

        hooks = [self.model.get_submodule(n).register_forward_hook(hook(n)) for n in counts]
        try:
            yield counts
        finally:
            for handle in hooks:
                handle.remove()


def run_torch(model: Architecture) -> Run:
    """A `run` of the model's own graphs, eagerly, for `Architecture.decode`."""
    return TorchEngine(model).run


def _placed(value: Value, weight: Tensor) -> Tensor:
    """Where the weight is, floats in its type."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(value)
    kind = weight.dtype if tensor.is_floating_point() else tensor.dtype
    # From the host without waiting for the card: what is not pinned has been read when this returns.
    return tensor.to(weight.device, kind, non_blocking=tensor.device.type == "cpu" and weight.is_cuda)
