"""One linear layer in the form its runtime runs fast: plain, ONNX Runtime's MatMulNBits, or standard Q/DQ.

The numbers are those of the stored weight in every form; only their layout differs.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from athena_vla.export import tensorrt_operators
from athena_vla.export.writer import ELEMENT, GraphWriter
from athena_vla.models.weights.packed import Packed, nibbles

Form = Literal["contrib", "qdq"]
NBITS_BLOCK = 128  # MatMulNBits has no per-channel scale: a channel's scale is repeated for each block


@dataclass(frozen=True)
class LinearForm:
    """How linear layers are written. `accuracy` is MatMulNBits' level: 1 = float32, 4 = int8 activations."""

    form: Form
    accuracy: Literal[1, 4] = 1
    dtype: torch.dtype = torch.float32  # of activations
    tensorrt: bool = False  # weights that TensorRT would not keep as they are stored are written in 16 bits


def linear(writer: GraphWriter, x: str, name: str, weight: Tensor | Packed, bias: str | None, how: LinearForm) -> str:
    """x [.., in] times the weight `[out, in]` transposed, plus bias."""
    if isinstance(weight, Packed) and how.tensorrt and not tensorrt_operators.takes(weight.bits, weight.group):
        weight = weight.dequantize().half()
    if isinstance(weight, Packed):
        if how.form == "contrib" and _block(weight) is not None:
            y = _matmul_nbits(writer, x, name, weight, how)
        else:
            y = writer.op("MatMul", x, _dequantized(writer, name, weight, how.dtype))
    else:
        y = writer.op("MatMul", x, plain(writer, name, weight, how.dtype, transpose=True))
    return y if bias is None else writer.op("Add", y, bias)


def plain(writer: GraphWriter, name: str, weight: Tensor, dtype: torch.dtype, *, transpose: bool = False) -> str:
    """A floating weight in the type it is stored in, cast in the graph to the type of the activations."""
    stored = weight.float() if weight.dtype == torch.bfloat16 else weight
    key = name
    if transpose:
        stored, key = stored.t(), f"{name}.T"
    if dtype == torch.float16 and stored.dtype == torch.float32:
        stored, key = stored.half(), f"{key}.half"
    value = writer.tensor(stored, key)
    return value if stored.dtype == dtype else writer.op("Cast", value, to=ELEMENT[dtype])


def _block(weight: Packed) -> int | None:
    """The block size MatMulNBits can run: a power of two from 16 that divides the group and the input."""
    if weight.group in (16, 32, 64, 128, 256):
        return weight.group
    for block in (NBITS_BLOCK, 64, 32, 16):
        if weight.group % block == 0:
            return block
    return None


def _matmul_nbits(writer: GraphWriter, x: str, name: str, weight: Packed, how: LinearForm) -> str:
    rows, columns = weight.shape
    block = _block(weight)
    assert block is not None
    unsigned = weight.codes + (8 if weight.bits == 4 else 0)
    if weight.bits == 4:
        stored = nibbles(unsigned).numpy()
    else:
        stored = (weight.codes.to(torch.int16) + 128).to(torch.uint8).numpy()
    stored = np.ascontiguousarray(stored.reshape(rows, columns // block, -1))
    scales = weight.scales.to(how.dtype).repeat_interleave(weight.group // block, dim=1).contiguous()
    codes = writer.weight(f"{name}.nbits{weight.bits}", TensorProto.UINT8, stored.shape, stored)
    suffix = "nbits_scales" if how.dtype == torch.float32 else "nbits_scales_half"
    scale = writer.tensor(scales.reshape(-1), f"{name}.{suffix}")
    return writer.op(
        "MatMulNBits",
        x,
        codes,
        scale,
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=weight.bits,
        block_size=block,
        accuracy_level=how.accuracy,
    )


def _dequantized(writer: GraphWriter, name: str, weight: Packed, dtype: torch.dtype) -> str:
    """Standard DequantizeLinear of the transposed codes `[in, out]`: blocks along axis 0, or per output channel."""
    rows, columns = weight.shape
    codes = weight.codes.t().contiguous()
    scales = weight.scales.t().contiguous().to(dtype)
    suffix = "half" if dtype == torch.float16 else "float"
    if weight.bits == 4:
        packed = nibbles(codes.reshape(1, -1)).reshape(-1).numpy()
        stored = writer.weight(f"{name}.int4", TensorProto.INT4, (columns, rows), packed)
    else:
        stored = writer.weight(f"{name}.int8", TensorProto.INT8, (columns, rows), codes.numpy())
    if weight.bits == 8 and weight.group == columns:
        scale = writer.tensor(scales.reshape(-1), f"{name}.scales_{suffix}")
        return writer.op("DequantizeLinear", stored, scale, axis=1)
    scale = writer.tensor(scales, f"{name}.scales_{suffix}")
    return writer.op("DequantizeLinear", stored, scale, axis=0, block_size=weight.group)
