"""Closed loop: every actor in exactly the same unseen scenes, with the deployed loop and filter; resumable per episode.

The numbers depend on actor, scenes and setup only, never on the number of workers or on interruptions.
"""

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import athena_vla.embodiment as embodiment
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.results import SCENES, EpisodeResult, Setup
from athena_vla.evaluate.rollout import Job, make_runner, object_task
from athena_vla.evaluate.summary import ActorSummary, summarise
from athena_vla.files.resume import Journal
from athena_vla.jobs import Place, run_jobs
from athena_vla.progress import Progress, quiet
from athena_vla.sim.rail import scene_of
from athena_vla.version import __version__

SCENES_PER_SEED = 1_000_000  # evaluation seeds never share a scene


@dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """How many episodes, on which scenes, and where the results are kept."""

    out: Path
    """Folder of the results, one file of JSON lines per actor; what is there and still true is reused."""
    episodes: int = 105
    """Scenes per actor; a multiple of the number of task families keeps them balanced."""
    seed: int = 0
    """Decides which scenes; every actor gets the same."""
    workers: int = 0
    """Processes; 0 is one per core."""
    on: Place = "here"
    """Where scenes are played: local processes or a Ray cluster."""
    setup: Setup = field(default_factory=Setup)
    """Robot, split, duration and everything else that decides an episode."""


@dataclass(frozen=True)
class ClosedLoopResult:
    """Summaries by actor, and the episodes they were made from, in the order of the scenes."""

    actors: dict[str, ActorSummary]
    episodes: dict[str, tuple[EpisodeResult, ...]]
    scenes: tuple[int, ...]
    setup: Setup
    reused: dict[str, int]  # episodes per actor that were taken from an earlier run

    def successes(self, actor: str) -> dict[int, bool]:
        """Scene -> success."""
        return {e.scene: e.success for e in self.episodes[actor]}


def closed_loop(
    actors: Sequence[ActorSpec],
    config: ClosedLoopConfig,
    progress: Progress = quiet,
    scenes: tuple[int, ...] = (),
) -> ClosedLoopResult:
    """Play all actors on all scenes: those of the seed, or `scenes` by number.

    Ablated actors play only scenes with an object to find.

    Raises `EvaluationError` for two actors of one name, no episodes, or an actor that cannot act.
    """
    names = [a.name for a in actors]
    if not names or len(set(names)) != len(names):
        raise EvaluationError(f"Actors need names of their own, these were given: {', '.join(names) or 'none'}.")
    if config.episodes < 1:
        raise EvaluationError(f"{config.episodes} episodes cannot be played; 100 or more give useful intervals.")
    scenes = scenes or tuple(config.seed * SCENES_PER_SEED + i for i in range(config.episodes))
    robot = embodiment.load(config.setup.robot)
    with_object = {s for s in scenes if object_task(scene_of(robot, s, config.setup.split))}
    stores = {a.name: Store(config.out, a, config.setup) for a in actors}
    wanted = {a.name: [s for s in scenes if a.ablation == "none" or s in with_object] for a in actors}
    reused = {n: sum(s in stores[n].rows for s in wanted[n]) for n in names}
    jobs = [Job(a, s) for a in actors for s in wanted[a.name] if s not in stores[a.name].rows]
    total = sum(len(w) for w in wanted.values())
    done = total - len(jobs)
    progress(done, total, SCENES)
    try:
        with contextlib.closing(played(jobs, config.setup, config.workers, config.on, _describe)) as runs:
            for job, result in runs:
                stores[job.actor.name].add(result)
                done += 1
                progress(done, total, SCENES, result.actor)
    finally:
        for store in stores.values():
            store.journal.close()
    episodes = {n: tuple(stores[n].rows[s] for s in wanted[n]) for n in names}
    return ClosedLoopResult({n: summarise(episodes[n]) for n in names}, episodes, scenes, config.setup, reused)


def played(
    jobs: Sequence[Job], setup: Setup, workers: int, on: Place, describe: Callable[[Job], str]
) -> Generator[tuple[Job, EpisodeResult], None, None]:
    """Each job with its episode, as they finish; `workers` 0 is one per core. Close it where it is left early."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one worker runs here, and must compute what a spawned one computes
    count = workers or os.cpu_count() or 1
    runs = run_jobs(make_runner, setup, jobs, workers=count, place=on, describe=describe, error=EvaluationError)
    try:
        for number, result in runs:
            yield jobs[number], result
    finally:
        runs.close()
        torch.set_num_threads(threads)


def _describe(job: Job) -> str:
    return f"actor '{job.actor.name}' in scene {job.scene}"


class Store:
    """Episodes of one actor on disk; those of the same program, actor and setup are kept from earlier runs."""

    def __init__(self, folder: Path, actor: ActorSpec, setup: Setup) -> None:
        header = {"athena_vla": __version__, "actor": actor.fingerprint(), "setup": asdict(setup)}
        self.journal = Journal(folder / f"{actor.name}.jsonl", header, EvaluationError)
        self.rows = {int(row["scene"]): EpisodeResult.from_dict(row) for row in self.journal.rows}

    def add(self, result: EpisodeResult) -> None:
        self.rows[result.scene] = result
        self.journal.add(result.to_dict())
