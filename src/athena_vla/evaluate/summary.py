"""Episodes of one actor in numbers, and two actors compared scene by scene. Arithmetic on results; plays nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from athena_vla.errors import EvaluationError
from athena_vla.evaluate.failures import Failures, by_cause
from athena_vla.evaluate.results import EpisodeResult
from athena_vla.evaluate.statistics import Interval, PairedTest, Proportion, paired_test, wilson
from athena_vla.sim.task_language import OBJECT_FAMILIES


@dataclass(frozen=True)
class ActorSummary:
    """What a row of the comparison shows."""

    success: Proportion
    per_task: dict[str, Proportion]
    failures: tuple[Failures, ...]  # by cause, the most frequent first
    object_tasks: Proportion | None  # of the tasks with an object to find; None where no such scene was played
    median_time_to_success: float | None  # [s], of the successful episodes
    commands: int
    touched: int  # commands the safety filter changed
    intervention_rate: float  # touched / commands
    interventions: dict[str, int]
    interventions_by_joint: dict[str, dict[str, int]]
    violations: int
    worst_velocity: float  # share of the limit over all episodes
    worst_acceleration: float
    episodes_with_errors: int
    first_error: str
    act_seconds: float  # [s] mean wall clock of one answer: measured here, differs from run to run

    def to_dict(self) -> dict[str, Any]:
        raw = dict(self.__dict__)
        raw["success"] = self.success.to_dict()
        raw["object_tasks"] = None if self.object_tasks is None else self.object_tasks.to_dict()
        raw["failures"] = [f.to_dict() for f in self.failures]
        raw["per_task"] = {k: v.to_dict() for k, v in self.per_task.items()}
        return raw


@dataclass(frozen=True)
class Lost:
    """What an actor loses without its eyes, or told something else."""

    success: Proportion | None  # of the ablated actor, on scenes with an object to find; None without a simulator
    success_lost: Interval | None  # the actor's success minus the ablated one's, on the same scenes (paired)
    error_added: Interval | None  # [rad] mean absolute error on recordings, ablated minus as it is; None without them
    answer_moved: Interval | None  # [rad] how far the chunks move

    def to_dict(self) -> dict[str, Any]:
        return {k: None if v is None else v.to_dict() for k, v in self.__dict__.items()}


@dataclass(frozen=True)
class Kept:
    """Scenes that two policies both played, by who solved them: what the later one kept, lost and gained."""

    kept: int = 0
    lost: int = 0
    gained: int = 0
    neither: int = 0

    @property
    def scenes(self) -> int:
        return self.kept + self.lost + self.gained + self.neither

    def plus(self, other: "Kept") -> "Kept":
        """Both together."""
        return Kept(*(a + b for a, b in zip(self.__dict__.values(), other.__dict__.values(), strict=True)))

    def to_dict(self) -> dict[str, int]:
        return dict(self.__dict__)


def kept_by_task(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> dict[str, Kept]:
    """By task, of the scenes that both played."""
    earlier = {e.scene: e.success for e in before}
    counts: dict[str, Counter[str]] = {}
    for e in after:
        if e.scene in earlier:
            how = ("neither", "gained", "lost", "kept")[2 * earlier[e.scene] + e.success]
            counts.setdefault(e.task, Counter())[how] += 1
    return {task: Kept(**found) for task, found in sorted(counts.items())}


def summarise(episodes: Sequence[EpisodeResult]) -> ActorSummary:
    """Raises `EvaluationError` when there is no episode to summarise."""
    if not episodes:
        raise EvaluationError("No episode was played by this actor; ablations need scenes with objects.")
    kinds: Counter[str] = Counter()
    joints: dict[str, Counter[str]] = {}
    for e in episodes:
        kinds.update(e.interventions)
        for kind, table in e.interventions_by_joint.items():
            joints.setdefault(kind, Counter()).update(table)
    tasks = sorted({e.task for e in episodes})
    with_object = [e for e in episodes if e.task in OBJECT_FAMILIES]
    times = [e.time_to_success for e in episodes if e.time_to_success is not None]
    commands, touched = sum(e.commands for e in episodes), sum(e.touched for e in episodes)
    failing = [e for e in episodes if e.errors]
    return ActorSummary(
        success=proportion(episodes),
        per_task={t: proportion([e for e in episodes if e.task == t]) for t in tasks},
        failures=by_cause(episodes),
        object_tasks=proportion(with_object) if with_object else None,
        median_time_to_success=float(np.median(times)) if times else None,
        commands=commands,
        touched=touched,
        intervention_rate=touched / max(commands, 1),
        interventions=dict(sorted(kinds.items())),
        interventions_by_joint={k: dict(sorted(v.items())) for k, v in sorted(joints.items())},
        violations=sum(e.violations for e in episodes),
        worst_velocity=max(e.worst_velocity for e in episodes),
        worst_acceleration=max(e.worst_acceleration for e in episodes),
        episodes_with_errors=len(failing),
        first_error=failing[0].errors[0] if failing else "",
        act_seconds=float(np.mean([e.wall["per_act"] for e in episodes])),
    )


def proportion(episodes: Sequence[EpisodeResult]) -> Proportion:
    return wilson(sum(e.success for e in episodes), len(episodes))


def compare_pair(first: Mapping[int, bool], second: Mapping[int, bool]) -> PairedTest:
    """Paired test on the scenes both played. Raises `EvaluationError` when there are none."""
    common = sorted(set(first) & set(second))
    if not common:
        raise EvaluationError("These two actors share no scene, so they cannot be compared in pairs.")
    return paired_test([first[s] for s in common], [second[s] for s in common])
