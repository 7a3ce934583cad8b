"""CUDA's runtime library on the host: its memory is ours, and its copies are checked before they are made."""

import ctypes
from typing import Any

from athena_vla.engines.cuda_memory import CudaRuntime


class HostCuda:
    """libcudart as far as `CudaRuntime` asks it; `status` makes every call fail."""

    def __init__(self, name: str = "Orin") -> None:
        self.name = name
        self.status = 0
        self.blocks: dict[int, Any] = {}
        self.read: list[int] = []  # [bytes] of each copy to the host
        self.calls: list[str] = []

    def cudaSetDevice(self, index: int) -> int:
        return self.status

    def cudaMalloc(self, out: Any, size: ctypes.c_size_t) -> int:
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)  # never zero by luck
        address = ctypes.addressof(block)
        self.blocks[address] = block
        out._obj.value = address
        return self.status

    def cudaFree(self, pointer: ctypes.c_void_p) -> int:
        del self.blocks[int(pointer.value or 0)]
        return 0

    def cudaMemset(self, pointer: ctypes.c_void_p, value: int, size: ctypes.c_size_t) -> int:
        self._inside(int(pointer.value or 0), size.value)
        ctypes.memset(int(pointer.value or 0), value, size.value)
        return self.status

    def cudaMemcpy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: ctypes.c_size_t, kind: int) -> int:
        if kind == 1:
            self._inside(int(to.value or 0), size.value)
        if kind == 2:
            self.read.append(size.value)
        ctypes.memmove(int(to.value or 0), int(source.value or 0), size.value)
        return self.status

    def cudaMemcpy2D(
        self,
        to: ctypes.c_void_p,
        to_pitch: ctypes.c_size_t,
        source: ctypes.c_void_p,
        pitch: ctypes.c_size_t,
        width: ctypes.c_size_t,
        rows: ctypes.c_size_t,
        kind: int,
    ) -> int:
        assert kind == 3, "between the graphs nothing leaves the card"
        assert width.value <= min(to_pitch.value, pitch.value) or rows.value == 1
        for i in range(rows.value):
            there = int(to.value or 0) + i * to_pitch.value
            self._inside(there, width.value)
            ctypes.memmove(there, int(source.value or 0) + i * pitch.value, width.value)
        return self.status

    def cudaDeviceSynchronize(self) -> int:
        self.calls.append("wait")
        return self.status

    def cudaGetDeviceProperties(self, out: Any, index: int) -> int:
        out.raw = self.name.encode().ljust(len(out), b"\0")
        return self.status

    def cudaGetErrorString(self, status: int) -> bytes:
        return b"out of memory" if status == 2 else b"unknown error"

    def _inside(self, address: int, size: int) -> None:
        held = ((a, len(b)) for a, b in self.blocks.items())
        assert any(a <= address and address + size <= a + n for a, n in held), "written outside of the card's memory"


def host_runtime(name: str = "Orin") -> CudaRuntime:
    return CudaRuntime(0, HostCuda(name))
