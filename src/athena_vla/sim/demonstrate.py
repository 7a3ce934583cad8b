"""One demonstration as an episode in memory: a scripted trajectory, disturbed a little, seen by the robot's camera.

Knows nothing of files. The recorded action of a frame is the clean joint target of the next control step; what is
executed wanders about it, so that the images also show states from which a demonstrator had to come back.
"""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.episode import Episode, Image, Origin
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.simulator_truth import Phase, SimulatorTruth
from athena_vla.recordings.streams import Clock
from athena_vla.recordings.texts import said
from athena_vla.sim.experts import Expert, Trajectory
from athena_vla.sim.rail_expert import RailExpert, RailTrajectory
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Scene
from athena_vla.sim.success import measure
from athena_vla.sim.tasks import SPLITS


def demonstrate(robot: SimRobot, scene: Scene, *, failures: float = 0.0, noise: float = 0.0) -> Episode:
    """One demonstration in `robot`'s world, not yet on disk; its id is "episode"."""
    robot.reset(scene)
    rng = np.random.default_rng([4, SPLITS.index(scene.split), scene.seed])
    expert = Expert(robot.world) if robot.world.rail is None else RailExpert(robot.world)
    kind = ""
    if rng.random() < failures:
        trajectory, kind = expert.plan_failure(scene, rng)
    else:
        trajectory = expert.plan(scene)
    return play(robot, scene, trajectory, kind, noise, rng)


def play(
    robot: SimRobot,
    scene: Scene,
    trajectory: Trajectory | RailTrajectory,
    failure: str,
    noise: float,
    rng: np.random.Generator,
) -> Episode:
    """The episode of a trajectory: what is commanded wanders about it, channels do not."""
    body, columns = robot.embodiment, robot.embodiment.command_columns
    inner = round(body.command_hz / body.control_hz)
    steps = int(np.ceil(trajectory.duration * body.control_hz - 1e-6))
    disturb = disturbance(rng, noise, len(body.joints))
    still = np.zeros(len(body.commanded_channels))
    pictures, states, actions, times, contacts, objects = [], [], [], [], [], []
    for step in range(steps):
        observation = robot.observe()
        pictures.append(observation.images["head"])
        states.append(np.concatenate([observation.state, robot.world.joint_velocities]))
        actions.append(trajectory.at((step + 1) / body.control_hz))
        times.append(observation.time)
        measures = measure(robot.world)
        contacts.append(bool(min(g.min() for g in measures.gaps.values()) <= 0.002))
        objects.append(measures.centres)
        for _ in range(inner):
            when = robot.time + 1.0 / body.command_hz
            wandering = trajectory.at(when) + np.concatenate([disturb(when), still])
            robot.command(np.clip(wandering, columns.lower, columns.upper))
    phases = [Phase(name, start, min(stop, steps / body.control_hz)) for name, start, stop in trajectory.phases]
    return Episode(
        id="episode",
        clock=Clock(np.array(times), body.control_hz),
        joint_names=body.command_names,
        actions=np.array(actions, dtype=np.float32),
        state_names=(*body.state_names, *(f"{name}_velocity" for name in body.joint_names)),
        states=np.array(states, dtype=np.float32),
        cameras={"head": _Pictures(pictures)},
        texts=said((scene.instruction, *scene.phrasings), steps),
        marks=Marks(robot.success()),
        source=f"simulator:{scene.split}#{scene.seed}",
        truth=SimulatorTruth(
            task={"family": scene.goal.family, "side": scene.goal.side, "target": scene.goal.target},
            split=scene.split,
            seed=scene.seed,
            failed_on_purpose=failure,
            objects=tuple(asdict(o) for o in scene.objects),
            camera={"name": "head", "fov_deg": 60.0, "mount": "torso"},
            phases=tuple(phases),
            success_time=robot.judge.success_time,
            judged=robot.judge.failure or ("success" if robot.success() else "not reached"),
            contacts={"hand_contact": np.array(contacts, bool)},
            object_positions=np.round(np.array(objects, np.float64), 4),
        ),
        origin=Origin(robot=body.name),
    )


def disturbance(rng: np.random.Generator, amplitude: float, joints: int) -> Callable[[float], NDArray[np.float64]]:
    """A slow wandering of every joint about its target, smooth enough for the robot's limits."""
    frequency = rng.uniform(0.2, 0.7, (2, joints))  # [Hz]
    phase = rng.uniform(0.0, 2 * np.pi, (2, joints))
    size = amplitude * rng.uniform(0.3, 1.0, (2, joints))

    def at(time: float) -> NDArray[np.float64]:
        ramp = min(1.0, time / 0.5)
        return ramp * (size * np.sin(2 * np.pi * frequency * time + phase)).sum(axis=0)

    return at


class _Pictures:
    """Frames in memory."""

    def __init__(self, images: list[Image]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> Image:
        return self._images[index]
