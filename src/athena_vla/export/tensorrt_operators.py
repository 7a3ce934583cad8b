"""What TensorRT's parser takes: each operator that our graphs may hold, with the types of its inputs.

From onnx-tensorrt's docs/operators.md of 9.2 and of 10.15: what both list holds for 10.3 (JetPack 6.2) too. Gelu and
4-bit DequantizeLinear came in between, with 10.0. 10.16 (JetPack 7.2) is newer than any list that was at hand.
"""

from collections.abc import Iterator
from typing import Any

BLOCKS = (64, 128)  # inputs that share a scale in 4-bit weights; TensorRT takes no others
_FLOATS = frozenset({"FLOAT", "FLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ANY = _NUMBERS | {"BOOL"}
_BOOL = frozenset({"BOOL"})
TAKEN: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Mod", "Range", "Sign"), _NUMBERS),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _NUMBERS),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Relu", "ArgMax", "ArgMin", "TopK"), _NUMBERS
    ),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape"), _ANY),
    **dict.fromkeys(("Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"), _ANY),
    **dict.fromkeys(("Constant", "ConstantOfShape"), _ANY),
    **dict.fromkeys(("And", "Or", "Not", "Xor"), _BOOL),
    **dict.fromkeys(
        ("Ceil", "Clip", "Conv", "Cos", "Erf", "Exp", "Floor", "Gelu", "Gemm", "LayerNormalization"), _FLOATS
    ),
    **dict.fromkeys(
        ("Log", "MatMul", "Pow", "Reciprocal", "Round", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"), _FLOATS
    ),
    "DequantizeLinear": frozenset({"INT4"}),
}
_CODES_ONLY = ("DequantizeLinear",)  # of these the first input alone is meant


def refused(model: Any) -> Iterator[str]:
    """Each node that TensorRT's parser would not take, by its name, with what is wrong about it."""
    from onnx import TensorProto, shape_inference

    inferred = shape_inference.infer_shapes(model)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.input)}
    kinds |= {i.name: i.data_type for i in model.graph.initializer}
    for node in model.graph.node:
        called = f"{node.op_type} '{node.name or node.output[0]}'"
        if node.domain:
            yield f"{called} is of {node.domain}"
        elif node.op_type not in TAKEN:
            yield f"{called} is no operator that it knows"
        else:
            inputs = node.input[:1] if node.op_type in _CODES_ONLY else node.input
            found = {TensorProto.DataType.Name(kinds[i]) for i in inputs if kinds.get(i)}
            wrong = sorted(found - TAKEN[node.op_type])
            if wrong:
                yield f"{called} reads {', '.join(wrong)}"
        sizes = {a.name: a.i for a in node.attribute}
        if node.op_type == "DequantizeLinear" and sizes.get("block_size") not in BLOCKS:
            yield f"{called} has blocks of {sizes.get('block_size', 'a whole row')}"


def takes(bits: int, group: int) -> bool:
    """Whether a quantised weight stays as it is. 8-bit weights beside 16-bit activations are folded to 16 bits."""
    return bits == 4 and group in BLOCKS
