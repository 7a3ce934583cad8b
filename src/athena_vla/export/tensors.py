"""Operators that move, reshape, cut and make tensors, in ONNX; and what all operators share.

Knows nothing of arithmetic or layers; those are in `operators.py`, which also holds the table.
"""

from typing import Any

import torch
from torch import fx

from athena_vla.export.graph_trace import Affine
from athena_vla.export.translator import Any_, Size, Translator, Value, Weight
from athena_vla.export.writer import ELEMENT

LAST = 9223372036854775807  # torch's "to the end" in slices; ONNX means the same by it


def made(t: Translator, node: fx.Node, name: str) -> Value:
    meta = node.meta["val"]
    return Value(name, meta.dtype, meta.ndim)


def operand_type(t: Translator, value: Any_, node: fx.Node) -> torch.dtype:
    """Type of an operand; python numbers take the type of the other operand."""
    if isinstance(value, (Value, torch.Tensor)):
        return value.dtype
    if isinstance(value, Weight):
        return t.how.dtype
    others = [v.meta["val"].dtype for v in node.all_input_nodes if isinstance(v.meta.get("val"), torch.Tensor)]
    if isinstance(value, float) and not any(o.is_floating_point for o in others):
        return torch.float32
    return others[0]


def as_type(t: Translator, value: Any_, dtype: torch.dtype) -> str:
    name = t.name(value, dtype)
    if isinstance(value, (Value, Weight)) and own_type(t, value) != dtype:
        return t.writer.op("Cast", name, to=ELEMENT[dtype])
    if isinstance(value, torch.Tensor) and value.dtype != dtype:
        return t.name(value.to(dtype))
    return name


def own_type(t: Translator, value: Value | Weight) -> torch.dtype:
    return value.dtype if isinstance(value, Value) else t.how.dtype


def cast(t: Translator, node: fx.Node, x: Any_, *_: Any, **__: Any) -> Value:
    dtype = node.meta["val"].dtype
    if isinstance(x, Value) and x.dtype == dtype:
        return x
    return made(t, node, t.writer.op("Cast", t.name(x), to=ELEMENT[dtype]))


def same(t: Translator, node: fx.Node, x: Any_, *_: Any, **__: Any) -> Any_:
    return x


def reshape(t: Translator, node: fx.Node, x: Any_, shape: Any) -> Value:
    # The resulting shape is known from tracing, also where the model wrote -1.
    after, source = t.traced.shape(node), node.args[0]
    before = t.traced.shape(source) if isinstance(x, Value) and isinstance(source, fx.Node) else []
    if before == after:
        return made(t, node, t.name(x))
    sizes: list[Any] = []
    for i, size in enumerate(after):
        # An axis that stays in its place is ONNX's zero, which needs no computing of shapes when the graph runs.
        kept = isinstance(size, Affine) and i < len(before) and before[i] == size
        sizes.append(0 if kept else size)
    varying = [i for i, s in enumerate(sizes) if isinstance(s, Affine)]
    if len(varying) == 1:
        sizes[varying[0]] = -1
    resolved = [t.affine(s) if isinstance(s, Affine) else s for s in sizes]
    return made(t, node, t.writer.op("Reshape", t.name(x), t.shape(resolved), allowzero=0))


def flatten(t: Translator, node: fx.Node, x: Value, start: int = 0, end: int = -1) -> Value:
    shape = node.meta["val"].shape
    # Axes before the flattened ones are kept by ONNX's zero; those after have to be numbers.
    sizes = [0] * start + [-1] + [int(s) for s in shape[start + 1 :]]
    return made(t, node, t.writer.op("Reshape", t.name(x), t.writer.constant(sizes, "int64")))


def expand(t: Translator, node: fx.Node, x: Any_, shape: Any, **_: Any) -> Value:
    # ONNX's Expand broadcasts: a one keeps the axis, which is what torch's -1 means.
    return made(t, node, t.writer.op("Expand", t.name(x), t.shape([1 if s == -1 else s for s in shape])))


def transpose(t: Translator, node: fx.Node, x: Value, a: int, b: int) -> Value:
    order = list(range(node.meta["val"].ndim))
    order[a], order[b] = order[b], order[a]
    return made(t, node, t.writer.op("Transpose", t.name(x), perm=order))


def permute(t: Translator, node: fx.Node, x: Value, order: Any) -> Value:
    return made(t, node, t.writer.op("Transpose", t.name(x), perm=list(order)))


