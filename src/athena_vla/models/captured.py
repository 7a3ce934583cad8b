"""A torch model on a card whose calls are captured as CUDA graphs: one for each kind of call, replayed from then on.

A pass of a large model is thousands of kernels. Launching them from Python takes longer than they do; a captured call
is one launch. Not for two decodes at the same time: inputs and outputs of a call lie at fixed places.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from athena_vla.models.architecture import Architecture, TorchEngine
from athena_vla.models.contract import Taken, Value, Values
from athena_vla.models.torch_memory import TorchMemory

_log = logging.getLogger(__name__)
Kind: TypeAlias = tuple[str, tuple[tuple[str, tuple[int, ...], torch.dtype, int], ...]]
MOST = 24  # kinds of calls that are kept: prompts of many lengths come by in an evaluation
SLOTS = 64  # a cache's slots are a multiple of this, so that prompts of about the same length share a graph
WARM = 2  # times that a kind of call runs before it is captured: kernels are compiled and chosen then


class HeldMemory(TorchMemory):
    """Caches keep their place: a captured call reads them where they were at its capture."""

    def __init__(self) -> None:
        self.held: dict[tuple[torch.dtype, tuple[int, ...], int], Tensor] = {}
        self.grown_since = 0  # keys and values of a decode are two caches of one shape

    @torch.inference_mode()
    def grown(self, cache: Value, slots: int) -> Value:
        filled = cache.shape[3]
        whole = -(-(filled + slots) // SLOTS) * SLOTS
        shape = (*cache.shape[:3], whole, cache.shape[4])
        self.grown_since = 1 - self.grown_since
        key = (cache.dtype, shape, self.grown_since)
        if key not in self.held:
            self.held[key] = cache.new_zeros(shape)
        wide = self.held[key]
        wide[:, :, :, :filled] = cache
        wide[:, :, :, filled:].zero_()
        return wide

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor is part of a cache that keeps its place."""
        place = value.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == place for t in self.held.values())


class CapturedEngine(TorchEngine):
    """`TorchEngine` on a card, by captured calls."""

    def __init__(self, model: Architecture, taken: Taken | None = None) -> None:
        super().__init__(model, taken)
        self.memory = self.held = HeldMemory()
        self.seen: OrderedDict[Kind, int] = OrderedDict()
        self.calls: OrderedDict[Kind, Call] = OrderedDict()
        self.pool = torch.cuda.graph_pool_handle()
        self.refused = ""  # why calls are not captured
        self.eager = False  # hooks run in a call as it is written, and not in its replay

    def run(self, graph: str, values: Values, /) -> Values:
        placed = self.placed(graph, values)
        if self.eager or self.refused:
            return self.compute(graph, placed)
        kept = {n: v for n, v in placed.items() if self.held.holds(v)}
        kind = (graph, tuple((n, tuple(v.shape), v.dtype, v.data_ptr() if n in kept else 0) for n, v in placed.items()))
        if (call := self.calls.get(kind)) is not None:
            self.calls.move_to_end(kind)
            return call.replay({n: v for n, v in placed.items() if n not in kept})
        self.seen[kind] = self.seen.pop(kind, 0) + 1
        if self.seen[kind] <= WARM:
            if len(self.seen) > 16 * MOST:
                self.seen.popitem(last=False)
            with self.model.on_card():
                return self.compute(graph, placed)
        if len(self.calls) == MOST:
            self.calls.popitem(last=False)
        try:
            with torch.cuda.device(self.device), self.model.on_card():
                call = self.calls[kind] = Call(lambda given: self.compute(graph, given), placed, set(kept), self.pool)
        except RuntimeError as error:
            self.refused = f"{type(error).__name__}: {error}"
            _log.warning(
                "Calls of this model cannot be captured as CUDA graphs (%s); they run one by one.", self.refused
            )
            return self.compute(graph, placed)
        return call.replay({})

    @contextmanager
    def watched(self) -> Iterator[dict[str, int]]:
        self.eager = True
        try:
            with super().watched() as counts:
                yield counts
        finally:
            self.eager = False


class Call:
    """One captured call with the places of its inputs and outputs."""

    def __init__(
        self, compute: Callable[[Values], Values], example: dict[str, Tensor], kept: set[str], pool: Any
    ) -> None:
        with torch.inference_mode():
            self.inputs = {n: v if n in kept else v.clone() for n, v in example.items()}
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as a server's, may go on using the card.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.outputs = compute(self.inputs)

    @torch.inference_mode()
    def replay(self, given: dict[str, Tensor]) -> Values:
        """Outputs of the call, in memory of their own."""
        for name, value in given.items():
            self.inputs[name].copy_(value)
        self.graph.replay()
        return {n: v.clone() for n, v in self.outputs.items()}
