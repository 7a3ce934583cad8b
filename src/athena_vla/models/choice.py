"""What a family offers that picks each action from a set of values, one row of a chunk after the other.

So a chunk can be held to what the robot may do next, before it is chosen. Knows no robot and no units but [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from athena_vla.models.architecture import Run, Tensors

# From the rows chosen so far [b, r, d] to what the next row may be: [b, d, bins], at least one bin each.
Allowed = Callable[[Float[np.ndarray, "b r d"]], Bool[np.ndarray, "b d bins"]]


class Chooses(ABC):
    """Mixed into an architecture whose actions are chosen from bins."""

    @property
    @abstractmethod
    def bins(self) -> NDArray[np.float64]:
        """[bins] the values in [-1, 1] that can be chosen, ascending."""

    @abstractmethod
    def decode_among(self, run: Run, inputs: Tensors, allowed: Allowed | None) -> Float[Tensor, "b h d"]:
        """Like `decode`, with each row chosen from what `allowed` says of it; None allows all."""
