"""How fast this machine reads memory and multiplies: the best of several kernels over blocks far larger than any cache.

A probe that is too slow makes every share of it look good, so there are several, each with all the threads: a compiled
loop of wide loads where there is a C compiler, numpy's dot product and torch's matrix times vector. Knows no models.
"""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.models.weights.gemv_kernel import march

BYTES = 1 << 31
REPEATS = 8
SOURCE = """
#include <stddef.h>
#include <stdint.h>
typedef uint64_t wide __attribute__((vector_size(64), aligned(1), may_alias)); /* arrays begin where they like */
uint64_t touch(const wide *p, size_t n) {
  wide a = {0}, b = {0}, c = {0}, d = {0};
  for (size_t i = 0; i + 4 <= n; i += 4) {
    __builtin_prefetch(p + i + 32);
    __builtin_prefetch(p + i + 33);
    __builtin_prefetch(p + i + 34);
    __builtin_prefetch(p + i + 35);
    a |= p[i]; b |= p[i + 1]; c |= p[i + 2]; d |= p[i + 3];
  }
  a |= b; c |= d; a |= c;
  return a[0] | a[1] | a[2] | a[3] | a[4] | a[5] | a[6] | a[7];
}
"""


def measure(threads: int) -> dict[str, Any]:
    """[GB/s] best and median of every kernel, with one thread and with all of them."""
    block = np.ones(BYTES // 4, dtype=np.float32)
    results: dict[str, Any] = {}
    for count in sorted({1, threads}):
        for name, kernel in kernels(block, count).items():
            rates = [BYTES / seconds(kernel) / 1e9 for _ in range(REPEATS)]
            results[f"{name}, {count} threads"] = {"best_gbs": max(rates), "median_gbs": float(np.median(rates))}
    best = max(results, key=lambda k: results[k]["best_gbs"])
    return {"best_gbs": results[best]["best_gbs"], "median_gbs": results[best]["median_gbs"], "kernel": best} | {
        "kernels": results,
        "block_bytes": BYTES,
        **arithmetic(threads),
    }


def arithmetic(threads: int) -> dict[str, float]:
    """[TFLOP/s] best product of matrices in the native type, of a chunk's rows and of ten times as many."""
    import torch

    from athena_vla.models import precision

    torch.set_num_threads(threads)
    name, kind = precision.fastest(), precision.product_type()
    weight, best = torch.randn(4096, 4096).to(kind), 0.0
    for rows in (306, 3060):
        x = torch.randn(rows, 4096).to(kind)
        for _ in range(REPEATS):
            best = max(best, 2 * rows * weight.numel() / seconds(lambda x=x: torch.nn.functional.linear(x, weight)))
    return {f"{name}_tflops": best / 1e12}


def kernels(block: np.ndarray, threads: int) -> dict[str, Callable[[], Any]]:
    import torch

    pool = ThreadPoolExecutor(threads)
    parts = np.array_split(block, threads)
    tensor = torch.from_numpy(block).reshape(-1, 4096)
    vector = torch.ones(4096)

    def product() -> None:
        torch.set_num_threads(threads)
        torch.mv(tensor, vector)

    found: dict[str, Callable[[], Any]] = {
        "numpy dot": lambda: list(pool.map(lambda p: float(np.dot(p, p)), parts)),
        "torch matrix times vector": product,
    }
    touch = compiled()
    if touch is not None:
        found["compiled wide loads"] = lambda: list(pool.map(lambda p: touch(p.ctypes.data, p.nbytes // 64), parts))
    return found


def compiled() -> Any:
    """The C loop, or None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "touch.c").write_text(SOURCE)
    command = [compiler, "-O3", f"-march={march()}", "-shared", "-fPIC", "-o", str(folder / "touch.so")]
    if subprocess.run([*command, str(folder / "touch.c")], capture_output=True, check=False).returncode:
        return None
    touch = ctypes.CDLL(str(folder / "touch.so")).touch
    touch.argtypes, touch.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
    shutil.rmtree(folder)
    return touch


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    import json
    import os

    print(json.dumps(measure(len(os.sched_getaffinity(0))), indent=1))
