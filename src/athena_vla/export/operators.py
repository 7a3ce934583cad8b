"""The ONNX form of each operator the model families use; one small function each, in one table.

Only what appears is here: an unknown operator is an error that names it, never a guess.
"""

from typing import Any

import torch
from torch import fx

from athena_vla.export import linear as linear_forms
from athena_vla.export import tensors
from athena_vla.export.translator import Any_, Translator, Value, Weight
from athena_vla.export.writer import ELEMENT
from athena_vla.models.weights.packed import Packed

aten = torch.ops.aten
MASKED = {torch.float32: -1e30, torch.float16: -6e4}  # finite: a row that may look nowhere must not become NaN


def _binary(kind: str) -> Any:
    def apply(t: Translator, node: fx.Node, a: Any_, b: Any_, *, alpha: float = 1) -> Value:
        if alpha != 1:
            assert isinstance(b, (int, float))
            b = b * alpha
        dtype = torch.promote_types(*[tensors.operand_type(t, v, node) for v in (a, b)])
        return tensors.made(t, node, t.writer.op(kind, tensors.as_type(t, a, dtype), tensors.as_type(t, b, dtype)))

    return apply


def _unary(kind: str) -> Any:
    def apply(t: Translator, node: fx.Node, x: Any_) -> Value:
        return tensors.made(t, node, t.writer.op(kind, t.name(x)))

    return apply


def _linear(t: Translator, node: fx.Node, x: Any_, weight: Any_, bias: Any_ = None) -> Value:
    added = None if bias is None else t.name(bias, t.how.dtype)
    if isinstance(weight, Weight):
        key, stored = t.shared_name(weight.name), t.read(weight.name)
        wanted = _wanted_rows(node) if bias is None else None
        if wanted is not None:
            first, last = wanted
            stored = stored.rows(first, last) if isinstance(stored, Packed) else stored[first:last].clone()
            key = f"{key}[{first}:{last}]"
        return tensors.made(t, node, linear_forms.linear(t.writer, t.name(x), key, stored, added, t.how))
    if isinstance(weight, torch.Tensor):
        y = t.writer.op("MatMul", t.name(x), t.writer.tensor(weight.t().contiguous().to(t.how.dtype)))
    else:
        y = t.writer.op("MatMul", t.name(x), t.writer.op("Transpose", t.name(weight), perm=[1, 0]))
    return tensors.made(t, node, y if added is None else t.writer.op("Add", y, added))


