"""Which number types a device multiplies fastest: oneDNN, the processor and the card are asked.

bfloat16 without instructions for it is emulated: matrix products are then 3 to 40 times slower than in float32.
"""

import os
import platform
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Name = Literal["fp32", "bf16", "fp16"]
# oneDNN's limits below its first instruction set with bfloat16 products, and the two names of the limit.
_WITHOUT_BF16 = frozenset(
    {"sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni", "avx512_mic"}
)
_X86 = ("x86_64", "amd64")
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the first that is set counts
TENSOR_CORES, BF16_CORES = (7, 0), (8, 0)  # compute capability of the first cards with products in fp16, in bfloat16
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether products in bfloat16 have instructions on `device`, within oneDNN's limit, that beat float32.

    AMX has. AVX-512's take half of float32's time on AMD's cores; on Intel's, which start one such product in a cycle
    and two in float32, they take 1.3 to 2.2 times as long.
    """
    place = torch.device(device)
    if place.type == "cuda":
        return _capability(place) >= BF16_CORES
    if place.type != "cpu" or _limit() in _WITHOUT_BF16 or not _onednn_has_bf16():
        return False
    # On x86 oneDNN also answers yes where it emulates, from AVX-512 on; elsewhere it asks for the instructions.
    if platform.machine().lower() not in _X86:
        return True
    return _processor_has_amx() or (_processor_has_bf16() and _is_amd())


def training_device() -> str:
    """Where a training without a device of its own runs: the GPU that torch sees, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fastest(device: torch.device | str = "cpu") -> Name:
    """bf16 where it is native, fp16 on cards with tensor cores for that alone, fp32 everywhere else."""
    if native_bf16(device):
        return "bf16"
    place = torch.device(device)
    return "fp16" if place.type == "cuda" and _capability(place) >= TENSOR_CORES else "fp32"


def resolved(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device | str) -> Name:
    """The precision itself; `auto` is the fastest of the device."""
    return fastest(device) if precision == "auto" else precision


def product_type(device: torch.device | str = "cpu") -> torch.dtype:
    """The type to multiply in, of weights that are stored in 16 bits or less."""
    return TYPES[fastest(device)]


def sentence(device: torch.device | str = "cpu") -> str:
    """What was found, for a person."""
    place = torch.device(device)
    if place.type == "cuda":
        major, minor = _capability(place)
        words = {
            "bf16": "multiplies bfloat16 natively",
            "fp16": "has no bfloat16 products; float16 is fastest here",
            "fp32": "has no tensor cores; float32 is fastest here",
        }
        return f"The GPU (compute capability {major}.{minor}) {words[fastest(place)]}."
    if native_bf16(place):
        return "The processor multiplies bfloat16 natively."
    if _limit() in _WITHOUT_BF16 and _processor_has_bf16():
        name = next(n for n in _LIMITS if os.environ.get(n))
        return f"{name}={os.environ[name]} keeps oneDNN from bfloat16 instructions; float32 is fastest here."
    if _processor_has_bf16():
        return "The processor's bfloat16 instructions are slower than those for float32, which is fastest here."
    return "The processor has no bfloat16 instructions; float32 is fastest here."


def multiply_natively(model: nn.Module, device: torch.device | str) -> None:
    """Let linear layers whose 16-bit type `device` would emulate multiply in float32; weights stay as they are."""
    if torch.device(device).type != "cpu":
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and not native_bf16(device):
            module.forward = _InFloat32(module)  # pyright: ignore[reportAttributeAccessIssue]  a method of one object


class _InFloat32:
    """The forward of one linear layer; a class and not a closure, so that models can still be copied."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.module.weight, self.module.bias
        if weight.device.type != "cpu":  # moved since
            return F.linear(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            y = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        return y.to(x.dtype)


def _limit() -> str:
    return next((os.environ[n].lower() for n in _LIMITS if os.environ.get(n)), "")


def _capability(place: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(place)


def _onednn_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _processor_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


def _processor_has_amx() -> bool:
    """Tiles for matrices, which a limit below them, or a hypervisor, may hide."""
    limit = _limit()
    return (limit in ("", "all", "default") or "amx" in limit) and bool(torch.cpu._is_amx_tile_supported())


@cache
def _is_amd() -> bool:
    try:
        with open("/proc/cpuinfo") as lines:
            return any("AuthenticAMD" in line for line in lines)
    except OSError:
        return "AuthenticAMD" in platform.processor()
