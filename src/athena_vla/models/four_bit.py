"""Linear layers in 4 bits (NF4) through bitsandbytes: make one, read it back, and import the library without its noise.

The only place that imports bitsandbytes for weights. Knows nothing of models, adapters or files.
"""

import logging
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from athena_vla.errors import MissingDependency

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
    storage: torch.dtype = torch.uint8,
) -> nn.Module:
    """A frozen layer with `weight` in 4 bits on `device`; moving there is what quantises.

    `double` quantises the scales too. `storage` is the type the codes are kept as: sharding (FSDP) takes only tensors
    of the type of their neighbours, so there it is theirs, and the bytes are the same.
    """
    bnb: Any = library()
    layer = bnb.nn.Linear4bit(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        compute_dtype=compute,
        compress_statistics=double,
        quant_type="nf4",
        quant_storage=storage,
        device="meta",
    )
    layer.weight = bnb.nn.Params4bit(
        weight.contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=double,
        quant_storage=storage,
        module=layer,
    )
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    # In evaluation on newer CPUs it would repack the weights in place, and merging could no longer read them.
    layer.support_avx512bf16_for_cpu = False
    layer.plain_dtype = weight.dtype  # bitsandbytes forgets it; merging gives it back
    return layer.to(device)


def is_four_bit(module: nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")


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
    codes, state = functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    return functional.dequantize_4bit(codes, state)
