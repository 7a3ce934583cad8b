"""The compiled kernel for single rows on packed weights: built with the machine's C compiler, kept in the user's cache.

It is off unless ATHENA_GEMV_KERNEL=1 asks for it: code that is compiled on the user's machine is no default, and an
exported bundle decodes as fast in ONNX Runtime (benchmarks/7b_cpu.json). Without it the whole weight
is unpacked for a row.
"""

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from athena_vla import files
from athena_vla.errors import ModelError
from athena_vla.files.cleaning import user_cache

SOURCE = Path(__file__).with_suffix(".c")
SWITCH = "ATHENA_GEMV_KERNEL"
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
THREADS = (("-fopenmp",), ())  # all of them, or one where OpenMP is not to be had
BLOCK = 128  # inputs that share a step of the activations
SECONDS = 60.0  # a compiler may take

# (x [rows, in] bfloat16, codes, scales [out, groups] fp16, bits) -> [rows, out] float32
Kernel = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@functools.cache
def kernel() -> Kernel | None:
    """The kernel for this machine; None where nobody asked for it, or where it cannot be built."""
    if os.environ.get(SWITCH) != "1":
        return None
    with tempfile.TemporaryDirectory() as private:
        # A loaded library stays loaded when its file goes: where the cache is not to be had, it is built every time.
        folders = [*filter(None, [cache_folder()]), Path(private)]
        for folder, threads, compiler, _ in itertools.product(folders, THREADS, compilers(), ("cached", "anew")):
            library = build(folder, compiler, threads)
            found = library and bind(library)
            if found:
                return found
            if library:  # cut off, or made where other libraries are
                library.unlink(missing_ok=True)
    return None


def fits(columns: int, groups: int) -> bool:
    """Whether the kernel takes a weight with so many inputs and scales per output."""
    return columns % (BLOCK * groups) == 0


def compilers() -> list[str]:
    """The C compilers of this machine, the one that the environment names first."""
    found = (shutil.which(name) for name in (os.environ.get("CC") or "cc", "cc", "gcc", "clang"))
    return list(dict.fromkeys(filter(None, found)))


def march() -> str:
    """The instruction set that code is compiled for: this machine's, or what ATHENA_MARCH names (haswell: AVX2)."""
    return os.environ.get("ATHENA_MARCH") or "native"


def cache_folder() -> Path | None:
    """The folder for compiled code in the user's cache; None where there is none that only the user can write to."""
    try:
        folder = user_cache() / "athena_vla"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.stat()
    except (OSError, RuntimeError):  # no home at all is a RuntimeError
        return None
    return folder if facts.st_uid == os.getuid() and not facts.st_mode & 0o022 else None


def build(folder: Path, compiler: str, extra: Sequence[str] = ()) -> Path | None:
    """The shared library in `folder`, compiled unless it is there; None where that fails."""
    flags = (*FLAGS, f"-march={march()}", *extra)
    try:
        # `native` means another thing on another processor, and homes are shared between machines.
        key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, flags, _processor())).encode()).hexdigest()[:16]
        target = folder / f"gemv_kernel-{key}.so"
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / target.name
            command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
            done = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
            if done.returncode:
                return None
            files.write_bytes(target, made.read_bytes(), ModelError)
    except (OSError, ModelError, subprocess.TimeoutExpired):
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

    def multiply(x: Tensor, codes: Tensor, scales: Tensor, bits: int) -> Tensor:
        (rows, columns), (count, groups) = x.shape, scales.shape
        assert (x.dtype, scales.dtype) == (torch.bfloat16, torch.float16)
        assert codes.nbytes == count * columns * bits // 8
        assert codes.is_contiguous()
        assert scales.is_contiguous()
        assert fits(columns, groups)
        x, out = x.contiguous(), torch.empty(rows, count)
        weight = (codes.data_ptr(), scales.data_ptr(), bits, count, columns, groups)
        if function(x.data_ptr(), rows, *weight, out.data_ptr(), torch.get_num_threads()):
            raise ModelError(f"There is no memory left for a row of {columns} numbers.")
        return out

    return multiply


def _processor() -> str:
    """What `native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return repr(sorted({line for line in lines if line.startswith(wanted)}))
