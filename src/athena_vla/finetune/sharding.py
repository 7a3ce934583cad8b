"""FSDP2: parameters of repeated blocks split over the processes, gathered block by block. Knows no family.

Used with `--sharding fsdp2` under torchrun (GPUs) or `--processes` (CPU, for tests).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from athena_vla.finetune.listening.margin import margin_loss
from athena_vla.models.architecture import Architecture, Tensors
from athena_vla.models.body.llama import DecoderLayer
from athena_vla.models.weights import nf4 as four_bit


class LossOf(nn.Module):
    """The model's loss as a forward pass: what data-parallel wrappers understand."""

    def __init__(self, model: Architecture, margin: float = 0.0) -> None:
        super().__init__()
        self.model, self.margin = model, margin

    def forward(self, inputs: Tensors, target: Tensor, valid: Tensor) -> Tensor:
        if self.margin:
            return margin_loss(self.model, inputs, target, valid, self.margin)
        return self.model.loss(inputs, target, valid)


def shard(root: nn.Module) -> None:
    """Shard every block of every list of blocks, then what is left, in place; optimisers come after this.

    4-bit codes are kept in bfloat16 from here on: their shards have to be of a floating-point type. Their scales, a
    tenth of them, stay whole in every process.
    """
    for module in list(root.modules()):
        if four_bit.is_four_bit(module):
            four_bit.store_as_(module, torch.bfloat16)
    for module in list(root.modules()):
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            for block in module:
                # Layers that nothing computes are left to the root: nothing would ever gather them.
                fully_shard(block)
                if isinstance(block, DecoderLayer):  # decoding calls it by another name, and needs it whole there too
                    register_fsdp_forward_method(block, "extend")
    fully_shard(root)


def synchronise(root: nn.Module, *, on: bool) -> None:
    """Whether the next backward pass reduces gradients over the processes."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(on)


@contextlib.contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Inside, the parameters that belong to no block are whole, so that parts of the model can be called alone."""
    if not isinstance(root, FSDPModule):
        yield
        return
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full tensors; every process has to call it."""
    return {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in tensors.items()}


def like(tensor: Tensor, place: Tensor) -> Tensor:
    """`tensor` laid out as `place` is."""
    if not isinstance(place, DTensor):
        return tensor.to(place.device)
    return distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Length of all gradients together, of whole tensors where they are sharded."""
    value = nn.utils.get_total_norm(gradients)
    return value.full_tensor() if isinstance(value, DTensor) else value


def total(values: Tensor) -> Tensor:
    """The sum over all processes; itself where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def gathered_texts(text: str) -> list[str]:
    """What each process says, in order of their ranks; those that say nothing are left out."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [text] if text else []
    texts: list[Any] = [""] * distributed.get_world_size()
    distributed.all_gather_object(texts, text)
    return [str(t) for t in texts if t]
