"""What host loops do to values between graphs, the same in every memory: numpy, torch, and a card's (on the host)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from athena_vla.engines.cuda_memory import CudaMemory, OnCard
from athena_vla.engines.host_memory import HostMemory
from athena_vla.errors import DeviceError, ExportError
from athena_vla.models.contract import Memory
from athena_vla.models.torch_memory import TorchMemory
from host_cuda import HostCuda, host_runtime

RANDOM = np.random.default_rng(0)
Put = Callable[[np.ndarray], Any]


def on_card() -> tuple[Memory, Put]:
    memory = CudaMemory(host_runtime())
    return memory, lambda a: memory.put(a, a.dtype)


MEMORIES: dict[str, Callable[[], tuple[Memory, Put]]] = {
    "host": lambda: (HostMemory(), np.array),
    "torch": lambda: (TorchMemory(), lambda a: torch.from_numpy(a.copy())),
    "card": on_card,
}


@pytest.fixture(params=sorted(MEMORIES))
def place(request: pytest.FixtureRequest) -> tuple[Memory, Put]:
    return MEMORIES[request.param]()


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("words", [1, 2, 7])
def test_patches_stand_behind_the_first_word(place: tuple[Memory, Put], words: int, dtype: type) -> None:
    memory, put = place
    text, patches = normal(2, words, 8, dtype=dtype), normal(2, 5, 8, dtype=dtype)
    got = memory.read(memory.splice(put(text), put(patches)))
    np.testing.assert_array_equal(got, np.concatenate([text[:, :1], patches, text[:, 1:]], axis=1))
    assert got.dtype == dtype


def test_a_cache_grows_and_each_item_writes_its_own_slot(place: tuple[Memory, Put]) -> None:
    """Against a cache kept by plain loops, for equal and for different positions."""
    memory, put = place
    layers, batch, heads, filled, width, slots = 3, 2, 4, 5, 8, 3
    cache = normal(layers, batch, heads, filled, width)
    slow = np.zeros((layers, batch, heads, filled + slots, width), np.float32)
    slow[:, :, :, :filled] = cache
    grown = memory.grown(put(cache), slots)
    np.testing.assert_array_equal(memory.read(grown), slow)
    for positions in ((5, 5), (6, 3), (7, 7)):
        new = normal(layers, batch, heads, 1, width)
        memory.write(grown, put(new), np.array(positions))
        for item, slot in enumerate(positions):
            for layer in range(layers):
                for head in range(heads):
                    slow[layer, item, head, slot] = new[layer, item, head, 0]
        np.testing.assert_array_equal(memory.read(grown), slow)
    parts = memory.layers(grown)
    assert len(parts) == layers
    for part, expected in zip(parts, slow, strict=True):
        np.testing.assert_array_equal(memory.read(part), expected)


def test_the_largest_of_what_is_allowed(place: tuple[Memory, Put]) -> None:
    memory, put = place
    logits = np.array([[9, 1, 5, 5, 2], [0, 7, 3, 8, 9]], np.float32)
    every = memory.largest(put(logits), 0, 5, None, 0)
    np.testing.assert_array_equal(memory.joined([every]), [[0], [4]])
    some = memory.largest(put(logits), 1, 4, None, 100)
    np.testing.assert_array_equal(memory.joined([some]), [[101], [102]])  # the first of equals
    allowed = np.array([[True, False, False], [True, True, False]])
    held = memory.largest(put(logits), 1, 4, allowed, 100)
    np.testing.assert_array_equal(memory.joined([some, held, every]), [[101, 100, 0], [102, 100, 4]])


def test_a_card_reads_back_no_more_than_the_answer() -> None:
    memory = CudaMemory(host_runtime())
    library = memory.runtime.library
    assert isinstance(library, HostCuda)
    words, patches = (memory.put(normal(1, n, 8), np.dtype(np.float32)) for n in (4, 3))
    spliced = memory.splice(words, patches)
    grown = memory.grown(memory.put(normal(2, 1, 2, 3, 4), np.dtype(np.float32)), 2)
    memory.write(grown, memory.put(normal(2, 1, 2, 1, 4), np.dtype(np.float32)), np.array([3]))
    assert library.read == []
    assert memory.put(spliced, spliced.dtype) is spliced, "what lies there is not copied"
    memory.read(memory.put(normal(1, 6), np.dtype(np.float32)))
    assert library.read == [24]


def test_a_card_gives_memory_back_and_layers_keep_theirs() -> None:
    memory = CudaMemory(host_runtime())
    library = memory.runtime.library
    cache = memory.put(normal(2, 1, 1, 3, 4), np.dtype(np.float32))
    expected = memory.read(cache)[1]
    part = memory.layers(cache)[1]
    del cache
    assert len(library.blocks) == 1
    np.testing.assert_array_equal(memory.read(part), expected)
    del part
    assert library.blocks == {}


def test_what_a_card_refuses_is_a_sentence() -> None:
    memory = CudaMemory(host_runtime())
    half = memory.put(normal(1, 2, dtype=np.float16), np.dtype(np.float16))
    assert isinstance(half, OnCard)
    with pytest.raises(ExportError, match="answers in float16 and the next one takes float32"):
        memory.put(half, np.dtype(np.float32))
    memory.runtime.library.status = 2
    with pytest.raises(DeviceError, match=r"cudaMalloc on card 0: out of memory \(error 2\)"):
        memory.put(normal(1), np.dtype(np.float32))
