"""The contract between a model family's host loop and the engines that run its graphs; needs numpy only.

A family is named pure graphs plus one host loop. The loop calls graphs through an `Engine`, whose values it passes on
without looking inside: an engine keeps them where it computes. What the loop has to do with them, it asks of `Memory`.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from athena_vla.errors import UnknownName

Array: TypeAlias = np.ndarray  # no alias of NumPy: from 2.5 on those are no classes, which jaxtyping needs
Value: TypeAlias = Any  # an array on the host, or an engine's own: a tensor, an address on a device
Values: TypeAlias = dict[str, Value]
Call: TypeAlias = Callable[[str, Values], Values]  # run(graph_name, inputs) -> outputs

# The host loops by family, imported on demand; `architecture.FAMILIES` has the torch side of each.
LOOPS: dict[str, str] = {
    "openvla": "athena_vla.models.loops.token_loop:TokenLoop",
    "openvla_oft": "athena_vla.models.loops.parallel_loop:OftLoop",
    "openvla_chunk": "athena_vla.models.loops.parallel_loop:ChunkLoop",
}


@dataclass(frozen=True)
class ModelInput:
    """One observation as any family sees it: images in the embodiment's camera order, state in [-1, 1]."""

    images: tuple[NDArray[np.uint8], ...]  # each [height, width, 3] RGB
    state: NDArray[np.float32]  # [S] normalised
    instruction: str
    given: NDArray[np.float32] | None = None  # [p, D] normalised: the answer's first rows, already decided
    cropped: bool = False  # the images are crops already, as in training: the centre is not cut out of them again


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every family's specification has; a family adds its own fields and stays JSON-serialisable."""

    horizon: int  # H, rows of a chunk
    action_dim: int  # D
    state_dim: int  # S
    cameras: int  # images per observation

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Spec":
        """Inverse of `to_dict`."""
        return cls(**raw)


@dataclass(frozen=True)
class Taken:
    """What an engine really runs on, for logs, answers and files; never what was only asked for."""

    engine: str  # torch, packed, onnxruntime, openvino or tensorrt
    device: str  # cpu or cuda:N
    name: str = ""  # the card's own name; empty for a processor
    why: str = ""  # why it is not a card; empty where that needs no reason
    providers: tuple[str, ...] = ()  # of ONNX Runtime, as its sessions name them
    precision: str = ""  # the type of weights and activations where the engine chooses it

    def __str__(self) -> str:
        place = f"{self.device} ({self.name})" if self.name else self.device
        with_providers = f" by {', '.join(self.providers)}" if self.providers else ""
        return f"{self.engine} on {place}{with_providers}" + (f"; no card: {self.why}" if self.why else "")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"providers": list(self.providers)}


class Memory(ABC):
    """Where an engine keeps its values, and the few things that a host loop does to them there."""

    @abstractmethod
    def read(self, value: Value) -> Array:
        """A copy or view on the host; 16-bit floats that numpy does not know become float32."""

    @abstractmethod
    def splice(self, words: Value, patches: Value) -> Value:
        """`[b, 1 + p + l - 1, e]`: patches `[b, p, e]` behind the first row of `words` `[b, l, e]`, in its type."""

    @abstractmethod
    def grown(self, cache: Value, slots: int) -> Value:
        """A prompt's cache `[layers, b, kv, n, w]` with empty slots behind it `[layers, b, kv, n + slots, w]`."""

    @abstractmethod
    def layers(self, cache: Value) -> Sequence[Value]:
        """Each layer's part of a cache, without a copy."""

    @abstractmethod
    def write(self, cache: Value, new: Value, position: Int[np.ndarray, " b"]) -> None:
        """Put one row's keys or values `[layers, b, kv, 1, w]` into the slot that each item of the batch is at."""

    @abstractmethod
    def largest(
        self, logits: Value, first: int, last: int, allowed: Bool[np.ndarray, "b n"] | None, base: int
    ) -> Value:
        """`[b, 1]` token ids: where the largest of `logits[:, first:last]` is, counted from `base`.

        Only where `allowed` `[b, last - first]`, if given; the first of equals.
        """

    @abstractmethod
    def joined(self, ids: Sequence[Value]) -> Int[np.ndarray, "b n"]:
        """Single token ids `[b, 1]`, one after the other, read to the host at once."""


class Engine(ABC):
    """Runs a model's graphs. Inputs may be arrays of the host or values of its own; outputs are values of its own."""

    memory: Memory
    taken: Taken

    @abstractmethod
    def run(self, graph: str, values: Values, /) -> Values:
        """The graph's outputs by name. Inputs that the graph does not have are passed over.

        Raises `UnknownName` for a graph that is not there, `ExportError` for what it cannot run.
        """

    def wait(self) -> None:
        """Return when all that was asked for has been computed: for clocks."""
        return

    def limit(self, threads: int) -> None:
        """Compute with so many threads, where that was not settled when the engine was opened."""
        return

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        """How often each part ran that a decode runs once; empty for an engine that cannot look inside its graphs."""
        yield {}


class Tapped(Engine):
    """An engine whose calls go through a function: for clocks, counters and records."""

    def __init__(self, engine: Engine, call: Call) -> None:
        self.engine, self.call = engine, call
        self.memory, self.taken = engine.memory, engine.taken

    def run(self, graph: str, values: Values, /) -> Values:
        return self.call(graph, values)

    def wait(self) -> None:
        self.engine.wait()

    def limit(self, threads: int) -> None:
        self.engine.limit(threads)

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        with self.engine.watched() as counts:
            yield counts


class HostLoop(ABC):
    """A family's side of the host: inputs from observations, and actions through the graphs. Final per family."""

    family: ClassVar[str]
    spec_type: ClassVar[type[Spec]]

    def __init__(self, spec: Spec, tokenizer_files: Mapping[str, bytes]) -> None:
        self.spec = spec
        self.tokenizer_files = dict(tokenizer_files)

    @abstractmethod
    def collate(self, inputs: Sequence[ModelInput]) -> dict[str, Array]:
        """Batch of graph inputs. Raises `InvalidObservation` for images or text no model can take."""

    @abstractmethod
    def decode(self, engine: Engine, inputs: Mapping[str, Value], noise: Mapping[str, Value]) -> Float[Array, "b h d"]:
        """Actions in [-1, 1], float32: calls graphs only through `engine`."""

    def noise(self, batch: int, generator: np.random.Generator) -> dict[str, Array]:
        """Random inputs of `decode`; empty for deterministic families."""
        return {}

    @property
    def reads_state(self) -> bool:
        """Whether actions may depend on the state; where they may, the gates demand that they do."""
        return False

    @property
    def prefix(self) -> int:
        """Most rows of its answer that the model can be given, to go on from them; 0: it was not trained for that."""
        return 0


class Model(Protocol):
    """A model that brings its loop and can run its own graphs."""

    loop: HostLoop

    def engine(self) -> Engine: ...


def loop_type(family: str) -> type[HostLoop]:
    """The class of a family's host loop. Raises `UnknownName`."""
    if family not in LOOPS:
        raise UnknownName("model family", family, LOOPS)
    module, _, attribute = LOOPS[family].partition(":")
    return cast(type[HostLoop], getattr(importlib.import_module(module), attribute))


def spec_from_dict(family: str, raw: Mapping[str, Any]) -> Spec:
    """Inverse of `Spec.to_dict`; unknown keys are refused; nested values are the business of `Spec.from_dict`."""
    kind = loop_type(family).spec_type
    known = {f.name for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise UnknownName(f"field of the {family} specification", key, sorted(known))
    return kind.from_dict(raw)
