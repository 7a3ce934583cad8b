"""Another instruction for a sample: one that means something else, as far as the set can tell.

Texts of one frame are wordings of one request, and so are texts that share a wording; what never met may still mean the
same, which a hinge bounds.
"""

from collections.abc import Sequence

import numpy as np

from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune.listening.scene_pairs import ScenePairs
from athena_vla.recordings.texts import requests

_OF_SCENE = 0.5  # of the samples that have a partner in their scene, that are told the partner's instruction


class OtherInstructions:
    """Draws them from the texts of the training episodes. Raises `TrainingError` where all say the same."""

    def __init__(self, dataset: Dataset, drawn: Sequence[int], pairs: ScenePairs | None) -> None:
        self.dataset, self.pairs = dataset, pairs
        self.meaning_of = meanings(dataset, drawn)  # text -> number of what it says
        self.texts: list[list[str]] = [[] for _ in range(1 + max(self.meaning_of.values(), default=-1))]
        for text, number in self.meaning_of.items():
            self.texts[number].append(text)
        if len(self.texts) < 2:
            raise TrainingError(
                f"--language-margin compares each instruction with another one, and all texts of '{dataset.path}' are "
                "wordings of one request. Leave it out, or train on more than one task."
            )

    def text(self, index: int, rng: np.random.Generator) -> str:
        """What sample `index` is told instead."""
        own = self.meaning_of[self.dataset.instruction(index)]
        if self.pairs is not None and rng.random() < _OF_SCENE:
            partner = self.pairs.partner(index, int(rng.integers(2**31)))
            text = "" if partner is None else self.dataset.instruction(partner)
            if text and self.meaning_of[text] != own:
                return text
        number = int(rng.integers(len(self.texts) - 1))
        others = self.texts[number + (number >= own)]
        return others[int(rng.integers(len(others)))]

    @property
    def meaning(self) -> str:
        """What is compared, for the start of a run."""
        count = len(self.meaning_of)
        return (
            f"Language margin: each sample is also answered under another instruction, of {count} texts that say "
            f"{len(self.texts)} different things as far as the set tells (wordings of one frame say the same)."
        )


def meanings(dataset: Dataset, episodes: Sequence[int]) -> dict[str, int]:
    """Text -> number of what it says: texts that hold for the same frames say the same, and so on through them."""
    return requests(span.alternatives for e in episodes for span in dataset.spans(e))
