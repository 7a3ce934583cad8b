"""Linear layers in 4 bits (NF4) through bitsandbytes: make one, read it back, and import the library without its noise.

The only place that imports bitsandbytes for weights. Knows nothing of models, adapters or files.
"""

import logging
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from athena_vla.errors import MissingDependency, ModelError

_BLOCK = 64  # weights that share a scale
_CHUNK = 65_536  # weights quantised at a time on a CPU: what fits into its cache
_CELLS = 512  # of [-1, 1] in the look-up; no cell holds two boundaries between codes
_NOTICE = "Failed to load CPU gemm_4bit_forward"  # an optional download that nothing here uses


def library(why: str = "for weights in 4 bits (QLoRA)") -> ModuleType:
    """bitsandbytes. Raises `MissingDependency`."""
    silence()
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependency("bitsandbytes", "gpu", why) from error
    return bitsandbytes


def silence() -> None:
    """Drop bitsandbytes' notice about kernels it would like to download; peft imports it too, so call this before."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_not_the_notice)


def _not_the_notice(record: logging.LogRecord) -> bool:
    return _NOTICE not in str(record.msg)


def linear(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    double: bool,
    compute: torch.dtype,
    device: torch.device | str,
) -> nn.Module:
    """A frozen layer with `weight` in 4 bits, quantised on `device`.

    `double` quantises the scales too.
    """
    bnb: Any = library()
    layer = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        compute_dtype=compute,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    weight = weight.to(device).contiguous()
    codes, state = quantized(weight, double=double)
    layer.weight = bnb.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=state,
        quant_type="nf4",
        compress_statistics=double,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(device), requires_grad=False)
    # In evaluation on newer CPUs it would repack the weights in place, and merging could no longer read them.
    layer.support_avx512bf16_for_cpu = False
    layer.plain_dtype = weight.dtype  # bitsandbytes forgets it; merging gives it back
    return layer


def quantized(weight: Tensor, *, double: bool) -> tuple[Tensor, Any]:
    """Codes and bitsandbytes' state of a weight, on its device; on a CPU by our own loop, which gives the same bits."""
    functional: Any = library().functional
    if weight.device.type != "cpu" or weight.numel() % _BLOCK:
        return functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    table = functional.get_4bit_type("nf4", device="cpu")
    codes, scales = _codes(weight, table)
    nested: dict[str, Any] = {}
    if double:
        offset = scales.mean()
        scales, inner = functional.quantize_blockwise(scales - offset, blocksize=256)
        nested = {"offset": offset, "state2": inner}
    state = functional.QuantState(
        absmax=scales, shape=weight.shape, dtype=weight.dtype, blocksize=_BLOCK, code=table, quant_type="nf4", **nested
    )
    return codes[:, None], state


def _codes(weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes per byte, and the largest magnitude of each block. Chunk by chunk and with a look-up instead of a
    search per weight: bitsandbytes' own loop holds five copies in float32 and takes about three times as long.
    """
    flat = weight.reshape(-1)
    bounds = (table[1:] + table[:-1]) / 2
    # A cell of width 2 / _CELLS holds at most one boundary: the code at its start, and one more beyond that boundary.
    start = torch.arange(_CELLS + 1) / (_CELLS / 2) - 1
    lowest = torch.bucketize(start, bounds).to(torch.uint8)
    boundary = torch.cat([bounds, bounds.new_tensor([2.0])])[lowest.long()]
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8)
    scales = torch.empty(flat.numel() // _BLOCK)
    for first in range(0, flat.numel(), _CHUNK):
        x = flat[first : first + _CHUNK].float().view(-1, _BLOCK)
        largest = x.abs().amax(1)
        if not largest.isfinite().all():
            raise ModelError(
                f"A weight of shape {list(weight.shape)} has values that are not finite: its file is broken."
            )
        scales[first // _BLOCK :][: len(largest)] = largest
        x = (x * (1.0 / largest.clamp(min=1e-38))[:, None]).clamp_(-1, 1).view(-1)
        cell = ((x + 1) * (_CELLS / 2)).int()
        code = lowest[cell] + (x > boundary[cell]).view(torch.uint8)
        packed[first // 2 :][: len(code) // 2] = (code[::2] << 4) | code[1::2]
    return packed, scales


def is_four_bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


def store_as_(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the layer's codes in a floating-point type, the same bytes viewed otherwise.

    A sharded parameter has to be of one; bitsandbytes reads codes through `quant_state`, whatever their type.
    """
    weight = cast(Any, module.weight)
    weight.data = weight.data.reshape(-1).view(dtype).reshape(-1, 1)
    weight.quant_storage = cast(Any, module).quant_storage = dtype


def dequantized(module: nn.Module) -> Tensor:
    """The numbers the layer computes with, in the type the weight had."""
    bnb: Any = library()
    weight = cast(Tensor, module.weight)
    state = getattr(weight, "quant_state", None)
    assert state is not None, "4-bit weights are quantised when they are placed on a device"
    return bnb.functional.dequantize_4bit(weight.data, state).to(cast(torch.dtype, module.plain_dtype))


def round_trip(weight: Tensor, *, double: bool) -> Tensor:
    """The weight as a 4-bit layer computes with it."""
    functional: Any = library("to merge into the 4-bit base of QLoRA").functional
    codes, state = quantized(weight, double=double)
    return functional.dequantize_4bit(codes, state)
