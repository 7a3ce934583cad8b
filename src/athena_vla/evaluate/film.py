"""Watch an actor: the same episode as in the closed loop, seen from outside and through the robot's eyes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import athena_vla.embodiment as embodiment
from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.evaluate.actors import Cast
from athena_vla.evaluate.baselines import Actor
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.rollout import Job
from athena_vla.sim.render import RayRenderer
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Scene
from athena_vla.sim.tasks import sample_scene


@dataclass(frozen=True)
class Film:
    """Frames of one episode at the same instants from both cameras."""

    outside: list[NDArray[np.uint8]]
    eyes: list[NDArray[np.uint8]]
    succeeded: list[bool]  # at each frame
    fps: float  # [Hz]
    instruction: str
    success: bool


class FilmedRobot:
    """The simulated robot with a camera man; what the policy sees is untouched."""

    def __init__(self, sim: SimRobot, height: int, every: int) -> None:
        self.sim, self.height, self.every = sim, height, every
        self.camera = RayRenderer(sim.world.model, shadows=True)
        self.outside: list[NDArray[np.uint8]] = []
        self.eyes: list[NDArray[np.uint8]] = []
        self.succeeded: list[bool] = []
        self.commands = 0

    @property
    def embodiment(self) -> Embodiment:
        return self.sim.embodiment

    @property
    def time(self) -> float:
        return self.sim.time

    def observe(self) -> Observation:
        return self.sim.observe()

    def command(self, positions: NDArray[np.float64], /) -> None:
        if self.commands % self.every == 0:
            self.shoot()
        self.commands += 1
        self.sim.command(positions)

    def shoot(self) -> None:
        sim, height = self.sim, self.height
        look = sim.scene.appearance
        self.outside.append(self.camera.render(sim.world.data, "third_person", height, height * 5 // 4, look))
        # The robot's own view is shown as the policy gets it, without shadows, only larger.
        self.eyes.append(sim.renderer.render(sim.world.data, "head", height, height, look))
        self.succeeded.append(self.sim.success())


def film(actor: Actor, scene: Scene, setup: Setup, *, height: int = 224, fps: float = 8.0) -> Film:
    """Play one episode and keep the pictures; a little of what follows success is shown too."""
    robot = embodiment.load(setup.robot)
    sim = SimRobot(scene, robot, setup.renderer, setup.image_size)
    filmed: Any = FilmedRobot(sim, height, max(1, round(robot.command_hz / fps)))
    config = RuntimeConfig(replan_every=setup.replan_every, latency=setup.latency, owners=setup.owners, latch=False)
    run_episode(filmed, actor, SafetyFilter(robot), duration=setup.duration, config=config, until=sim.is_over)
    filmed.shoot()
    return Film(filmed.outside, filmed.eyes, filmed.succeeded, fps, scene.instruction, sim.success())


def make_camera_man(setup: Setup) -> Callable[[Job], Film]:
    """The handler of a worker that films instead of measuring."""
    cast = Cast(embodiment.load(setup.robot), keep=1)

    def run(job: Job) -> Film:
        return film(cast.actor(job.actor), sample_scene(job.scene, setup.split), setup)

    return run
