"""A running average of everything that trains: smoother weights than the last step's, at the cost of one copy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from athena_vla.finetune import sharding


class Average:
    """After each step `average <- d * average + (1 - d) * weights`; d grows from 2/11 to `decay`, so that the weights
    from before the training are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Take in the weights after `done` optimiser steps."""
        decay = min(self.decay, (1 + done) / (10 + done))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1.0 - decay)

    def put(self) -> None:
        """Let the model have the average."""
        self._put(self.values)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average; outside, what it is training."""
        kept = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.put()
        try:
            yield
        finally:
            self._put(kept)

    def whole(self) -> dict[str, Tensor]:
        """All of it, for a file; with sharding every process has to call it."""
        return sharding.whole(self.values)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `whole`."""
        self.values = {n: sharding.like(t.clone(), self.parameters[n]) for n, t in tensors.items()}
