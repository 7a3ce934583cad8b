"""Both policies on the same fresh scenes, or on recorded episodes that neither learned from: counts by task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import embodiment
from athena_vla.dataset.dataset import Dataset
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import SCENES_PER_SEED, ClosedLoopConfig, closed_loop
from athena_vla.evaluate.openloop import spread
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.statistics import Interval, PairedTest, Proportion
from athena_vla.evaluate.summary import Kept, compare_pair, kept_by_task
from athena_vla.policy import Policy
from athena_vla.progress import Progress
from athena_vla.sim.rail import scene_of

BEFORE, AFTER = "before", "after"
HELD_OUT = "recorded episodes held out"  # what progress calls them


@dataclass(frozen=True)
class Success:
    """Success of both policies on the scenes that both played."""

    before: Proportion
    after: Proportion
    paired: PairedTest  # the new policy is the first

    def to_dict(self) -> dict[str, Any]:
        return {"before": self.before.to_dict(), "after": self.after.to_dict(), "paired": self.paired.to_dict()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Success":
        paired = PairedTest(**{**raw["paired"], "difference": Interval(**raw["paired"]["difference"])})
        return cls(Proportion(**raw["before"]), Proportion(**raw["after"]), paired)


@dataclass(frozen=True)
class Judged:
    """What the decision is made of."""

    counts: dict[str, Kept]  # by task
    old: tuple[str, ...]
    success: Success | None  # None without a simulator
    not_judged: tuple[str, ...]  # in words


def in_simulator(
    before: Path,
    after: Path,
    out: Path,
    *,
    old: tuple[str, ...],
    setup: Setup,
    scenes: int,
    seed: int,
    workers: int,
    progress: Progress,
) -> Judged:
    """Closed loop with the deployed filter; finished episodes of an interrupted comparison are taken over."""
    config = ClosedLoopConfig(out=out, episodes=scenes, seed=seed, workers=workers, setup=setup)
    played = closed_loop(_actors(before, after), config, progress)
    counts = kept_by_task(played.episodes[BEFORE], played.episodes[AFTER])
    paired = compare_pair(played.successes(AFTER), played.successes(BEFORE))
    success = Success(played.actors[BEFORE].success, played.actors[AFTER].success, paired)
    said = tuple(f"The test has no scene of the old task '{t}'." for t in old if t not in counts)
    return Judged(counts, old, success, said)


def more_of(
    tasks: dict[str, int],
    before: Path,
    after: Path,
    out: Path,
    *,
    setup: Setup,
    first: int,
    workers: int,
    progress: Progress,
) -> dict[str, Kept]:
    """So many further scenes of single tasks, by number from `first` on; what an earlier call played is taken over."""
    robot, wanted = embodiment.load(setup.robot), dict(tasks)
    chosen: list[int] = []
    for scene in range(first, first + SCENES_PER_SEED // 2):
        if not any(wanted.values()):
            break
        task = scene_of(robot, scene, setup.split).goal.family
        if wanted.get(task):
            wanted[task] -= 1
            chosen.append(scene)
    config = ClosedLoopConfig(out=out, workers=workers, setup=setup)
    played = closed_loop(_actors(before, after), config, progress, tuple(chosen))
    return kept_by_task(played.episodes[BEFORE], played.episodes[AFTER])


def _actors(before: Path, after: Path) -> list[ActorSpec]:
    return [ActorSpec(BEFORE, source=str(before)), ActorSpec(AFTER, source=str(after))]


def on_recordings(
    before: Path, after: Path, data: Dataset, new: Dataset, *, samples: int, seed: int, progress: Progress
) -> Judged:
    """Open loop: in how many held-out episodes the new policy answers further from, or nearer to, what was recorded."""
    counts: dict[str, Kept] = {}
    missing = []
    for place, dataset in ((0, data), (1, new)):
        if not len(dataset.validation):
            missing.append(f"No episode of '{dataset.path}' is held out, so nothing was compared on it.")
            continue
        chosen = [int(dataset.validation[i]) for i in spread(len(dataset.validation), samples)]
        one, two = (
            episode_errors(Policy.load(p), dataset, chosen, progress, place * 2 + i)
            for i, p in enumerate((before, after))
        )
        for task, number in one:
            change = two[task, number] - one[task, number]
            c = counts.get(task, Kept())
            counts[task] = Kept(0, c.lost + (change > 0), c.gained + (change < 0), c.neither + (change == 0))
    said = (
        "Success was not judged: there is no simulator of this robot here. Open loop ranks policies only roughly; "
        "compare both on the robot (athena trials draw) before the new one replaces the old one.",
        *missing,
    )
    held = data.validation
    old = tuple(sorted({data.kinds[int(i)] for i in held}))
    return Judged(counts, old, None, said)


def episode_errors(
    policy: Policy, dataset: Dataset, chosen: list[int], progress: Progress, number: int
) -> dict[tuple[str, str], float]:
    """(task, episode) -> mean absolute error over its chosen samples. [rad]"""
    errors: dict[tuple[str, str], list[float]] = {}
    for i, index in enumerate(chosen):
        sample = dataset[index]
        rows = policy.act(sample.observation).positions[: len(sample.chunk)]
        valid = np.asarray(sample.valid, bool)[: len(rows)]
        error = np.abs(rows - np.asarray(sample.chunk)[: len(rows)])[valid]
        if error.size:
            errors.setdefault((dataset.kinds[index], sample.episode), []).append(float(error.mean()))
        progress(number * len(chosen) + i + 1, 4 * len(chosen), HELD_OUT)
    return {k: float(np.mean(v)) for k, v in errors.items()}
