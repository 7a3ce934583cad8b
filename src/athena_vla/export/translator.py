"""What one graph's translation knows: values, sizes and weights, and their ONNX names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from athena_vla.errors import ExportError
from athena_vla.export import linear
from athena_vla.export.graph_trace import Affine, Traced
from athena_vla.export.linear import LinearForm
from athena_vla.export.writer import DataFile, GraphWriter
from athena_vla.models.architecture import Graph
from athena_vla.models.weights.packed import Packed

Read = Callable[[str], Tensor | Packed]  # a weight by its name in the graph's module


@dataclass(frozen=True)
class Value:
    """A tensor that exists only when the graph runs."""

    name: str
    dtype: torch.dtype
    rank: int


@dataclass(frozen=True)
class Size:
    """An integer that exists only when the graph runs: the name of an int64 vector of length one."""

    name: str


@dataclass(frozen=True)
class Weight:
    """A stored weight that has not been read yet."""

    name: str


Any_ = Value | Size | Weight | Tensor | int | float | bool | None | list[Any] | tuple[Any, ...]


class Translator:
    """State of one graph's translation; operators call its methods."""

    def __init__(
        self,
        graph: Graph,
        traced: Traced,
        read: Read,
        shared_name: Callable[[str], str],
        data: DataFile,
        how: LinearForm,
    ) -> None:
        self.graph = graph
        self.traced = traced
        self.read = read
        self.shared_name = shared_name
        self.writer = GraphWriter(graph.name, data)
        self.how = how

    def name(self, value: Any_, dtype: torch.dtype | None = None) -> str:
        """The ONNX name of any value, made a constant of `dtype` where it is one."""
        if isinstance(value, Value):
            return value.name
        if isinstance(value, Size):
            return value.name
        if isinstance(value, Weight):
            return self.plain_weight(value)
        if isinstance(value, Tensor):
            constant = value if dtype is None or not value.dtype.is_floating_point else value.to(dtype)
            return self.writer.tensor(constant)
        if isinstance(value, (bool, int, float)):
            return self.writer.tensor(torch.tensor(value, dtype=dtype))
        raise ExportError(f"Graph '{self.graph.name}': a {type(value).__name__} cannot be an input of an operator.")

    def plain_weight(self, weight: Weight) -> str:
        stored = self.read(weight.name)
        if isinstance(stored, Packed):
            stored = stored.dequantize()
        key = self.shared_name(weight.name)
        if not stored.dtype.is_floating_point:
            return self.writer.tensor(stored, key)
        return linear.plain(self.writer, key, stored, self.how.dtype)

    def materialize(self, value: Any_) -> Any:
        """The torch constant behind a weight, in the type of the activations; other values as they are."""
        if isinstance(value, Weight):
            stored = self.read(value.name)
            return (stored.dequantize() if isinstance(stored, Packed) else stored).to(self.how.dtype)
        if isinstance(value, (list, tuple)):
            return type(value)(self.materialize(v) for v in value)
        return value

    def affine(self, size: Affine) -> Size:
        """A varying size, computed from the shapes of the inputs; each is computed once."""
        key = ("size", size)
        if key not in self.writer.known:
            w, total = self.writer, None
            for axis, factor in size.factors:
                term = self._axis(axis)
                if factor != 1:
                    term = w.op("Mul", term, w.constant([factor], "int64"))
                total = term if total is None else w.op("Add", total, term)
            assert total is not None
            if size.constant:
                total = w.op("Add", total, w.constant([size.constant], "int64"))
            w.known[key] = total
        return Size(self.writer.known[key])

    def _axis(self, axis: str) -> str:
        key = ("axis", axis)
        if key not in self.writer.known:
            name, place = next((n, i) for n, per in self.graph.dynamic.items() for i, a in per.items() if a == axis)
            self.writer.known[key] = self.writer.op("Shape", name, start=place, end=place + 1)
        return self.writer.known[key]

    def shape(self, sizes: Sequence[Any]) -> str:
        """An int64 shape vector of numbers and runtime sizes."""
        if all(isinstance(s, int) for s in sizes):
            return self.writer.constant(list(sizes), "int64")
        parts = [s.name if isinstance(s, Size) else self.writer.constant([s], "int64") for s in sizes]
        return parts[0] if len(parts) == 1 else self.writer.op("Concat", *parts, axis=0)

    def size(self, value: Any_) -> str:
        """One integer as an int64 vector of length one."""
        return value.name if isinstance(value, Size) else self.writer.constant([value], "int64")
