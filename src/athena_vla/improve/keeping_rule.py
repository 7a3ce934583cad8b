"""Whether a new policy is kept: exact one-sided tests on the scenes that both policies played. Pure arithmetic.

With the tested rule the chance to refuse a policy that is as good as the old one is at most `level`, whatever the
number of scenes and tasks: half of it is the test of all scenes, the other half is shared by the old tasks. Each
test is the exact conditional binomial of McNemar, and the sum bounds the chance of any refusal (Bonferroni).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from athena_vla.errors import EvaluationError
from athena_vla.evaluate.statistics import binomial_half_cdf
from athena_vla.evaluate.summary import Kept
from athena_vla.improve.improve_config import TaskRule


@dataclass(frozen=True)
class TaskChange:
    """One task in the hands of both policies."""

    task: str
    old: bool  # the set that the policy was trained on has it
    kept: int
    lost: int
    gained: int
    neither: int
    points: float  # success of the new policy minus that of the old one
    p: float  # one-sided, exact: how likely this or worse if the new policy were as good
    worse: bool  # refuses the policy

    @property
    def scenes(self) -> int:
        return self.kept + self.lost + self.gained + self.neither


@dataclass(frozen=True)
class Decision:
    """Whether the new policy is kept, and why."""

    keep: bool
    points: float  # over all scenes
    p: float
    level: float  # of the test of all scenes
    task_level: float  # of each old task's test; 0 where the bare number counts
    tasks: tuple[TaskChange, ...]
    reasons: tuple[str, ...]  # for a refusal
    unsure: tuple[str, ...]  # old tasks that lost the margin, which chance explains

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Decision":
        tasks = tuple(TaskChange(**t) for t in raw["tasks"])
        return cls(**{**raw, "tasks": tasks, "reasons": tuple(raw["reasons"]), "unsure": tuple(raw["unsure"])})


def worse_p(lost: int, gained: int) -> float:
    """P(so many or more of the scenes in which two equal policies differ are lost): exact, one-sided."""
    return binomial_half_cdf(gained, lost + gained)


def decide(
    counts: Mapping[str, Kept],
    *,
    old: Collection[str],
    level: float = 0.1,
    margin: float = 5.0,
    tasks: TaskRule = "tested",
    refused: tuple[str, ...] = (),
) -> Decision:
    """Keep the new policy unless it is worse on all scenes, or on one of the `old` tasks by `margin` points.

    `refused` are reasons from elsewhere, such as a failed gate. Raises `EvaluationError` where nothing was compared.
    """
    if not any(_scenes(c) for c in counts.values()):
        raise EvaluationError("Nothing was compared: a decision needs scenes that both policies played.")
    compared_old = [t for t in counts if t in old and _scenes(counts[t])]
    tested = tasks == "tested" and bool(compared_old)
    whole = level / 2 if tested else level
    each = level / 2 / len(compared_old) if tested else 0.0
    changes = tuple(_change(t, c, t in old, margin, tasks, each) for t, c in sorted(counts.items()) if _scenes(c))
    lost, gained = sum(c.lost for c in changes), sum(c.gained for c in changes)
    points, p = 100 * (gained - lost) / sum(c.scenes for c in changes), worse_p(lost, gained)
    reasons = list(refused)
    if p <= whole:
        reasons.append(f"worse on all scenes: {points:+.1f} points, {lost} lost and {gained} gained, p = {p:.3f}")
    reasons += [
        f"worse on '{c.task}': {c.points:+.1f} points, {c.lost} lost and {c.gained} gained, p = {c.p:.3f}"
        for c in changes
        if c.worse
    ]
    unsure = tuple(c.task for c in changes if c.old and not c.worse and _lost_margin(c.points, margin))
    return Decision(not reasons, points, p, whole, each, changes, tuple(reasons), unsure)


def _change(task: str, c: Kept, old: bool, margin: float, rule: TaskRule, level: float) -> TaskChange:
    points, p = 100 * (c.gained - c.lost) / _scenes(c), worse_p(c.lost, c.gained)
    worse = old and _lost_margin(points, margin) and (rule == "observed" or p <= level)
    return TaskChange(task, old, c.kept, c.lost, c.gained, c.neither, points, p, worse)


def _lost_margin(points: float, margin: float) -> bool:
    return points < 0 and points <= -margin + 1e-9


def _scenes(c: Kept) -> int:
    return c.kept + c.lost + c.gained + c.neither
