"""What people marked in recordings as weights of training: how much each recorded step counts in the loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError, UnknownName
from athena_vla.recordings.marks import MarkKind


@dataclass(frozen=True)
class MarkWeights:
    """Weights by mark; a step without a mark of these kinds counts once."""

    of: dict[str, float]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> "MarkWeights":
        """From `success=1 failure=0 correction=3`. Raises `TrainingError`, `UnknownName`."""
        found: dict[str, float] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in get_args(MarkKind):
                raise UnknownName("mark of a recording", name, get_args(MarkKind))
            try:
                found[name] = float(value)
            except ValueError as error:
                raise TrainingError(f"--weight {text}: write a mark and a number, such as failure=0.") from error
            if not (math.isfinite(found[name]) and found[name] >= 0):
                raise TrainingError(f"--weight {text}: a weight must not be negative, and finite.")
        return cls(found)

    def frames(self, dataset: Dataset) -> NDArray[np.float32]:
        """[F] weight of the step recorded at each frame: of how its episode ended, or of a mark on the frame itself."""
        weights: list[NDArray[np.float32]] = []
        for episode, marks in zip(dataset.episodes, dataset.marks, strict=True):
            length = int(episode["length"])
            ended = {True: "success", False: "failure", None: ""}[marks.success]
            each = np.full(length, self.of.get(ended, 1.0), np.float32)
            for kind in get_args(MarkKind):
                if kind in self.of:
                    each[marks.has(kind, length)] = self.of[kind]
            weights.append(each)
        return np.concatenate(weights)

    def meaning(self, dataset: Dataset) -> str:
        """A sentence: how many frames have which weight."""
        values, counts = np.unique(self.frames(dataset), return_counts=True)
        listed = ", ".join(f"{n:,} frames count {v:g} times" for v, n in zip(values, counts, strict=True))
        return f"Weights of marks ({', '.join(f'{k} {v:g}' for k, v in self.of.items())}): {listed}."


def steps_of(
    dataset: Dataset, indices: Sequence[int] | NDArray[np.intp], frames: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[N, H] weights of the steps of these samples; steps past an episode's end have one too, and do not count."""
    first = dataset.frame_of_sample[np.asarray(indices)]
    rows = np.minimum(first[:, None] + np.arange(dataset.horizon), len(frames) - 1)
    return frames[rows]


def that_count(dataset: Dataset, indices: NDArray[np.intp], frames: NDArray[np.float32]) -> NDArray[np.intp]:
    """The samples with a step that counts. Raises `TrainingError` where none is left."""
    lengths = np.repeat([int(e["length"]) for e in dataset.episodes], [int(e["length"]) for e in dataset.episodes])
    starts = np.concatenate([np.arange(int(e["length"])) for e in dataset.episodes])
    left = (lengths - starts)[dataset.frame_of_sample[indices]]  # frames until the episode ends
    valid = np.arange(dataset.horizon)[None] < left[:, None]
    kept = indices[(steps_of(dataset, indices, frames) * valid).sum(axis=1) > 0]
    if not len(kept):
        raise TrainingError(f"With these weights no sample of '{dataset.path}' counts: every step has the weight 0.")
    return kept
