"""Scenes played with two instructions, in numbers and as a table. Arithmetic on results; plays nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from athena_vla.evaluate.statistics import PairedTest, Proportion, paired_test, wilson
from athena_vla.evaluate.table_text import aligned, p_value, proportion

ENOUGH = 120  # pairs from which on a difference of 15 points can be seen
PAIR_LEGEND = (
    "same scene, two instructions: each scene is played twice, told of one object and then of another that stands\n"
    "there. Both: solved as told both times; who does not listen solves one of the two at most."
)


@dataclass(frozen=True)
class PairSuccess:
    """What one actor did."""

    own: Proportion  # told of the scene's first goal
    other: Proportion  # told of another object there
    both: Proportion  # scenes solved as told both times

    def to_dict(self) -> dict[str, Any]:
        return {k: v.to_dict() for k, v in self.__dict__.items()}


@dataclass(frozen=True)
class InstructionPairs:
    """All actors on the same scenes; `paired` compares the reference with each other by scenes solved both times."""

    reference: str
    actors: dict[str, PairSuccess]
    paired: dict[str, PairedTest]

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "actors": {k: v.to_dict() for k, v in self.actors.items()},
            "paired": {k: v.to_dict() for k, v in self.paired.items()},
        }

    @property
    def pairs(self) -> int:
        """Scenes of each actor."""
        return next(iter(self.actors.values())).both.n

    def __str__(self) -> str:
        rows = []
        for name, s in self.actors.items():
            test = self.paired.get(name)
            versus = ["-", "-"] if test is None else [f"+{test.only_first} -{test.only_second}", p_value(test.exact_p)]
            rows.append([name, proportion(s.both), proportion(s.own), proportion(s.other), str(s.both.n), *versus])
        head = ["same scene, two instructions", "both [95%]", "the one", "the other", "pairs"]
        return aligned([*head, f"{self.reference} +/-", "p"], rows)

    @property
    def note(self) -> str:
        """A sentence where the pairs are too few to tell policies apart; "" else."""
        if self.pairs >= ENOUGH:
            return ""
        return f"{self.pairs} pairs give wide intervals; {ENOUGH} or more tell policies apart: --pairs {ENOUGH}."


def pair_summary(solved: Mapping[str, Sequence[tuple[bool, bool]]], reference: str) -> InstructionPairs:
    """Of the outcomes with the one and with the other instruction, by actor and scene."""
    both = {name: [a and b for a, b in pairs] for name, pairs in solved.items()}
    return InstructionPairs(
        reference,
        {
            name: PairSuccess(_share([a for a, _ in pairs]), _share([b for _, b in pairs]), _share(both[name]))
            for name, pairs in solved.items()
        },
        {name: paired_test(both[reference], both[name]) for name in solved if name != reference},
    )


def _share(outcomes: Sequence[bool]) -> Proportion:
    return wilson(sum(outcomes), len(outcomes))
