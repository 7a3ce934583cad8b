"""Trace a pure graph without weights, and find out which of its numbers are sizes that vary when it runs.

Symbolic tracing takes ten times as long as plain tracing. So the graph is traced plainly twice, with other batch and
token counts: numbers that differ between the twins are sizes, and how they differ says which. Knows nothing of ONNX.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from athena_vla.errors import ExportError
from athena_vla.models.architecture import Graph

STEP = 1 << 12  # between the twins, axis n grows by STEP ** n: the digits of a difference name the axes
LARGEST_FACTOR = 64  # a larger multiple of an axis is a product of two axes, which has no translation


@dataclass(frozen=True)
class Affine:
    """A size known only at run time: constant + sum of factor * axis."""

    constant: int
    factors: tuple[tuple[str, int], ...]  # axis name, factor


@dataclass(frozen=True)
class Traced:
    """The program, its twin node by node, and the varying axes."""

    program: ExportedProgram
    twin: dict[fx.Node, fx.Node]
    axes: tuple[str, ...]
    base: dict[str, int]  # size of each axis in `program`
    name: str

    def resolve(self, here: Any, there: Any) -> Any:
        """An argument of `program` with numbers that vary replaced by `Affine`; `there` is the twin's."""
        if isinstance(here, (list, tuple)):
            return type(here)(self.resolve(a, b) for a, b in zip(here, there, strict=True))
        if isinstance(here, dict):
            return {k: self.resolve(v, there[k]) for k, v in here.items()}
        if isinstance(here, int) and not isinstance(here, bool) and here != there:
            return self._affine(here, there)
        if isinstance(here, float) and here != there:
            raise ExportError(f"Graph '{self.name}': a floating number depends on the size of an input.")
        return here

    def shape(self, node: fx.Node) -> list[Any]:
        """The shape of a node's value: numbers and `Affine`."""
        return self.resolve(list(node.meta["val"].shape), list(self.twin[node].meta["val"].shape))

    def _affine(self, here: int, there: int) -> Affine:
        rest, factors = there - here, []
        for i in reversed(range(len(self.axes))):
            factor = round(rest / STEP**i)
            rest -= factor * STEP**i
            if factor:
                factors.append((self.axes[i], factor))
        if rest or not factors or any(abs(f) > LARGEST_FACTOR for _, f in factors):
            raise ExportError(f"Graph '{self.name}': a size ({here}) is not a sum of the varying axes {self.axes}.")
        return Affine(here - sum(f * self.base[a] for a, f in factors), tuple(factors))


def trace(graph: Graph, dtype: torch.dtype, fixed: Sequence[str] = ()) -> Traced:
    """The graph's operators with activations of `dtype`. Raises `ExportError` where tracing fails."""
    varying = {n: {i: a for i, a in per.items() if a not in fixed} for n, per in graph.dynamic.items()}
    axes = tuple(dict.fromkeys(a for per in varying.values() for a in per.values()))
    base: dict[str, int] = {}
    for name, per in varying.items():
        for i, axis in per.items():
            # A size of one is special to the tracer (broadcasting), so an axis that varies gets at least two.
            base.setdefault(axis, max(graph.example[name].shape[i], 2))
    grown = {a: base[a] + STEP**i for i, a in enumerate(axes)}
    program = _export(graph, dtype, varying, base)
    other = _export(graph, dtype, varying, grown) if axes else program
    mine, theirs = list(program.graph.nodes), list(other.graph.nodes)
    if [n.target for n in mine] != [n.target for n in theirs]:
        raise ExportError(f"Graph '{graph.name}' takes another way through its code for other input sizes.")
    return Traced(program, dict(zip(mine, theirs, strict=True)), axes, base, graph.name)


def _export(graph: Graph, dtype: torch.dtype, varying: Any, sizes: dict[str, int]) -> ExportedProgram:
    example: dict[str, Tensor] = {}
    for name, tensor in graph.example.items():
        per = varying.get(name, {})
        shape = [sizes[per[i]] if i in per else s for i, s in enumerate(tensor.shape)]
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        example[name] = torch.zeros(shape, dtype=kind, device="meta")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(graph.module, (), example, strict=False)
    except Exception as error:  # the tracer raises anything
        raise ExportError(f"Graph '{graph.name}' cannot be traced: {error}") from error
