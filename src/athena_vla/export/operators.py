"""The ONNX form of each operator the model families use; one small function each, in one table.

Only what appears is here: an unknown operator is an error that names it, never a guess.
"""

from typing import Any

import torch
from torch import fx

from athena_vla.export import linear as linear_forms
from athena_vla.export.translate import Any_, Size, Translator, Value, Weight
from athena_vla.export.writer import ELEMENT
from athena_vla.models.packed import Packed

aten = torch.ops.aten
LAST = 9223372036854775807  # torch's "to the end" in slices; ONNX means the same by it
MASKED = {torch.float32: -1e30, torch.float16: -6e4}  # finite: a row that may look nowhere must not become NaN


def _out(t: Translator, node: fx.Node, name: str) -> Value:
    meta = node.meta["val"]
    return Value(name, meta.dtype, meta.ndim)


def _binary(kind: str) -> Any:
    def apply(t: Translator, node: fx.Node, a: Any_, b: Any_, *, alpha: float = 1) -> Value:
        if alpha != 1:
            assert isinstance(b, (int, float))
            b = b * alpha
        dtype = torch.promote_types(*[_dtype(t, v, node) for v in (a, b)])
        return _out(t, node, t.writer.op(kind, _as(t, a, dtype), _as(t, b, dtype)))

    return apply


def _dtype(t: Translator, value: Any_, node: fx.Node) -> torch.dtype:
    """Type of an operand; python numbers take the type of the other operand."""
    if isinstance(value, (Value, torch.Tensor)):
        return value.dtype
    if isinstance(value, Weight):
        return t.how.dtype
    others = [v.meta["val"].dtype for v in node.all_input_nodes if isinstance(v.meta.get("val"), torch.Tensor)]
    if isinstance(value, float) and not any(o.is_floating_point for o in others):
        return torch.float32
    return others[0]


def _as(t: Translator, value: Any_, dtype: torch.dtype) -> str:
    name = t.name(value, dtype)
    if isinstance(value, (Value, Weight)) and _own(t, value) != dtype:
        return t.writer.op("Cast", name, to=ELEMENT[dtype])
    if isinstance(value, torch.Tensor) and value.dtype != dtype:
        return t.name(value.to(dtype))
    return name


def _own(t: Translator, value: Value | Weight) -> torch.dtype:
    return value.dtype if isinstance(value, Value) else t.how.dtype


def _unary(kind: str) -> Any:
    def apply(t: Translator, node: fx.Node, x: Any_) -> Value:
        return _out(t, node, t.writer.op(kind, t.name(x)))

    return apply


def _linear(t: Translator, node: fx.Node, x: Any_, weight: Any_, bias: Any_ = None) -> Value:
    added = None if bias is None else t.name(bias, t.how.dtype)
    if isinstance(weight, Weight):
        key = t.shared_name(weight.name)
        return _out(t, node, linear_forms.linear(t.writer, t.name(x), key, t.read(weight.name), added, t.how))
    if isinstance(weight, torch.Tensor):
        y = t.writer.op("MatMul", t.name(x), t.writer.tensor(weight.t().contiguous().to(t.how.dtype)))
    else:
        y = t.writer.op("MatMul", t.name(x), t.writer.op("Transpose", t.name(weight), perm=[1, 0]))
    return _out(t, node, y if added is None else t.writer.op("Add", y, added))


def _layer_norm(
    t: Translator,
    node: fx.Node,
    x: Any_,
    shape: Any,
    weight: Any_ = None,
    bias: Any_ = None,
    eps: float = 1e-5,
    *_: Any,
) -> Value:
    extra = [t.name(v, t.how.dtype) for v in (weight, bias) if v is not None]
    return _out(t, node, t.writer.op("LayerNormalization", t.name(x), *extra, axis=-len(shape), epsilon=eps))


