"""An engine's values as arrays of the host, for engines that compute there: nothing is copied between graphs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from athena_vla.models.contract import Array, Memory, Value


class HostMemory(Memory):
    """numpy, and views of it wherever that is enough."""

    def read(self, value: Value) -> Array:
        return np.asarray(value)

    def splice(self, words: Value, patches: Value) -> Value:
        return np.concatenate([words[:, :1], np.asarray(patches).astype(words.dtype, copy=False), words[:, 1:]], axis=1)

    def grown(self, cache: Value, slots: int) -> Value:
        wide = np.zeros((*cache.shape[:3], cache.shape[3] + slots, cache.shape[4]), dtype=cache.dtype)
        wide[:, :, :, : cache.shape[3]] = cache
        return wide

    def layers(self, cache: Value) -> Sequence[Value]:
        return list(cache)

    def write(self, cache: Value, new: Value, position: Int[np.ndarray, " b"]) -> None:
        # [layers, b, kv, 1, w] -> the slot of each item
        cache[:, np.arange(cache.shape[1]), :, position] = new[:, :, :, 0].swapaxes(0, 1)

    def largest(
        self, logits: Value, first: int, last: int, allowed: Bool[np.ndarray, "b n"] | None, base: int
    ) -> Value:
        return largest(np.asarray(logits), first, last, allowed, base)

    def joined(self, ids: Sequence[Value]) -> Int[np.ndarray, "b n"]:
        return np.concatenate(list(ids), axis=1)


def largest(
    logits: Array, first: int, last: int, allowed: Bool[np.ndarray, "b n"] | None, base: int
) -> Int[np.ndarray, "b 1"]:
    """`Memory.largest` of an array: the first of equals."""
    some = logits[:, first:last]
    if allowed is not None:
        some = np.where(allowed, some, -np.inf)
    return some.argmax(axis=1)[:, None].astype(np.int64) + base
