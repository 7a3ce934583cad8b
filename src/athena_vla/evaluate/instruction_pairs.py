"""Two instructions in one scene: who listens solves both, who does not can solve one of them at most.

Each scene is played twice from the same start: told of one object, then of another that stands there, each judged by
what was said. Resumable per episode, the same numbers for any number of workers.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import athena_vla.embodiment as embodiment
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.closedloop import SCENES_PER_SEED, Store, played
from athena_vla.evaluate.pair_summary import InstructionPairs, pair_summary
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.rollout import Job
from athena_vla.jobs import Place
from athena_vla.progress import Progress, quiet
from athena_vla.sim.rail import scene_of
from athena_vla.sim.tasks import twin

PAIRS = "episodes of pairs"  # what progress calls them


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How many scenes, which, and where the results are kept."""

    out: Path
    """Folder of the results; what is there and still true is reused."""
    pairs: int = 120
    """Scenes, each played with two instructions."""
    seed: int = 0
    """Decides which scenes; every actor gets the same."""
    workers: int = 0
    """Processes; 0 is one per core."""
    on: Place = "here"
    """Where scenes are played: local processes or a Ray cluster."""
    setup: Setup
    """Robot, split, duration and everything else that decides an episode."""


def instruction_pairs(
    actors: Sequence[ActorSpec], config: PairConfig, reference: str, progress: Progress = quiet
) -> InstructionPairs:
    """Play every scene with both instructions, for all actors.

    Raises `EvaluationError` for no actor or no pair, and where a robot's tasks name no object.
    """
    if not actors or config.pairs < 1:
        raise EvaluationError(f"{config.pairs} pairs of {len(actors)} actors cannot be played.")
    scenes = paired_scenes(config)
    stores: dict[tuple[str, bool], Any] = {
        (a.name, second): Store(config.out / ("other" if second else "own"), a, config.setup)
        for a in actors
        for second in (False, True)
    }
    every = [Job(a, s, second) for a in actors for s in scenes for second in (False, True)]
    jobs = [j for j in every if j.scene not in stores[j.actor.name, j.twin].rows]
    done = len(every) - len(jobs)
    progress(done, len(every), PAIRS)
    try:
        with contextlib.closing(played(jobs, config.setup, config.workers, config.on, _describe)) as runs:
            for job, result in runs:
                stores[job.actor.name, job.twin].add(result)
                done += 1
                progress(done, len(every), PAIRS, result.actor)
    finally:
        for store in stores.values():
            store.journal.close()
    solved: Mapping[str, list[tuple[bool, bool]]] = {
        a.name: [(stores[a.name, False].rows[s].success, stores[a.name, True].rows[s].success) for s in scenes]
        for a in actors
    }
    return pair_summary(solved, reference)


def paired_scenes(config: PairConfig) -> tuple[int, ...]:
    """The first scenes of the seed in which another object could be asked for."""
    robot = embodiment.load(config.setup.robot)
    first = config.seed * SCENES_PER_SEED
    looked_at = range(first, first + min(SCENES_PER_SEED, 100 * config.pairs + 100))
    fit = (s for s in looked_at if twin(scene_of(robot, s, config.setup.split)) is not None)
    scenes = tuple(itertools.islice(fit, config.pairs))
    if len(scenes) < config.pairs:
        raise EvaluationError(f"'{config.setup.robot}' has {len(scenes)} scenes with two objects to ask for.")
    return scenes


def _describe(job: Job) -> str:
    return f"actor '{job.actor.name}' in scene {job.scene}" + (", told of another object" if job.twin else "")