def _wanted_rows(node: fx.Node) -> tuple[int, int] | None:
    """The outputs of a layer that are read at all: an output layer of 32,000 rows is cut to the 256 action tokens."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not aten.slice.Tensor or len(users[0].args) != 4:
        return None
    _, axis, first, last = users[0].args
    rank, rows = node.meta["val"].ndim, node.meta["val"].shape[-1]
    if axis not in (-1, rank - 1) or not isinstance(first, int) or not isinstance(last, int):
        return None
    return (first, min(last, rows)) if 0 <= first < last else None


def _slice(t: Translator, node: fx.Node, x: Any_, *bounds: Any) -> Any_:
    source = node.args[0]
    if isinstance(source, fx.Node) and source.target is aten.linear.default and isinstance(x, Value):
        layer = t.traced.program.graph_signature  # a layer of stored weights has been cut already
        weight = source.args[1]
        stored = isinstance(weight, fx.Node) and weight.name in layer.inputs_to_parameters
        if stored and len(source.args) == 2 and _wanted_rows(source) is not None:
            return tensors.made(t, node, x.name)
    return tensors.cut(t, node, x, *bounds)


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
    return tensors.made(t, node, t.writer.op("LayerNormalization", t.name(x), *extra, axis=-len(shape), epsilon=eps))


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
    return tensors.made(t, node, w.op("MatMul", w.op("Softmax", scores, axis=-1), t.name(v)))


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
        return tensors.made(t, node, rows if stored.dtype == dtype else t.writer.op("Cast", rows, to=ELEMENT[dtype]))
    return tensors.made(t, node, t.writer.op("Gather", t.name(table), t.name(ids)))


def _silu(t: Translator, node: fx.Node, x: Value) -> Value:
    return tensors.made(t, node, t.writer.op("Mul", t.name(x), t.writer.op("Sigmoid", t.name(x))))


def _gelu(t: Translator, node: fx.Node, x: Value, approximate: str = "none") -> Value:
    return tensors.made(t, node, t.writer.op("Gelu", t.name(x), approximate=approximate))


def _rsqrt(t: Translator, node: fx.Node, x: Value) -> Value:
    return tensors.made(t, node, t.writer.op("Reciprocal", t.writer.op("Sqrt", t.name(x))))


def _square(t: Translator, node: fx.Node, x: Value, exponent: Any = 2) -> Value:
    if exponent == 2:
        return tensors.made(t, node, t.writer.op("Mul", t.name(x), t.name(x)))
    return tensors.made(t, node, t.writer.op("Pow", t.name(x), t.name(exponent, x.dtype)))


def _scalar_pow(t: Translator, node: fx.Node, base: float, exponent: Value) -> Value:
    return tensors.made(t, node, t.writer.op("Pow", t.name(base, exponent.dtype), t.name(exponent)))


def _mean(t: Translator, node: fx.Node, x: Value, axes: Any, keep: bool = False, **_: Any) -> Value:
    return tensors.made(
        t, node, t.writer.op("ReduceMean", t.name(x), t.writer.constant(list(axes), "int64"), keepdims=int(keep))
    )


def _sum(t: Translator, node: fx.Node, x: Value, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    dtype = node.meta["val"].dtype
    picked = [] if axes is None else [t.writer.constant(list(axes), "int64")]
    return tensors.made(t, node, t.writer.op("ReduceSum", tensors.as_type(t, x, dtype), *picked, keepdims=int(keep)))


def _cumsum(t: Translator, node: fx.Node, x: Value, axis: int, **_: Any) -> Value:
    dtype = node.meta["val"].dtype
    return tensors.made(t, node, t.writer.op("CumSum", tensors.as_type(t, x, dtype), t.writer.constant(axis, "int64")))


def _argmax(t: Translator, node: fx.Node, x: Value, axis: int = -1, keep: bool = False) -> Value:
    return tensors.made(t, node, t.writer.op("ArgMax", t.name(x), axis=axis, keepdims=int(keep)))


def _clamp(t: Translator, node: fx.Node, x: Value, low: Any = None, high: Any = None) -> Value:
    bounds = ["" if b is None else t.name(b, x.dtype) for b in (low, high)]
    return tensors.made(t, node, t.writer.op("Clip", t.name(x), *bounds))


def _where(t: Translator, node: fx.Node, condition: Any_, a: Any_, b: Any_) -> Value:
    dtype = node.meta["val"].dtype
    return tensors.made(
        t, node, t.writer.op("Where", t.name(condition), tensors.as_type(t, a, dtype), tensors.as_type(t, b, dtype))
    )


def _masked_fill(t: Translator, node: fx.Node, x: Any_, mask: Any_, value: Any_) -> Value:
    return _where(t, node, mask, value, x)


def _conv(
    t: Translator, node: fx.Node, x: Value, weight: Any_, bias: Any_ = None, stride: Any = 1, padding: Any = 0, *_: Any
) -> Value:
    pair = [v if isinstance(v, (list, tuple)) else [v, v] for v in (stride, padding)]
    extra = [] if bias is None else [t.name(bias, t.how.dtype)]
    y = t.writer.op("Conv", t.name(x), t.name(weight), *extra, strides=list(pair[0]), pads=[*pair[1], *pair[1]])
    return tensors.made(t, node, y)


def _nothing(*_: Any, **__: Any) -> None:
    return None


OPERATORS: dict[Any, Any] = {
    aten.linear.default: _linear,
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.embedding.default: _embedding,
    aten.conv2d.default: _conv,
    aten.gather.default: tensors.gather,
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.relu.default: _unary("Relu"),
    aten.tanh.default: _unary("Tanh"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.softmax.int: lambda t, n, x, axis, *_: tensors.made(t, n, t.writer.op("Softmax", t.name(x), axis=axis)),
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
    aten.to.dtype: tensors.cast,
    aten.to.dtype_layout: tensors.cast,
    aten._to_copy.default: tensors.cast,
    aten.type_as.default: tensors.cast,
    aten.contiguous.default: tensors.same,
    aten.clone.default: tensors.same,
    aten.alias.default: tensors.same,
    aten.detach.default: tensors.same,
    aten.dropout.default: tensors.same,
    aten.reshape.default: tensors.reshape,
    aten.view.default: tensors.reshape,
    aten.flatten.using_ints: tensors.flatten,
    aten.expand.default: tensors.expand,
    aten.expand_as.default: lambda t, n, x, y: tensors.made(
        t, n, t.writer.op("Expand", t.name(x), t.writer.op("Shape", t.name(y)))
    ),
    aten.transpose.int: tensors.transpose,
    aten.t.default: lambda t, n, x: tensors.transpose(t, n, x, 0, 1),
    aten.permute.default: tensors.permute,
    aten.unsqueeze.default: tensors.unsqueeze,
    aten.squeeze.dim: tensors.squeeze,
    aten.slice.Tensor: _slice,
    aten.select.int: tensors.select,
    aten.cat.default: tensors.cat,
    aten.stack.default: tensors.stack,
    aten.chunk.default: tensors.chunk,
    aten.unbind.int: tensors.unbind,
    aten.matmul.default: _binary("MatMul"),
    aten.repeat_interleave.self_int: tensors.repeat_interleave,
    aten.arange.default: tensors.arange,
    aten.arange.start: tensors.arange,
    aten.ones_like.default: tensors.filled(1.0),
    aten.zeros_like.default: tensors.filled(0.0),
    aten.full.default: tensors.full,
    aten.ones.default: lambda t, n, shape, **k: tensors.full(t, n, shape, 1),
    aten.zeros.default: lambda t, n, shape, **k: tensors.full(t, n, shape, 0),
    aten._assert_tensor_metadata.default: _nothing,
    aten._assert_scalar.default: _nothing,
    aten.sym_constrain_range_for_size.default: _nothing,
}
