"""Watch an actor: the same episode as in the closed loop, seen from outside and through the robot's camera.

The object that the instruction names is ringed in the film; what the policy sees is untouched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

import athena_vla.embodiment as embodiment
from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.evaluate.actors import ActorFactory
from athena_vla.evaluate.baselines import Actor
from athena_vla.evaluate.results import Setup
from athena_vla.evaluate.rollout import Job
from athena_vla.sim.rail import scene_of
from athena_vla.sim.render import RayRenderer
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Scene
from athena_vla.sim.world import THIRD_PERSON

LOOK_AT, FIELD_OF_VIEW = (0.14, 0.0, 0.62), 34.0  # [m], [degrees]: robot and table fill the image
RING = 1.9  # radius of the ring around the goal, in radii of the object


@dataclass(frozen=True)
class Mark:
    """A circle in an image, all in shares of its height: centre across and down, radius."""

    across: float
    down: float
    radius: float


@dataclass(frozen=True)
class Film:
    """Frames of one episode at the same instants from both cameras."""

    outside: list[NDArray[np.uint8]]
    eyes: list[NDArray[np.uint8]]
    succeeded: list[bool]  # at each frame
    fps: float  # [Hz]
    instruction: str
    success: bool
    goals: list[tuple[Mark | None, Mark | None]]  # at each frame: where the goal is outside, and in the robot's view


class FilmedRobot:
    """The simulated robot with a camera man; what the policy sees is untouched."""

    def __init__(self, sim: SimRobot, height: int, every: int) -> None:
        self.sim, self.height, self.every = sim, height, every
        self.camera = RayRenderer(sim.world.model, shadows=True)
        self.outside: list[NDArray[np.uint8]] = []
        self.eyes: list[NDArray[np.uint8]] = []
        self.succeeded: list[bool] = []
        self.goals: list[tuple[Mark | None, Mark | None]] = []
        self.commands = 0
        _aim(sim.world.model, THIRD_PERSON)

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
        self.outside.append(self.camera.render(sim.world.data, THIRD_PERSON, height, height * 5 // 4, look))
        # The robot's own view is shown as the policy gets it, without shadows, only larger.
        self.eyes.append(sim.renderer.render(sim.world.data, "head", height, height, look))
        self.succeeded.append(self.sim.success())
        self.goals.append((self.goal_in(THIRD_PERSON, 1.25), self.goal_in("head", 1.0)))

    def goal_in(self, camera: str, aspect: float) -> Mark | None:
        """Where the instruction's object stands in an image of this aspect; None where there is none in view."""
        world, target = self.sim.world, self.sim.scene.goal.target
        if target is None:
            return None
        number = int(world.model.camera(camera).id)
        centre = world.data.geom_xpos[world.object_geoms[target]]
        seen = world.data.cam_xmat[number].reshape(3, 3).T @ (centre - world.data.cam_xpos[number])
        if seen[2] >= 0.0:  # behind the camera, which looks along its negative z
            return None
        focal = 0.5 / math.tan(math.radians(float(world.model.cam_fovy[number])) / 2)
        across, down = aspect / 2 - focal * seen[0] / seen[2], 0.5 + focal * seen[1] / seen[2]
        radius = RING * focal * self.sim.scene.objects[target].height / 2 / -seen[2]
        inside = 0 <= across <= aspect and 0 <= down <= 1
        return Mark(float(across), float(down), float(radius)) if inside else None


def film(actor: Actor, scene: Scene, setup: Setup, *, height: int = 224, fps: float = 8.0) -> Film:
    """Play one episode and keep the images; a little of what follows success is shown too."""
    robot = embodiment.load(setup.robot)
    sim = SimRobot(scene, robot, setup.renderer, setup.image_size)
    filmed: Any = FilmedRobot(sim, height, max(1, round(robot.command_hz / fps)))
    config = RuntimeConfig(replan_every=setup.replan_every, latency=setup.latency, owners=setup.owners, latch=False)
    run_episode(filmed, actor, SafetyFilter(robot), duration=setup.duration, config=config, until=sim.is_over)
    filmed.shoot()
    return Film(filmed.outside, filmed.eyes, filmed.succeeded, fps, scene.instruction, sim.success(), filmed.goals)


def _aim(model: mujoco.MjModel, camera: str) -> None:
    """Turn a camera of this film's own world to the robot, close enough to see its hands."""
    number = int(model.camera(camera).id)
    back = model.cam_pos[number] - np.array(LOOK_AT)
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    turn = np.column_stack([right, np.cross(back, right), back])
    mujoco.mju_mat2Quat(model.cam_quat[number], turn.ravel())
    model.cam_fovy[number] = FIELD_OF_VIEW


def make_camera_man(setup: Setup) -> Callable[[Job], Film]:
    """The handler of a worker that films instead of measuring."""
    robot = embodiment.load(setup.robot)
    factory = ActorFactory(robot, keep=1)

    def run(job: Job) -> Film:
        return film(factory.actor(job.actor), scene_of(robot, job.scene, setup.split), setup)

    return run
