"""[-1, 1] to action token ids and back, as the released models count them: 256 edges, 255 bin centres.

Ids count down from the top of the vocabulary as values go up, and are built directly, never through text.
Knows no joints, statistics or tokenizer.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import InvalidObservation


@dataclass(frozen=True)
class ActionTokens:
    """`vocabulary` is the number of text tokens without padding rows: 32000 for Llama 2, never 32064."""

    vocabulary: int = 32000
    bins: int = 256

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(-1.0, 1.0, self.bins)

    @cached_property
    def centers(self) -> NDArray[np.float64]:
        """Bin centres; one fewer than ids, so the two lowest ids decode alike."""
        return (self.edges[:-1] + self.edges[1:]) / 2.0

    @property
    def first(self) -> int:
        """Lowest action id; it stands for exactly +1."""
        return self.vocabulary - self.bins

    @property
    def ids(self) -> range:
        return range(self.first, self.vocabulary)

    def encode(self, unit: NDArray[np.floating]) -> NDArray[np.int64]:
        """Ids of actions of any shape, clipped to [-1, 1]. Raises `InvalidObservation` for NaN."""
        unit = np.asarray(unit)
        if np.isnan(unit).any():
            raise InvalidObservation(
                f"{int(np.isnan(unit).sum())} of {unit.size} action values are NaN: they have no action token. "
                "Check the recording and its statistics."
            )
        return self.encode_compatible(unit)

    def encode_compatible(self, unit: NDArray[np.floating]) -> NDArray[np.int64]:
        """As the reference does it, where NaN becomes +1."""
        # float32 actions meet float64 edges: the comparison is made in float64, as in the reference.
        clipped = np.clip(np.asarray(unit), -1.0, 1.0)
        return (self.vocabulary - np.digitize(clipped, self.edges)).astype(np.int64)

    def decode(self, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Bin centres in float64; ids outside the action range take the nearest bin, as in the reference."""
        index = np.clip(self.vocabulary - np.asarray(ids, dtype=np.int64) - 1, 0, self.bins - 2)
        return self.centers[index]

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """[bins] what each bin decodes to, ascending; the two highest share a value."""
        return self.centers[np.minimum(np.arange(self.bins), self.bins - 2)]
