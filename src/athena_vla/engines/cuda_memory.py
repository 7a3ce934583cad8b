"""An engine's values on an NVIDIA card, through CUDA's runtime library alone: torch is not needed.

What host loops do between graphs are strided copies, and the card's copy engine makes those. Not run on a card by us:
the tests run all of it against a stand-in for the library that copies on the host.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from athena_vla.engines.host_memory import largest
from athena_vla.errors import DeviceError, ExportError
from athena_vla.models.contract import Array, Memory, Value

TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_PROPERTIES = 4096  # [bytes] more than any version's cudaDeviceProp, whose first 256 are the name


class CudaRuntime:
    """The few calls of libcudart that are needed. Raises `DeviceError` with CUDA's own words."""

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self.library = library or _load()
        self.index = index
        self._call("cudaSetDevice", index)

    def allocate(self, size: int) -> "Block":
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return Block(self, int(pointer.value or 0))

    def free(self, pointer: int) -> None:
        self.library.cudaFree(ctypes.c_void_p(pointer))

    def zero(self, pointer: int, size: int) -> None:
        self._call("cudaMemset", ctypes.c_void_p(pointer), 0, ctypes.c_size_t(size))

    def copy(self, to: int, source: int, size: int, kind: int) -> None:
        self._call("cudaMemcpy", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind)

    def copy_rows(self, to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int) -> None:
        """`rows` times `width` bytes on the card; the pitches are the bytes from one to the next."""
        sizes = (ctypes.c_void_p(to), ctypes.c_size_t(to_pitch), ctypes.c_void_p(source), ctypes.c_size_t(pitch))
        self._call("cudaMemcpy2D", *sizes, ctypes.c_size_t(width), ctypes.c_size_t(rows), ON_DEVICE)

    def wait(self) -> None:
        self._call("cudaDeviceSynchronize")

    def name(self) -> str:
        properties = ctypes.create_string_buffer(_PROPERTIES)
        self._call("cudaGetDeviceProperties", properties, self.index)
        return properties.raw[:256].split(b"\0")[0].decode(errors="replace")

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            words = self.library.cudaGetErrorString(status)
            text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
            raise DeviceError(f"CUDA could not do {function} on card {self.index}: {text} (error {status}).")


class Block:
    """Memory of a card, given back when nobody holds it any more."""

    def __init__(self, runtime: CudaRuntime, pointer: int) -> None:
        self.runtime, self.pointer = runtime, pointer

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.runtime.free(self.pointer)


@dataclass(frozen=True)
class OnCard:
    """A dense array on a card."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    holder: Any  # whatever keeps the memory alive

    @property
    def size(self) -> int:
        """[bytes]"""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def part(self, first: int) -> "OnCard":
        """One entry of the first axis, without a copy."""
        step = self.size // max(self.shape[0], 1)
        return OnCard(self.pointer + first * step, self.shape[1:], self.dtype, self.holder)


class CudaMemory(Memory):
    """Values are `OnCard`; single token ids are chosen, and therefore lie, on the host."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self.runtime = runtime

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> OnCard:
        size = int(np.prod(shape)) * dtype.itemsize
        block = self.runtime.allocate(size)
        return OnCard(block.pointer, shape, dtype, block)

    def put(self, value: Value, dtype: np.dtype[Any]) -> OnCard:
        """The value on the card in a port's type; what lies there already is not copied. Raises `ExportError`."""
        if isinstance(value, OnCard):
            if value.dtype != dtype:
                raise ExportError(f"A graph answers in {value.dtype} and the next one takes {dtype}: export it again.")
            return value
        array = np.ascontiguousarray(np.asarray(value).astype(dtype, copy=False))
        there = self.empty(array.shape, dtype)
        self.runtime.copy(there.pointer, array.ctypes.data, array.nbytes, TO_DEVICE)
        return there

    def read(self, value: Value) -> Array:
        if not isinstance(value, OnCard):
            return np.asarray(value)
        array = np.empty(value.shape, value.dtype)
        self.runtime.copy(array.ctypes.data, value.pointer, value.size, TO_HOST)
        return array

    def splice(self, words: Value, patches: Value) -> Value:
        patches = self.put(patches, words.dtype)
        batch, length, width = words.shape
        row = width * words.dtype.itemsize
        between = patches.shape[1]
        out = self.empty((batch, length + between, width), words.dtype)
        pitch = (length + between) * row
        pieces = (
            (out.pointer, words.pointer, length * row, row),
            (out.pointer + row, patches.pointer, between * row, between * row),
            (out.pointer + (1 + between) * row, words.pointer + row, length * row, (length - 1) * row),
        )
        for to, source, source_pitch, size in pieces:
            if size:
                self.runtime.copy_rows(to, pitch, source, source_pitch, size, batch)
        return out

    def grown(self, cache: Value, slots: int) -> Value:
        layers, batch, heads, filled, width = cache.shape
        out = self.empty((layers, batch, heads, filled + slots, width), cache.dtype)
        row = width * cache.dtype.itemsize
        self.runtime.zero(out.pointer, out.size)
        rows = layers * batch * heads
        self.runtime.copy_rows(out.pointer, (filled + slots) * row, cache.pointer, filled * row, filled * row, rows)
        return out

    def layers(self, cache: Value) -> Sequence[Value]:
        return [cache.part(i) for i in range(cache.shape[0])]

    def write(self, cache: Value, new: Value, position: Int[np.ndarray, " b"]) -> None:
        layers, batch, heads, slots, width = cache.shape
        row = width * cache.dtype.itemsize
        new = self.put(new, cache.dtype)
        for first, rows, slot in _runs(layers, batch, heads, position):
            to, source = cache.pointer + (first * slots + slot) * row, new.pointer + first * row
            self.runtime.copy_rows(to, slots * row, source, row, row, rows)

    def largest(
        self, logits: Value, first: int, last: int, allowed: Bool[np.ndarray, "b n"] | None, base: int
    ) -> Value:
        return largest(self.read(logits), first, last, allowed, base)

    def joined(self, ids: Sequence[Value]) -> Int[np.ndarray, "b n"]:
        return np.concatenate(list(ids), axis=1)


def _runs(layers: int, batch: int, heads: int, position: Int[np.ndarray, " b"]) -> Iterator[tuple[int, int, int]]:
    """Runs of `[layers, batch, heads]` that go into the same slot: first entry, entries, slot. One for equal ones."""
    if len({int(p) for p in position}) == 1:
        yield 0, layers * batch * heads, int(position[0])
        return
    for layer in range(layers):
        for item in range(batch):
            yield (layer * batch + item) * heads, heads, int(position[item])


def _load() -> Any:
    """libcudart of the system, or of the packages that pip installs beside a CUDA build."""
    packages = [Path(p) for p in sys.path if p.endswith("site-packages")]
    shipped = [str(f) for p in packages for f in sorted(p.glob("nvidia/cu*/lib/libcudart.so.*"))]
    shipped += [str(f) for p in packages for f in sorted(p.glob("nvidia/cuda_runtime/lib/libcudart.so.*"))]
    for name in (*_LIBRARIES, "/usr/local/cuda/lib64/libcudart.so", *shipped):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(
        f"CUDA's runtime library was not found ({', '.join(_LIBRARIES)}). Install CUDA, or the package "
        "nvidia-cuda-runtime that belongs to the engine's build; --device cpu needs none."
    )
