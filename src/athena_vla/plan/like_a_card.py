"""Parts of a model that keep other things for the backward pass on a card than on a CPU, for traces without a card."""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from athena_vla.models.body.llama import RmsNorm


def as_on_a_card(model: nn.Module) -> None:
    """Norms and dropout keep what CUDA's kernels keep for the backward pass, and not what the code for CPUs does."""
    for module in model.modules():
        if isinstance(module, RmsNorm):
            module.forward = _CardNorm()
        elif isinstance(module, nn.Dropout):
            module.forward = partial(_card_dropout, module.p)  # pyright: ignore[reportAttributeAccessIssue]


class _CardNorm:
    """One kernel: the input is kept, and a number for each row."""

    def __call__(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return cast(Tensor, _FusedNorm.apply(x)).to(kind)


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, torch.empty(*x.shape[:-1], 1))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def _card_dropout(share: float, input: Tensor) -> Tensor:
    """The kernel keeps a byte of each number."""
    return torch.native_dropout(input, share, True)[0]
