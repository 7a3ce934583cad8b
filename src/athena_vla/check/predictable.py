"""Whether the first image of an episode already says what will be asked: then a policy need not listen.

Each episode's instruction is guessed as that of the episode with the most similar first image, itself left out. How
often that is right is compared with guesses in which the instructions were dealt out anew among the episodes.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from athena_vla.check.findings import Finding, finding
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.placeholders import is_placeholder
from athena_vla.recordings.texts import alternatives_at, requests

GRID = 16  # cells of brightness in each direction
MOST = 500  # episodes that are compared, drawn among all
FEWEST = 10  # episodes, of instructions that occur more than once, below which nothing is said
SHARE = 0.8  # of the guesses that are right, from which on it is named
PERMUTATIONS = 999
CHANCE = 0.01  # p below which no permutation explains it


class FirstImages:
    """Collects the first image and the texts of each episode; `findings` compares them."""

    def __init__(self) -> None:
        self._seen = 0
        self._rng = np.random.default_rng(0)
        self._rows: list[tuple[tuple[str, ...], NDArray[np.float32]]] = []

    def add(self, episode: Episode, first: list[NDArray[np.uint8]]) -> None:
        """`first` are brightness grids `[h, w]` of each camera's first image."""
        texts = tuple(t for t in alternatives_at(episode.texts, 0) if not is_placeholder(t))
        if not texts or not first:
            return
        # A fair sample, whatever the order: every second episode may be told the same.
        self._seen += 1
        place = len(self._rows) if len(self._rows) < MOST else int(self._rng.integers(self._seen))
        if place < MOST:
            cells = [np.asarray(Image.fromarray(g).resize((GRID, GRID), Image.Resampling.BOX)) for g in first]
            row = (texts, np.concatenate([c.ravel() for c in cells]).astype(np.float32))
            self._rows[place : place + 1] = [row]

    def findings(self) -> Iterator[Finding]:
        """One finding where the guesses are mostly right and chance does not explain it."""
        width = Counter(len(grid) for _, grid in self._rows).most_common(1)
        rows = [r for r in self._rows if len(r[1]) == width[0][0]]
        asked = requests(texts for texts, _ in rows)
        labels = np.array([asked[texts[0]] for texts, _ in rows], np.intp)
        often = np.bincount(labels, minlength=1)[labels] > 1 if len(labels) else np.zeros(0, bool)
        labels, grids = labels[often], [grid for (_, grid), keep in zip(rows, often, strict=True) if keep]
        if len(labels) < FEWEST or len(set(labels.tolist())) < 2:
            return
        right, expected, p = guessed(np.stack(grids), labels)
        if right >= SHARE and p <= CHANCE:
            yield finding(
                "language.predictable",
                f"The first image tells the instruction: the most similar first image has the same one for "
                f"{100 * right:.0f}% of {len(labels)} episodes, {100 * expected:.0f}% by chance "
                f"({len(set(labels.tolist()))} instructions, p {p:.3f}).",
            )


def guessed(grids: NDArray[np.float32], labels: NDArray[np.intp]) -> tuple[float, float, float]:
    """Share of labels `[n]` that the nearest other row of `grids` `[n, d]` has too, by absolute differences; the mean
    share with labels dealt out anew; and how often that is as large (p of a permutation test).
    """
    apart = np.stack([np.abs(grids - row).sum(axis=1) for row in grids])
    np.fill_diagonal(apart, np.inf)
    nearest = apart.argmin(axis=1)
    right = float((labels[nearest] == labels).mean())
    rng = np.random.default_rng(0)
    dealt = [rng.permutation(labels) for _ in range(PERMUTATIONS)]
    shares = np.array([(d[nearest] == d).mean() for d in dealt])
    return right, float(shares.mean()), float((1 + (shares >= right - 1e-12).sum()) / (1 + PERMUTATIONS))
