"""Whether a new policy is kept: exact one-sided tests on the scenes that both policies played. Pure arithmetic.

Half of `level` is the test of all scenes, the other half is shared by the old tasks (Bonferroni); each test is the
exact conditional binomial of McNemar. An old task that lost the margin, and may have done so by chance, is played on:
from `enough` scenes on the bare number counts. Together they refuse a policy as good as the old one in fewer than one
of ten rounds; the tests simulate it.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from athena_vla.errors import EvaluationError
from athena_vla.evaluate.statistics import binomial_half_cdf
from athena_vla.evaluate.summary import Kept
from athena_vla.improve.improve_config import TaskRule

LOOKS = 5  # at a task that is played on, each at a share of its level: 100, 200, 400 scenes and so on


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
    unsure: tuple[str, ...]  # old tasks that lost the margin, which chance explains until now

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Decision":
        tasks = tuple(TaskChange(**t) for t in raw["tasks"])
        return cls(**{**raw, "tasks": tasks, "reasons": tuple(raw["reasons"]), "unsure": tuple(raw["unsure"])})


def worse_p(lost: int, gained: int) -> float:
    """P(so many or more of the scenes in which two equal policies differ are lost): exact, one-sided."""
    return binomial_half_cdf(gained, lost + gained)


def further(scenes: int, most: int) -> int:
    """How many scenes of a task are next looked at: twice as many, 100 at least, `most` at most."""
    return max(scenes, min(most, max(2 * scenes, 100)))


def decide(
    counts: Mapping[str, Kept],
    *,
    old: Collection[str],
    level: float = 0.1,
    margin: float = 5.0,
    tasks: TaskRule = "tested",
    more: Mapping[str, Kept] | None = None,
    enough: int = 0,
    refused: tuple[str, ...] = (),
) -> Decision:
    """Keep the new policy unless it is worse on all scenes, or on one of the `old` tasks by `margin` points.

    `more` are further scenes of single tasks: they speak of these alone. A task of `enough` scenes and more refuses
    by the bare number; 0 is never. `refused` are reasons from elsewhere, such as a failed gate. Raises
    `EvaluationError` where nothing was compared.
    """
    if not any(c.scenes for c in counts.values()):
        raise EvaluationError("Nothing was compared: a decision needs scenes that both policies played.")
    compared_old = [t for t in counts if t in old and counts[t].scenes]
    tested = tasks == "tested" and bool(compared_old)
    whole = level / 2 if tested else level
    each = level / 2 / len(compared_old) if tested else 0.0
    bare = 0 if tasks == "observed" else enough or math.inf  # scenes from which on the bare number counts
    added = {t: c.plus((more or {}).get(t, Kept())) for t, c in sorted(counts.items()) if c.scenes}
    again = {t: each / LOOKS if c.scenes > counts[t].scenes else each for t, c in added.items()}
    changes = tuple(_change(t, c, t in old, margin, bare, again[t]) for t, c in added.items())
    lost, gained = sum(c.lost for c in counts.values()), sum(c.gained for c in counts.values())
    points, p = 100 * (gained - lost) / sum(c.scenes for c in counts.values()), worse_p(lost, gained)
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


def _change(task: str, c: Kept, old: bool, margin: float, bare: float, level: float) -> TaskChange:
    points, p = 100 * (c.gained - c.lost) / c.scenes, worse_p(c.lost, c.gained)
    worse = old and _lost_margin(points, margin) and (c.scenes >= bare or p <= level)
    return TaskChange(task, old, c.kept, c.lost, c.gained, c.neither, points, p, worse)


def _lost_margin(points: float, margin: float) -> bool:
    return points < 0 and points <= -margin + 1e-9