def _attention(
    t: Translator, node: fx.Node, q: Value, k: Value, v: Value, attn_mask: Any_ = None, *_: Any, **options: Any
) -> Value:
    """Softmax(q k^T / sqrt(width) + bias) v in standard operators; the scale goes onto q, which is smaller."""
    w = t.writer
    width = node.args[0].meta["val"].shape[-1]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    scale = options.get("scale") or width**-0.5
    assert not options.get("is_causal")
    scaled = w.op("Mul", t.name(q), t.name(float(scale), q.dtype))
    scores = w.op("MatMul", scaled, w.op("Transpose", t.name(k), perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = w.op("Add", scores, _bias(t, attn_mask, q.dtype))
    return _out(t, node, w.op("MatMul", w.op("Softmax", scores, axis=-1), t.name(v)))


def _bias(t: Translator, mask: Any_, dtype: torch.dtype) -> str:
    """An additive mask, made once for all layers."""
    name = t.name(mask, dtype)
    kind = mask.dtype if isinstance(mask, (Value, torch.Tensor)) else dtype
    if kind != torch.bool:
        return name
    key = ("bias", name)
    if key not in t.writer.known:
        zero, never = t.name(0.0, dtype), t.name(MASKED[dtype], dtype)
        t.writer.known[key] = t.writer.op("Where", name, zero, never)
    return t.writer.known[key]


def _to(t: Translator, node: fx.Node, x: Any_, *_: Any, **__: Any) -> Value:
    dtype = node.meta["val"].dtype
    if isinstance(x, Value) and x.dtype == dtype:
        return x
    return _out(t, node, t.writer.op("Cast", t.name(x), to=ELEMENT[dtype]))


def _same(t: Translator, node: fx.Node, x: Any_, *_: Any, **__: Any) -> Any_:
    return x


def _reshape(t: Translator, node: fx.Node, x: Any_, shape: Any) -> Value:
    sizes, source = list(shape), node.args[0]
    if isinstance(x, Value) and isinstance(source, fx.Node):
        before = t.traced.shape(source)
        after = t.traced.shape(node)
        # An axis that stays in its place is ONNX's zero, which needs no computing of shapes when the graph runs.
        for i, size in enumerate(sizes):
            if isinstance(size, Size) and i < len(before) and before[i] == after[i]:
                sizes[i] = 0
    unknown = [i for i, s in enumerate(sizes) if isinstance(s, Size)]
    if len(unknown) == 1 and -1 not in sizes:
        sizes[unknown[0]] = -1
    return _out(t, node, t.writer.op("Reshape", t.name(x), t.shape(sizes), allowzero=0))


def _flatten(t: Translator, node: fx.Node, x: Value, start: int = 0, end: int = -1) -> Value:
    shape = node.meta["val"].shape
    # Axes before the flattened ones are kept by ONNX's zero; those after have to be numbers.
    sizes = [0] * start + [-1] + [int(s) for s in shape[start + 1 :]]
    return _out(t, node, t.writer.op("Reshape", t.name(x), t.writer.constant(sizes, "int64")))


def _expand(t: Translator, node: fx.Node, x: Any_, shape: Any, **_: Any) -> Value:
    # ONNX's Expand broadcasts: a one keeps the axis, which is what torch's -1 means.
    return _out(t, node, t.writer.op("Expand", t.name(x), t.shape([1 if s == -1 else s for s in shape])))


def _transpose(t: Translator, node: fx.Node, x: Value, a: int, b: int) -> Value:
    order = list(range(node.meta["val"].ndim))
    order[a], order[b] = order[b], order[a]
    return _out(t, node, t.writer.op("Transpose", t.name(x), perm=order))


def _permute(t: Translator, node: fx.Node, x: Value, order: Any) -> Value:
    return _out(t, node, t.writer.op("Transpose", t.name(x), perm=list(order)))


def _unsqueeze(t: Translator, node: fx.Node, x: Any_, axis: int) -> Value:
    return _out(t, node, t.writer.op("Unsqueeze", t.name(x), t.writer.constant([axis], "int64")))


def _squeeze(t: Translator, node: fx.Node, x: Any_, axis: int) -> Value:
    return _out(t, node, t.writer.op("Squeeze", t.name(x), t.writer.constant([axis], "int64")))


def _slice(
    t: Translator, node: fx.Node, x: Any_, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any_:
    if start in (None, 0) and (end is None or end == LAST) and step == 1:
        return x
    w = t.writer
    bounds = [t.size(0 if start is None else start), t.size(LAST if end is None else end)]
    return _out(t, node, w.op("Slice", t.name(x), *bounds, t.size(axis), t.size(step)))


def _select(t: Translator, node: fx.Node, x: Any_, axis: int, index: Any) -> Value:
    if isinstance(index, Size):
        picked = t.writer.op("Gather", t.name(x), index.name, axis=axis)
        return _out(t, node, t.writer.op("Squeeze", picked, t.writer.constant([axis], "int64")))
    return _out(t, node, t.writer.op("Gather", t.name(x), t.writer.constant(index, "int64"), axis=axis))


def _cat(t: Translator, node: fx.Node, parts: Any, axis: int = 0) -> Value:
    dtype = node.meta["val"].dtype
    return _out(t, node, t.writer.op("Concat", *[_as(t, p, dtype) for p in parts], axis=axis))


def _stack(t: Translator, node: fx.Node, parts: Any, axis: int = 0) -> Value:
    at = t.writer.constant([axis], "int64")
    return _out(t, node, t.writer.op("Concat", *[t.writer.op("Unsqueeze", t.name(p), at) for p in parts], axis=axis))


def _chunk(t: Translator, node: fx.Node, x: Value, count: int, axis: int = 0) -> list[Value]:
    metas = node.meta["val"]
    sizes = t.writer.constant([int(m.shape[axis]) for m in metas], "int64")
    names = t.writer.ops("Split", t.name(x), sizes, outputs=len(metas), axis=axis)
    return [Value(n, m.dtype, m.ndim) for n, m in zip(names, metas, strict=True)]


def _unbind(t: Translator, node: fx.Node, x: Value, axis: int = 0) -> list[Value]:
    metas = node.meta["val"]
    return [
        Value(t.writer.op("Gather", t.name(x), t.writer.constant(i, "int64"), axis=axis), m.dtype, m.ndim)
        for i, m in enumerate(metas)
    ]


def _embedding(t: Translator, node: fx.Node, table: Any_, ids: Value, *_: Any) -> Value:
    # The table stays as stored and only the rows are cast: casting it would copy it into memory at load.
    dtype = t.how.dtype
    if isinstance(table, Weight):
        stored = t.read(table.name)
        if isinstance(stored, Packed):
            stored = stored.dequantize()
        stored = stored.half() if dtype == torch.float16 or stored.dtype == torch.bfloat16 else stored
        rows = t.writer.op(
            "Gather", t.writer.tensor(stored, f"{t.shared_name(table.name)}.{stored.dtype}"), t.name(ids)
        )
        return _out(t, node, rows if stored.dtype == dtype else t.writer.op("Cast", rows, to=ELEMENT[dtype]))
    return _out(t, node, t.writer.op("Gather", t.name(table), t.name(ids)))


def _gather(t: Translator, node: fx.Node, x: Value, axis: int, index: Any_, **_: Any) -> Value:
    return _out(t, node, t.writer.op("GatherElements", t.name(x), t.name(index), axis=axis))


def _silu(t: Translator, node: fx.Node, x: Value) -> Value:
    return _out(t, node, t.writer.op("Mul", t.name(x), t.writer.op("Sigmoid", t.name(x))))


def _gelu(t: Translator, node: fx.Node, x: Value, approximate: str = "none") -> Value:
    return _out(t, node, t.writer.op("Gelu", t.name(x), approximate=approximate))


def _rsqrt(t: Translator, node: fx.Node, x: Value) -> Value:
    return _out(t, node, t.writer.op("Reciprocal", t.writer.op("Sqrt", t.name(x))))


def _square(t: Translator, node: fx.Node, x: Value, exponent: Any = 2) -> Value:
    if exponent == 2:
        return _out(t, node, t.writer.op("Mul", t.name(x), t.name(x)))
    return _out(t, node, t.writer.op("Pow", t.name(x), t.name(exponent, x.dtype)))


def _scalar_pow(t: Translator, node: fx.Node, base: float, exponent: Value) -> Value:
    return _out(t, node, t.writer.op("Pow", t.name(base, exponent.dtype), t.name(exponent)))


def _mean(t: Translator, node: fx.Node, x: Value, axes: Any, keep: bool = False, **_: Any) -> Value:
    return _out(
        t, node, t.writer.op("ReduceMean", t.name(x), t.writer.constant(list(axes), "int64"), keepdims=int(keep))
    )


def _sum(t: Translator, node: fx.Node, x: Value, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    dtype = node.meta["val"].dtype
    picked = [] if axes is None else [t.writer.constant(list(axes), "int64")]
    return _out(t, node, t.writer.op("ReduceSum", _as(t, x, dtype), *picked, keepdims=int(keep)))


def _cumsum(t: Translator, node: fx.Node, x: Value, axis: int, **_: Any) -> Value:
    dtype = node.meta["val"].dtype
    return _out(t, node, t.writer.op("CumSum", _as(t, x, dtype), t.writer.constant(axis, "int64")))


def _argmax(t: Translator, node: fx.Node, x: Value, axis: int = -1, keep: bool = False) -> Value:
    return _out(t, node, t.writer.op("ArgMax", t.name(x), axis=axis, keepdims=int(keep)))


def _clamp(t: Translator, node: fx.Node, x: Value, low: Any = None, high: Any = None) -> Value:
    bounds = ["" if b is None else t.name(b, x.dtype) for b in (low, high)]
    return _out(t, node, t.writer.op("Clip", t.name(x), *bounds))


def _where(t: Translator, node: fx.Node, condition: Any_, a: Any_, b: Any_) -> Value:
    dtype = node.meta["val"].dtype
    return _out(t, node, t.writer.op("Where", t.name(condition), _as(t, a, dtype), _as(t, b, dtype)))


def _masked_fill(t: Translator, node: fx.Node, x: Any_, mask: Any_, value: Any_) -> Value:
    return _where(t, node, mask, value, x)


def _conv(
    t: Translator, node: fx.Node, x: Value, weight: Any_, bias: Any_ = None, stride: Any = 1, padding: Any = 0, *_: Any
) -> Value:
    pair = [v if isinstance(v, (list, tuple)) else [v, v] for v in (stride, padding)]
    extra = [] if bias is None else [t.name(bias, t.how.dtype)]
    y = t.writer.op("Conv", t.name(x), t.name(weight), *extra, strides=list(pair[0]), pads=[*pair[1], *pair[1]])
    return _out(t, node, y)


def _arange(t: Translator, node: fx.Node, *bounds: Any, **_: Any) -> Value:
    start, end = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    w = t.writer
    scalars = [w.op("Squeeze", v.name) if isinstance(v, Size) else w.constant(v, "int64") for v in (start, end)]
    made = w.op("Range", *scalars, w.constant(1, "int64"))
    dtype = node.meta["val"].dtype
    return _out(t, node, made if dtype == torch.int64 else w.op("Cast", made, to=ELEMENT[dtype]))


def _filled(value: float) -> Any:
    def apply(t: Translator, node: fx.Node, like: Value, **_: Any) -> Value:
        dtype = node.meta["val"].dtype
        one = t.writer.tensor(torch.tensor(value).to(dtype))
        return _out(t, node, t.writer.op("Expand", one, t.writer.op("Shape", t.name(like))))

    return apply


def _full(t: Translator, node: fx.Node, shape: Any, value: Any = 0, **_: Any) -> Value:
    constant = t.writer.tensor(torch.tensor(value).to(node.meta["val"].dtype))
    return _out(t, node, t.writer.op("Expand", constant, t.shape(shape)))


def _repeat_interleave(t: Translator, node: fx.Node, x: Value, repeats: int, axis: int, **_: Any) -> Value:
    """Each entry of the axis repeated in place: a new axis, broadcast, and folded in."""
    w, shape = t.writer, node.meta["val"].shape
    lifted = w.op("Unsqueeze", t.name(x), w.constant([axis + 1], "int64"))
    ones = [1] * (x.rank + 1)
    ones[axis + 1] = repeats
    wide = w.op("Expand", lifted, w.constant(ones, "int64"))
    sizes = [0] * axis + [int(shape[axis])] + [-1] + [int(s) for s in shape[axis + 2 :]]
    return _out(t, node, w.op("Reshape", wide, w.constant(sizes, "int64")))


def _nothing(*_: Any, **__: Any) -> None:
    return None


OPERATORS: dict[Any, Any] = {
    aten.linear.default: _linear,
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.embedding.default: _embedding,
    aten.conv2d.default: _conv,
    aten.gather.default: _gather,
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.relu.default: _unary("Relu"),
    aten.tanh.default: _unary("Tanh"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.softmax.int: lambda t, n, x, axis, *_: _out(t, n, t.writer.op("Softmax", t.name(x), axis=axis)),
    aten.cos.default: _unary("Cos"),
    aten.sin.default: _unary("Sin"),
    aten.exp.default: _unary("Exp"),
    aten.neg.default: _unary("Neg"),
    aten.abs.default: _unary("Abs"),
    aten.bitwise_not.default: _unary("Not"),
    aten.logical_not.default: _unary("Not"),
    aten.rsqrt.default: _rsqrt,
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _square,
    aten.pow.Scalar: _scalar_pow,
    aten.mean.dim: _mean,
    aten.sum.dim_IntList: _sum,
    aten.cumsum.default: _cumsum,
    aten.argmax.default: _argmax,
    aten.clamp.default: _clamp,
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.add.Tensor: _binary("Add"),
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _binary("Mul"),
    aten.div.Tensor: _binary("Div"),
    aten.le.Tensor: _binary("LessOrEqual"),
    aten.lt.Tensor: _binary("Less"),
    aten.ge.Tensor: _binary("GreaterOrEqual"),
    aten.gt.Tensor: _binary("Greater"),
    aten.le.Scalar: _binary("LessOrEqual"),
    aten.lt.Scalar: _binary("Less"),
    aten.ge.Scalar: _binary("GreaterOrEqual"),
    aten.gt.Scalar: _binary("Greater"),
    aten.eq.Scalar: _binary("Equal"),
    aten.eq.Tensor: _binary("Equal"),
    aten.__and__.Tensor: _binary("And"),
    aten.bitwise_and.Tensor: _binary("And"),
    aten.logical_and.default: _binary("And"),
    aten.__or__.Tensor: _binary("Or"),
    aten.bitwise_or.Tensor: _binary("Or"),
    aten.to.dtype: _to,
    aten.to.dtype_layout: _to,
    aten._to_copy.default: _to,
    aten.type_as.default: _to,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.dropout.default: _same,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten.flatten.using_ints: _flatten,
    aten.expand.default: _expand,
    aten.expand_as.default: lambda t, n, x, y: _out(
        t, n, t.writer.op("Expand", t.name(x), t.writer.op("Shape", t.name(y)))
    ),
    aten.transpose.int: _transpose,
    aten.t.default: lambda t, n, x: _transpose(t, n, x, 0, 1),
    aten.permute.default: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.chunk.default: _chunk,
    aten.unbind.int: _unbind,
    aten.matmul.default: _binary("MatMul"),
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.ones_like.default: _filled(1.0),
    aten.zeros_like.default: _filled(0.0),
    aten.full.default: _full,
    aten.ones.default: lambda t, n, shape, **k: _full(t, n, shape, 1),
    aten.zeros.default: lambda t, n, shape, **k: _full(t, n, shape, 0),
    aten._assert_tensor_metadata.default: _nothing,
    aten._assert_scalar.default: _nothing,
    aten.sym_constrain_range_for_size.default: _nothing,
}
