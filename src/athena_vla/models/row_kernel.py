"""The compiled kernel for single rows on packed weights: built with the machine's C compiler, kept in the user's cache.

The runtimes' own kernels pack these codes again at every start and read them at half of what memory allows
(benchmarks/7b_cpu.json). Without a compiler there is no kernel, and the whole weight is unpacked for a row.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from athena_vla.errors import ModelError

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
BLOCK = 128  # inputs that share a step of the activations
SECONDS = 60.0  # a compiler may take

Multiply = Callable[[Tensor], Tensor]  # x [rows, in] bfloat16 -> [rows, out] float32
Kernel = Callable[[Tensor, Tensor, int], Multiply]  # codes, scales [out, groups] fp16, bits -> for this weight


@functools.cache
def kernel() -> Kernel | None:
    """The kernel for this machine; None where it cannot be built."""
    for extra in (("-fopenmp",), ()):
        library = build(cache_folder(), extra)
        if library is not None:
            return bind(library)
    return None


def fits(columns: int, groups: int) -> bool:
    """Whether the kernel takes a weight with so many inputs and scales per output."""
    return columns % (BLOCK * groups) == 0


def cache_folder() -> Path:
    """Where compiled code is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "athena_vla"


def build(folder: Path, extra: Sequence[str] = ()) -> Path | None:
    """The shared library in `folder`, compiled unless it is there; None without a compiler that takes the source."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source, flags = SOURCE.read_bytes(), (*FLAGS, *extra)
    # `native` means another thing on another processor, and homes are shared between machines.
    key = hashlib.sha256(source + repr((compiler, flags, _processor())).encode()).hexdigest()[:16]
    target = folder / f"row_kernel-{key}.so"
    try:
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / target.name
            command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
            done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
            if done.returncode:
                return None
            made.replace(target)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return target


def bind(library: Path) -> Kernel | None:
    """The function of a compiled library; None where it cannot be loaded."""
    try:
        function = ctypes.CDLL(str(library)).multiply
    except (OSError, AttributeError):
        return None
    place, size = ctypes.c_void_p, ctypes.c_ssize_t
    function.argtypes = [place, size, place, place, ctypes.c_int, size, size, size, place, ctypes.c_int]
    function.restype = ctypes.c_int

    def of_weight(codes: Tensor, scales: Tensor, bits: int) -> Multiply:
        count, groups = scales.shape
        columns = codes.nbytes // count * 8 // bits
        assert codes.is_contiguous()
        assert scales.is_contiguous()
        assert scales.dtype == torch.float16
        assert fits(columns, groups)
        sizes = (bits, count, columns, groups)

        def multiply(x: Tensor) -> Tensor:
            assert x.shape[1] == columns
            assert x.dtype == torch.bfloat16
            x, out = x.contiguous(), torch.empty(len(x), count)
            weight = (codes.data_ptr(), scales.data_ptr(), *sizes)  # asked here, so that the tensors are kept
            if function(x.data_ptr(), len(x), *weight, out.data_ptr(), torch.get_num_threads()):
                raise ModelError(f"There is no memory left for a row of {columns} numbers.")
            return out

        return multiply

    return of_weight


def _processor() -> str:
    """What `native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return repr(sorted({line for line in lines if line.startswith(wanted)}))
