"""What came of rounds, as values that go to JSON and back, and as a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.evaluate import table_text
from athena_vla.improve.judging import Success
from athena_vla.improve.keeping_rule import Decision


@dataclass(frozen=True)
class RoundResult:
    """One round: what was played, what was learned from, and what was decided."""

    number: int
    policy: str  # that the round began with
    candidate: str  # that it trained
    scenes: int  # played to learn from; 0 where recordings were given
    solved_alone: int
    taken_over: int
    corrected: int  # of those taken over, solved in the end
    episodes: int  # learned from in this round
    steps: int  # control steps with a label of the corrector in this round
    all_steps: int  # and in all rounds until now
    test_scenes: int
    success: Success | None  # None without a simulator
    decision: Decision
    not_judged: tuple[str, ...]

    @property
    def kept(self) -> str:
        """The policy that the next round begins with."""
        return self.candidate if self.decision.keep else self.policy

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "success": None if self.success is None else self.success.to_dict(),
            "decision": self.decision.to_dict(),
            "not_judged": list(self.not_judged),
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "RoundResult":
        return cls(
            **{
                **raw,
                "success": None if raw["success"] is None else Success.from_dict(raw["success"]),
                "decision": Decision.from_dict(raw["decision"]),
                "not_judged": tuple(raw["not_judged"]),
            }
        )

    def cells(self) -> list[str]:
        played = (
            f"{self.scenes}, {self.solved_alone} alone, {self.corrected} corrected" if self.scenes else "recordings"
        )
        s, d = self.success, self.decision
        before, after, change = "-", "-", f"{d.points:+.1f}"
        if s is not None:
            before, after = table_text.proportion(s.before), table_text.proportion(s.after)
            change = table_text.difference(s.paired.difference)
        kept = "kept" if d.keep else "refused"
        return [str(self.number), played, f"{self.steps:,}", before, after, change, table_text.p_value(d.p), kept]


HEAD = ["round", "scenes to learn from", "corrected steps", "before", "after", "change [points]", "p worse", ""]


@dataclass(frozen=True)
class ImproveResult:
    """All rounds, and the policy at the end."""

    folder: Path
    policy: Path
    rounds: tuple[RoundResult, ...]
    page: Path
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "policy": str(self.policy),
            "rounds": [r.to_dict() for r in self.rounds],
            "page": str(self.page),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [table_text.aligned(HEAD, [r.cells() for r in self.rounds])] if self.rounds else []
        return "\n".join([*lines, *self.notes, f"Policy: {self.policy}", f"Page: {self.page}"])


def sentences(result: RoundResult) -> list[str]:
    """What has to be said beside the numbers of a round."""
    d, n = result.decision, result.number
    said = [f"Round {n}: the new policy is refused: {reason}." for reason in d.reasons]
    for task in d.unsure:
        points = next(t.points for t in d.tasks if t.task == task)
        said.append(
            f"Round {n}: '{task}' has {points:+.1f} points, which chance explains; more --test-scenes would tell."
        )
    return [*said, *(f"Round {n}: {text}" for text in result.not_judged)]
