"""Scenes to learn from: the policy acts through the deployed loop and filter, the corrector takes over where it fails.

Each scene is one line of a journal, so that an interrupted round goes on; what is learned from becomes an episode.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from athena_vla import files
from athena_vla.control.runtime import Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import load
from athena_vla.errors import TrainingError
from athena_vla.evaluate.closedloop import SCENES_PER_SEED
from athena_vla.evaluate.results import Setup
from athena_vla.files.resume import Journal
from athena_vla.improve.correcting import SceneCorrector
from athena_vla.jobs import run_jobs
from athena_vla.policy import Policy
from athena_vla.progress import Progress
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.recordings.marks import Mark
from athena_vla.sim.deployed_episodes import trace_to_episode
from athena_vla.sim.rail import scene_of
from athena_vla.sim.robot import SimRobot

PLAYING = "scenes to learn from"  # what progress calls them
LONGEST_CORRECTION = 9.0  # [s]


@dataclass(frozen=True)
class Collect:
    """What a worker has to know."""

    policy: str
    recordings: Path
    setup: Setup
    first_scene: int
    correct: bool  # the script takes over; else what the policy solves alone is kept


@dataclass(frozen=True)
class PlayedScene:
    """What came of one scene."""

    scene: int
    task: str
    success: bool  # in the end, whoever commanded
    taken_over: str  # why; "" where the policy was left alone
    steps: int  # control steps that the corrector commanded
    episode: str  # name of the episode that is learned from; "" where none is


@dataclass(frozen=True)
class Collected:
    """What a round's scenes gave."""

    scenes: tuple[PlayedScene, ...]

    @property
    def episodes(self) -> int:
        return sum(bool(s.episode) for s in self.scenes)

    @property
    def steps(self) -> int:
        """Control steps with a label of the corrector, in episodes that are learned from."""
        return sum(s.steps for s in self.scenes if s.episode)

    @property
    def solved_alone(self) -> int:
        return sum(s.success and not s.taken_over for s in self.scenes)

    @property
    def taken_over(self) -> int:
        return sum(bool(s.taken_over) for s in self.scenes)

    @property
    def corrected(self) -> int:
        return sum(s.success and bool(s.taken_over) for s in self.scenes)


def collect(job: Collect, scenes: int, folder: Path, workers: int, progress: Progress) -> Collected:
    """Play what is missing of a round's scenes. Raises `TrainingError` where they cannot be played or kept."""
    told = asdict(job)
    del told["recordings"]  # its place is no part of what is played
    journal = Journal(folder / "scenes.jsonl", {**told, "scenes": scenes}, TrainingError)
    done = {int(r["scene"]): PlayedScene(**r) for r in journal.rows}
    wanted = [job.first_scene + i for i in range(scenes)]
    missing = [s for s in wanted if s not in done]
    progress(len(done), scenes, PLAYING)
    job.recordings.mkdir(parents=True, exist_ok=True)
    played = run_jobs(
        _player, job, missing, workers=workers or os.cpu_count() or 1, describe="scene {}".format, error=TrainingError
    )
    try:
        for _, scene in played:
            journal.add(asdict(scene))
            done[scene.scene] = scene
            progress(len(done), scenes, PLAYING)
    finally:
        played.close()
        journal.close()
    return Collected(tuple(done[s] for s in wanted))


def _player(job: Collect) -> Callable[[int], PlayedScene]:
    """What plays scenes in one process."""
    body = load(job.setup.robot)
    policy = Policy.load(job.policy)
    sim = SimRobot(scene_of(body, 0, "train"), body, job.setup.renderer, job.setup.image_size)
    return lambda scene: play_scene(job, sim, policy, scene)


def play_scene(job: Collect, sim: SimRobot, policy: Policy, number: int) -> PlayedScene:
    """One scene of the training split; an episode is written where there is something to learn from."""
    setup, body = job.setup, sim.embodiment
    scene = scene_of(body, number, "train")
    sim.reset(scene)
    corrector = SceneCorrector(sim) if job.correct else None
    config = RuntimeConfig(
        replan_every=setup.replan_every, latency=setup.latency, owners=setup.owners, latch=False, record_images=True
    )
    runtime = Runtime(sim, policy, SafetyFilter(body), config, teleoperator=corrector)

    def ended() -> bool:
        if corrector is None or not corrector.why:
            return sim.is_over() if corrector is None else sim.success() or bool(sim.judge.failure)
        return corrector.over or bool(sim.judge.failure)  # a correction is shown to its end

    trace = runtime.run(setup.duration + (LONGEST_CORRECTION if job.correct else 0.0), until=ended)
    success, why = sim.success(), "" if corrector is None else corrector.why
    name = f"episode_{number % SCENES_PER_SEED:04d}"
    kept = success and bool(why) == job.correct
    steps = 0
    if kept:
        episode = learnable(replace(trace_to_episode(trace, body, id=name, success=True), source=f"scene {number}"))
        steps = int(episode.marks.has("correction", len(episode)).sum())
        shutil.rmtree(job.recordings / name, ignore_errors=True)  # of a run that was killed before its line
        write_episode(job.recordings, episode)
    return PlayedScene(number, scene.goal.family, success, why, steps, name if kept else "")


def learnable(episode: Episode) -> Episode:
    """What the policy did before it was corrected is marked as failure: with `failure=0` it is not imitated."""
    marks = episode.marks
    if not marks.has("correction", len(episode)).any():
        return episode
    failed = tuple(Mark("failure", s.start, s.stop) for s in marks.sources if s.source == "policy")
    return replace(episode, marks=replace(marks, spans=(*marks.spans, *failed)))


def has_episodes(folder: Path) -> bool:
    """Whether a round left something to learn from."""
    return folder.is_dir() and any(folder.glob("episode_*"))


def listing(folders: tuple[Path, ...]) -> str:
    """A fingerprint of recordings by names and sizes: whether they are the ones of before."""
    rows = [
        [str(f), [[p.relative_to(f).as_posix(), p.stat().st_size] for p in sorted(f.rglob("*")) if p.is_file()]]
        for f in folders
    ]
    return files.fingerprint(rows)
