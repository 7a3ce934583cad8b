"""A model's pure graph to ONNX: traced without weights, written operator by operator, weights streamed by name.

The same code writes the tiny model and the 7B one: tracing happens on the meta device, and each weight is read, laid
out and appended to the external file when its operator is reached. Operators are in `operators.py`.
"""

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from onnx import ValueInfoProto, helper
from torch import fx
from torch.export.graph_signature import InputKind

from athena_vla.errors import ExportError
from athena_vla.export.graph_trace import Affine, trace
from athena_vla.export.linear import LinearForm
from athena_vla.export.operators import OPERATORS
from athena_vla.export.translator import Read, Size, Translator, Value, Weight
from athena_vla.export.writer import ELEMENT, DataFile
from athena_vla.models.architecture import Graph


def translate(
    graph: Graph,
    read: Read,
    shared_name: Callable[[str], str],
    path: Path,
    data: DataFile,
    how: LinearForm,
    fixed: Sequence[str] = (),
) -> dict[str, Any]:
    """Write one graph to `path`; returns its inputs and outputs with their shapes.

    `read` gives a weight by its name in `graph.module`, `shared_name` a name that is the same in every graph, `fixed`
    names axes that keep the size of the example.
    Raises `ExportError` naming the first operator that has no translation.
    """
    traced = trace(graph, how.dtype, fixed)
    program = traced.program
    t = Translator(graph, traced, read, shared_name, data, how)
    env: dict[fx.Node, Any] = {}
    kinds = {s.arg.name: s for s in program.graph_signature.input_specs}
    inputs: list[ValueInfoProto] = []
    outputs: list[ValueInfoProto] = []
    ports: dict[str, Any] = {"inputs": {}, "outputs": {}}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind == InputKind.USER_INPUT:
                meta = node.meta["val"]
                axes = _axes(traced.shape(node))
                env[node] = Value(node.name, meta.dtype, meta.ndim)
                inputs.append(helper.make_tensor_value_info(node.name, ELEMENT[meta.dtype], axes))
                ports["inputs"][node.name] = {"dtype": str(meta.dtype).removeprefix("torch."), "shape": axes}
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                assert spec.target is not None
                env[node] = program.constants[spec.target]
            else:
                assert spec.target is not None
                env[node] = Weight(spec.target)
        elif node.op == "call_function":
            env[node] = _call(t, node, env, OPERATORS)
        elif node.op == "output":
            for wanted, source in zip(graph.outputs, node.args[0], strict=True):
                value = env[source]
                t.writer.op("Identity", t.name(value))
                t.writer.nodes[-1].output[0] = wanted
                meta = source.meta["val"]
                axes = _axes(traced.shape(source))
                outputs.append(helper.make_tensor_value_info(wanted, ELEMENT[meta.dtype], axes))
                ports["outputs"][wanted] = {"dtype": str(meta.dtype).removeprefix("torch."), "shape": axes}
        else:
            raise ExportError(f"Graph '{graph.name}' has a node of kind '{node.op}', which has no ONNX form.")
    t.writer.save(path, inputs, outputs)
    return ports


def _axes(shape: Sequence[Any]) -> list[int | str]:
    """Numbers, and a readable expression for every axis that varies."""

    def text(size: Affine) -> str:
        terms = [axis if factor == 1 else f"{factor}*{axis}" for axis, factor in size.factors]
        return " + ".join([*terms, str(size.constant)] if size.constant else terms)

    return [s if isinstance(s, int) else text(s) for s in shape]


def _call(t: Translator, node: fx.Node, env: dict[fx.Node, Any], operators: dict[Any, Any]) -> Any:
    twin = t.traced.twin[node]
    args = _arguments(t, env, node.args, twin.args)
    kwargs = _arguments(t, env, dict(node.kwargs), dict(twin.kwargs))
    target = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    if not _depends(args) and not _depends(kwargs):
        return _evaluate(t, node, args, kwargs)
    handler = operators.get(target)
    if handler is None:
        raise ExportError(
            f"Graph '{t.graph.name}': operator '{target}' has no ONNX translation here. "
            f"Known: {', '.join(sorted(str(k) for k in operators))}."
        )
    return handler(t, node, *args, **kwargs)


def _arguments(t: Translator, env: dict[fx.Node, Any], here: Any, there: Any) -> Any:
    """Arguments with nodes replaced by their values and varying numbers by sizes."""
    if isinstance(here, fx.Node):
        return env[here]
    if isinstance(here, (list, tuple)):
        return type(here)(_arguments(t, env, a, b) for a, b in zip(here, there, strict=True))
    if isinstance(here, dict):
        return {k: _arguments(t, env, v, there[k]) for k, v in here.items()}
    value = t.traced.resolve(here, there)
    return t.affine(value) if isinstance(value, Affine) else value


def _depends(value: Any) -> bool:
    """Whether anything in the arguments is known only at run time."""
    if isinstance(value, (list, tuple)):
        return any(_depends(v) for v in value)
    if isinstance(value, dict):
        return any(_depends(v) for v in value.values())
    return isinstance(value, (Value, Size))


def _evaluate(t: Translator, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Compute what depends on weights and numbers only; a plain pass of a weight stays a weight."""
    if str(node.target).startswith(("aten._assert", "aten.sym_constrain")):
        return None
    if node.target in PASSES and isinstance(args[0], Weight):
        return args[0]
    options = {k: t.materialize(v) for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")}
    assert callable(node.target)
    return node.target(*t.materialize(args), **options)


PASSES = (torch.ops.aten.to.dtype, torch.ops.aten.contiguous.default, torch.ops.aten.alias.default)
