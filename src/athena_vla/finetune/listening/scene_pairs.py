"""Samples of one scene with another instruction: which there are, and which follows which in a batch.

Two episodes show the same scene where their first images are the same to what a codec changes: looked at as a coarse
grid, so that an object that stands elsewhere makes another scene. A function of the set, the seed and the place.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.mixed import MixedSet

GRID = 16  # cells of an image in each direction
SAME = 10  # grey levels of 255 that no cell of the same scene differs by
_STREAM = 103  # of random numbers


class ScenePairs:
    """Partners of the samples `indices`: another episode of the same scene and set that is told something else."""

    def __init__(self, dataset: Dataset, indices: NDArray[np.intp], seed: int) -> None:
        self.seed = seed
        self.episode_of = dataset.episode_of_sample
        firsts, within = frames_of_episodes(dataset)
        self.within = within
        drawn = np.unique(self.episode_of[indices]).tolist()
        scenes = scene_numbers(dataset, firsts, drawn)
        texts = {e: frozenset(dataset.texts(e)) for e in drawn}
        members: dict[tuple[int, int], list[int]] = {}
        for e in drawn:
            of = int(dataset.set_of_sample[firsts[e]]) if isinstance(dataset, MixedSet) else 0
            members.setdefault((of, scenes[e]), []).append(e)
        self.partners: dict[int, list[int]] = {}  # episode -> those of its scene that are told something else
        for same in members.values():
            for e in same:
                others = [o for o in same if not texts[o] & texts[e]]
                if others:
                    self.partners[e] = others
        # Of each such episode its samples, in the order of their frames.
        self.samples: dict[int, NDArray[np.intp]] = {}
        for e in self.partners:
            own = indices[self.episode_of[indices] == e]
            self.samples[e] = own[np.argsort(within[own], kind="stable")]
        self.paired = sum(len(s) for s in self.samples.values())
        self.total, self.scenes = len(indices), sum(any(e in self.partners for e in s) for s in members.values())

    def partner(self, index: int, position: int) -> int | None:
        """The sample that follows sample `index` where it was drawn before `position`; None where it has none.

        Of another episode of its scene the frame at the same time, or its last; of the texts of that frame any.
        """
        others = self.partners.get(int(self.episode_of[index]))
        if others is None:
            return None
        rng = np.random.default_rng([self.seed, _STREAM, position])
        own = self.samples[others[int(rng.integers(len(others)))]]
        apart = np.abs(self.within[own] - self.within[index])
        nearest = own[apart == apart.min()]
        return int(nearest[int(rng.integers(len(nearest)))])

    @property
    def meaning(self) -> str:
        """What is paired, for the start of a run."""
        if not self.paired:
            return (
                "Pairs of instructions: the set has none. No two training episodes begin with the same image and are "
                "told something else, so samples are drawn as without --pair-instructions (athena record --twins makes "
                "pairs)."
            )
        return (
            f"Pairs of instructions: {self.paired:,} of {self.total:,} training samples, in {self.scenes:,} scenes, "
            "have one of the same scene that is told something else. Every second draw is the partner of the one "
            "before, where it has one; the counts of draws are those without."
        )


def frames_of_episodes(dataset: Dataset) -> tuple[dict[int, int], NDArray[np.intp]]:
    """Of each episode its first sample, and of each sample its frame counted from there."""
    episode, frame = dataset.episode_of_sample, dataset.frame_of_sample
    order = np.lexsort((frame, episode))
    numbers, at = np.unique(episode[order], return_index=True)
    firsts = {int(e): int(order[i]) for e, i in zip(numbers, at, strict=True)}
    start = np.zeros(int(episode.max()) + 1, np.intp)
    start[numbers] = frame[order[at]]
    return firsts, frame - start[episode]


def scene_numbers(dataset: Dataset, firsts: dict[int, int], episodes: Sequence[int]) -> dict[int, int]:
    """A number for each episode, the same for episodes of the same scene: that of the first of them."""
    seen: list[NDArray[np.int16]] = []
    numbers: list[int] = []
    found: dict[int, int] = {}
    for e in episodes:
        images = dataset[firsts[e]].observation.images
        grid = np.concatenate([coarse(images[c]).ravel() for c in dataset.cameras])
        apart = np.abs(np.stack(seen) - grid).max(axis=1) if seen else np.zeros(0)
        same = np.flatnonzero(apart <= SAME)
        found[e] = numbers[int(same[0])] if len(same) else e
        if not len(same):
            seen.append(grid)
            numbers.append(e)
    return found


def coarse(image: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Means of `GRID` x `GRID` cells of an image `[H, W, 3]`, in grey levels."""
    return np.asarray(Image.fromarray(image).resize((GRID, GRID), Image.Resampling.BOX), np.int16)
