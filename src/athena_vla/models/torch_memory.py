"""An engine's values as torch tensors, wherever the graphs left them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from athena_vla.models.contract import Array, Call, Engine, Memory, Taken, Value, Values


class TorchMemory(Memory):
    """Tensors where the graphs left them."""

    def read(self, value: Value) -> Array:
        value = torch.as_tensor(value).detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()

    @torch.inference_mode()
    def splice(self, words: Value, patches: Value) -> Value:
        patches = torch.as_tensor(patches).to(words.device, words.dtype)
        return torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)

    @torch.inference_mode()
    def grown(self, cache: Value, slots: int) -> Value:
        wide = cache.new_zeros((*cache.shape[:3], cache.shape[3] + slots, cache.shape[4]))
        wide[:, :, :, : cache.shape[3]] = cache
        return wide

    def layers(self, cache: Value) -> Sequence[Value]:
        return cache.unbind(0)

    @torch.inference_mode()
    def write(self, cache: Value, new: Value, position: Int[np.ndarray, " b"]) -> None:
        batch = torch.arange(cache.shape[1], device=cache.device)
        slots = torch.from_numpy(position).to(cache.device, non_blocking=True)
        # [layers, b, kv, 1, w] -> the slot of each item
        cache[:, batch, :, slots] = new[:, :, :, 0].transpose(0, 1).to(cache)

    @torch.inference_mode()
    def largest(
        self, logits: Value, first: int, last: int, allowed: Bool[np.ndarray, "b n"] | None, base: int
    ) -> Value:
        some = logits[:, first:last]
        if allowed is not None:
            some = some.masked_fill(~torch.from_numpy(allowed).to(some.device), -torch.inf)
        return some.argmax(dim=1, keepdim=True) + base

    def joined(self, ids: Sequence[Value]) -> Int[np.ndarray, "b n"]:
        return torch.cat(list(ids), dim=1).cpu().numpy()


class Calling(Engine):
    """A function of graph name and tensors as an engine in torch's memory: for `Architecture.decode`, and for tests."""

    def __init__(self, run: Call) -> None:
        self.call, self.memory, self.taken = run, TorchMemory(), Taken("torch", "cpu")

    def run(self, graph: str, values: Values, /) -> Values:
        return self.call(graph, {k: v if isinstance(v, Tensor) else torch.from_numpy(v) for k, v in values.items()})