def unsqueeze(t: Translator, node: fx.Node, x: Any_, axis: int) -> Value:
    return made(t, node, t.writer.op("Unsqueeze", t.name(x), t.writer.constant([axis], "int64")))


def squeeze(t: Translator, node: fx.Node, x: Any_, axis: int) -> Value:
    return made(t, node, t.writer.op("Squeeze", t.name(x), t.writer.constant([axis], "int64")))


def cut(
    t: Translator, node: fx.Node, x: Any_, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any_:
    if start in (None, 0) and (end is None or end == LAST) and step == 1:
        return x
    w = t.writer
    bounds = [t.size(0 if start is None else start), t.size(LAST if end is None else end)]
    return made(t, node, w.op("Slice", t.name(x), *bounds, t.size(axis), t.size(step)))


def select(t: Translator, node: fx.Node, x: Any_, axis: int, index: Any) -> Value:
    if isinstance(index, Size):
        picked = t.writer.op("Gather", t.name(x), index.name, axis=axis)
        return made(t, node, t.writer.op("Squeeze", picked, t.writer.constant([axis], "int64")))
    return made(t, node, t.writer.op("Gather", t.name(x), t.writer.constant(index, "int64"), axis=axis))


def cat(t: Translator, node: fx.Node, parts: Any, axis: int = 0) -> Value:
    dtype = node.meta["val"].dtype
    return made(t, node, t.writer.op("Concat", *[as_type(t, p, dtype) for p in parts], axis=axis))


def stack(t: Translator, node: fx.Node, parts: Any, axis: int = 0) -> Value:
    at = t.writer.constant([axis], "int64")
    return made(t, node, t.writer.op("Concat", *[t.writer.op("Unsqueeze", t.name(p), at) for p in parts], axis=axis))


def chunk(t: Translator, node: fx.Node, x: Value, count: int, axis: int = 0) -> list[Value]:
    metas = node.meta["val"]
    sizes = t.writer.constant([int(m.shape[axis]) for m in metas], "int64")
    names = t.writer.ops("Split", t.name(x), sizes, outputs=len(metas), axis=axis)
    return [Value(n, m.dtype, m.ndim) for n, m in zip(names, metas, strict=True)]


def unbind(t: Translator, node: fx.Node, x: Value, axis: int = 0) -> list[Value]:
    metas = node.meta["val"]
    return [
        Value(t.writer.op("Gather", t.name(x), t.writer.constant(i, "int64"), axis=axis), m.dtype, m.ndim)
        for i, m in enumerate(metas)
    ]


def gather(t: Translator, node: fx.Node, x: Value, axis: int, index: Any_, **_: Any) -> Value:
    return made(t, node, t.writer.op("GatherElements", t.name(x), t.name(index), axis=axis))


def arange(t: Translator, node: fx.Node, *bounds: Any, **_: Any) -> Value:
    start, end = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    w = t.writer
    scalars = [w.op("Squeeze", v.name) if isinstance(v, Size) else w.constant(v, "int64") for v in (start, end)]
    values = w.op("Range", *scalars, w.constant(1, "int64"))
    dtype = node.meta["val"].dtype
    return made(t, node, values if dtype == torch.int64 else w.op("Cast", values, to=ELEMENT[dtype]))


def filled(value: float) -> Any:
    def apply(t: Translator, node: fx.Node, like: Value, **_: Any) -> Value:
        dtype = node.meta["val"].dtype
        one = t.writer.tensor(torch.tensor(value).to(dtype))
        return made(t, node, t.writer.op("Expand", one, t.writer.op("Shape", t.name(like))))

    return apply


def full(t: Translator, node: fx.Node, shape: Any, value: Any = 0, **_: Any) -> Value:
    constant = t.writer.tensor(torch.tensor(value).to(node.meta["val"].dtype))
    return made(t, node, t.writer.op("Expand", constant, t.shape(shape)))


def repeat_interleave(t: Translator, node: fx.Node, x: Value, repeats: int, axis: int, **_: Any) -> Value:
    """Each entry of the axis repeated in place: a new axis, broadcast, and folded in."""
    w, shape = t.writer, node.meta["val"].shape
    lifted = w.op("Unsqueeze", t.name(x), w.constant([axis + 1], "int64"))
    ones = [1] * (x.rank + 1)
    ones[axis + 1] = repeats
    wide = w.op("Expand", lifted, w.constant(ones, "int64"))
    sizes = [0] * axis + [int(shape[axis])] + [-1] + [int(s) for s in shape[axis + 2 :]]
    return made(t, node, w.op("Reshape", wide, w.constant(sizes, "int64")))
