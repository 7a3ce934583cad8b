"""One closed-loop episode: a scene, an actor, the deployed control loop and safety filter, and what came of it.

Runs in a worker process; everything that enters and leaves is plain data.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import athena_vla.embodiment as embodiment
from athena_vla.control.action_prefix import prefix_of
from athena_vla.control.runtime import LEVELS, RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.evaluate.actors import ActorFactory, ActorSpec
from athena_vla.evaluate.baselines import Actor
from athena_vla.evaluate.failures import cause
from athena_vla.evaluate.results import EpisodeResult, Setup
from athena_vla.evaluate.violations import count_violations
from athena_vla.sim.rail import scene_of
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Scene
from athena_vla.sim.tasks import other_instruction, twin


@dataclass(frozen=True)
class Job:
    """One actor in one scene."""

    actor: ActorSpec
    scene: int  # number of the scene; every actor gets the same ones
    twin: bool = False  # the same scene with another of its objects as the goal


def object_task(scene: Scene) -> bool:
    """Whether the instruction names an object that has to be found in the image."""
    return scene.target is not None


class Timed:
    """The actor, and how long it took."""

    def __init__(self, inner: Actor) -> None:
        self.inner = inner
        self.calls, self.seconds = 0, 0.0

    @property
    def prefix(self) -> int:
        return prefix_of(self.inner)

    def act(self, observation: Observation, /) -> ActionChunk:
        start = time.perf_counter()
        chunk = self.inner.act(observation)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return chunk


def make_runner(setup: Setup) -> Callable[[Job], EpisodeResult]:
    """The handler of a worker: keeps one body description and the last policy loaded."""
    robot = embodiment.load(setup.robot)
    factory = ActorFactory(robot, keep=1)
    stage = Stage(setup, robot)

    def run(job: Job) -> EpisodeResult:
        scene = scene_of(robot, job.scene, setup.split)
        if job.twin:
            other = twin(scene)
            assert other is not None  # whoever asks has looked
            scene = other
        told: dict[str, str] = {}
        if job.actor.ablation == "other_instruction":
            told = {scene.instruction: other_instruction(scene).instruction}
        return stage.play(scene, job.actor, factory.actor(job.actor, told))

    return run


class Dark:
    """A renderer for actors that do not look: drawing is most of the time of an episode."""

    name = "dark"

    def render(self, data: Any, camera: str, height: int, width: int, look: Any, /) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)


class Stage:
    """Plays episodes one after the other in one simulated world."""

    def __init__(self, setup: Setup, robot: Embodiment) -> None:
        self.setup = setup
        self.robot = robot
        self.sim = SimRobot(scene_of(robot, 0, setup.split), robot, setup.renderer, setup.image_size)
        self.renderer = self.sim.renderer

    def play(self, scene: Scene, spec: ActorSpec, actor: Actor) -> EpisodeResult:
        begun = time.perf_counter()
        setup = self.setup
        sim = self.sim
        sim.renderer = self.renderer if spec.sees else Dark()
        sim.reset(scene)
        guard = SafetyFilter(self.robot)
        timed = Timed(actor)
        config = RuntimeConfig(replan_every=setup.replan_every, latency=setup.latency, owners=setup.owners, latch=False)
        trace = run_episode(sim, timed, guard, duration=setup.duration, config=config, until=sim.is_over)
        success = sim.success()
        columns = self.robot.command_columns
        start = np.clip(self.robot.command_of(trace.states[0]), columns.lower, columns.upper)
        found = count_violations(trace.commands, start, self.robot)
        why = cause(
            sim.judge.failure,
            chunks=len(trace.chunks),
            stopped=bool((trace.levels[: trace.braking_from] >= LEVELS.index("stop")).any()),
            missed_by=sim.judge.missed_by,
        )
        return EpisodeResult(
            actor=spec.name,
            scene=scene.seed,
            task=scene.goal.family,
            instruction=scene.instruction,
            success=success,
            time_to_success=sim.judge.success_time,
            commands=len(trace.commands),
            touched=trace.touched_steps,
            interventions={k: int(v) for k, v in sorted(trace.interventions.items())},
            interventions_by_joint=guard.interventions_by_joint,
            violations=found.total,
            worst_velocity=found.worst_velocity,
            worst_acceleration=found.worst_acceleration,
            errors=trace.errors,
            wall={
                "total": time.perf_counter() - begun,
                "acting": timed.seconds,
                "per_act": timed.seconds / max(timed.calls, 1),
            },
            cause="" if success else why,
            missed_by=sim.judge.missed_by,
            unit=sim.judge.unit,
        )
