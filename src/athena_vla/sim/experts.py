"""Scripted demonstrators: for every task a smooth joint trajectory within the robot's velocity and acceleration limits.

They know the scene's true geometry, never the image. Knows nothing of files.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import atan2

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import UnknownName
from athena_vla.sim.kinematics import Kinematics
from athena_vla.sim.scene import OBJECTS_ON_TABLE, Goal, Scene, SceneObject, Side
from athena_vla.sim.world import World

Array = NDArray[np.float64]

REACH_TIME = 2.4  # [s], from rest to the goal
PUSH_TIME = 1.1  # [s]
STAY_TIME = 0.8  # [s], at the goal
TURN_TO_GOAL = 0.3  # of the goal's bearing
SHARE_OF_LIMITS = 0.7  # of velocity and acceleration that a demonstrator uses at most

_HAND = 0.035  # [m], radius
_WAIST = ("waist_yaw", "waist_pitch")
_FAILURES = ("stop early", "another object")


@dataclass(frozen=True)
class Move:
    """From one pose to the next in `duration`, optionally bending through a pose on the way."""

    name: str
    goal: Array  # [23] [rad]
    duration: float  # [s]
    via: Array | None = None  # [23] [rad], passed half way


@dataclass(frozen=True)
class Trajectory:
    """Joint targets as a function of time; stands still before and after."""

    start: Array  # [23] [rad]
    moves: tuple[Move, ...]

    @property
    def duration(self) -> float:
        return sum(m.duration for m in self.moves)  # [s]

    @property
    def phases(self) -> tuple[tuple[str, float, float], ...]:
        """(name, start, stop) of every move. [s]"""
        ends = np.cumsum([m.duration for m in self.moves])
        return tuple((m.name, float(end - m.duration), float(end)) for m, end in zip(self.moves, ends, strict=True))

    def at(self, time: float) -> Array:
        """Joint targets [23] [rad] at `time` [s]."""
        pose = self.start
        for move in self.moves:
            if time < move.duration:
                return _along(pose, move, max(time, 0.0) / move.duration)
            time -= move.duration
            pose = move.goal
        return pose.copy()

    def within(self, robot: Embodiment) -> "Trajectory":
        """The same path, slowed down until it keeps to the demonstrators' share of the robot's limits."""
        moves, pose = [], self.start
        for move in self.moves:
            path = np.stack([_along(pose, move, s) for s in np.linspace(0.0, 1.0, 201)])
            step = move.duration / 200
            fast = float((np.abs(np.gradient(path, step, axis=0)) / robot.max_velocity).max())
            curved = np.diff(path, 2, axis=0) / step**2
            hard = float((np.abs(curved) / robot.max_acceleration).max())
            slower = max(1.0, fast / SHARE_OF_LIMITS, (hard / SHARE_OF_LIMITS) ** 0.5)
            moves.append(replace(move, duration=move.duration * slower))
            pose = move.goal
        return Trajectory(self.start, tuple(moves))


class Expert:
    """Plans demonstrations in one world, which must be reset to the scene first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.robot = world.embodiment
        self.kinematics = Kinematics(world)

    def plan(self, scene: Scene) -> Trajectory:
        """A demonstration of the scene's goal from the robot's present pose. Raises `UnknownName`."""
        planner = _PLANS.get(scene.goal.family)
        if planner is None:
            raise UnknownName("task family", scene.goal.family, _PLANS)
        start = self.world.data.ctrl[self.world.ctrl_index].copy()
        moves = planner(self, scene.goal, None if scene.target is None else scene.target)
        stay = Move("stay", moves[-1].goal, STAY_TIME)
        return Trajectory(start, (*moves, stay)).within(self.robot)

    def plan_failure(self, scene: Scene, rng: np.random.Generator) -> tuple[Trajectory, str]:
        """A demonstration that fails on purpose, and how: it stops early, or goes to another object."""
        kind = _FAILURES[int(rng.integers(len(_FAILURES)))] if scene.goal.target is not None else _FAILURES[0]
        if kind == "another object":
            assert scene.goal.target is not None
            other = (scene.goal.target + 1 + int(rng.integers(OBJECTS_ON_TABLE - 1))) % OBJECTS_ON_TABLE
            return self.plan(replace(scene, goal=replace(scene.goal, target=other))), kind
        whole = self.plan(scene)
        share = float(rng.uniform(0.2, 0.45))
        first = whole.moves[0]
        stop = _along(whole.start, first, share)
        part = Move(first.name, stop, first.duration * 0.8)
        return Trajectory(whole.start, (part, Move("stay", stop, whole.duration - part.duration))), kind

    def pose(self, **angles: float) -> Array:
        """The default pose with some joints elsewhere. [rad]"""
        pose = self.robot.default.copy()
        pose[self.robot.index(angles)] = list(angles.values())
        return pose

    def reach(self, side: str, point: tuple[float, float, float]) -> Array:
        """The pose with a hand's centre at a world point."""
        arm = [f"{side}_{j}" for j in ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow")]
        target = self.kinematics.hand_at(side, np.array(point))
        # Turned a little towards the goal: the camera keeps seeing what the hand does.
        ready = self._ready(side)
        ready[self.robot.index(["waist_yaw"])] = TURN_TO_GOAL * atan2(point[1], point[0])
        return self.kinematics.solve((*arm, *_WAIST), [(5.0, target)], ready)

    def point(self, side: str, target: Array) -> Array:
        """The pose with a forearm pointing at a world point from a short distance."""
        arm = [f"{side}_{j}" for j in ("shoulder_pitch", "shoulder_roll", "shoulder_yaw", "elbow")]
        shoulder = np.array([0.0, 0.16 if side == "left" else -0.16, 1.13])
        near = target + 0.17 * (shoulder - target) / np.linalg.norm(shoulder - target)
        terms = [(4.0, self.kinematics.forearm_towards(side, target)), (1.0, self.kinematics.hand_at(side, near))]
        return self.kinematics.solve(arm, terms, self._ready(side))

    def look(self, target: Array) -> Array:
        """The pose with the head camera's axis through a world point."""
        return self.kinematics.solve(_WAIST, [(5.0, self.kinematics.camera_towards(target))], self.robot.default.copy())

    def _ready(self, side: str) -> Array:
        """The nominal pose of reaching: the arm half way out, so that the elbow's side is not a matter of chance."""
        return self.pose(**{f"{side}_shoulder_pitch": -0.2, f"{side}_elbow": 0.0})


def _along(start: Array, move: Move, share: float) -> Array:
    """From start to goal with a prompt start and a gentle landing; the bend through `via` fades in and out with it.

    Not minimum jerk: that one moves by a thousandth in the first control step, which a policy that decides from one
    image cannot tell from standing still, and so keeps standing still.
    """
    s = min(max(share, 0.0), 1.0)
    pose = start + (move.goal - start) * phase_share(s)
    if move.via is not None:
        half_way = start + (move.goal - start) * phase_share(0.5)
        pose = pose + (move.via - half_way) * 64.0 * (s * (1.0 - s)) ** 3
    return pose


def phase_share(s: float) -> float:
    """0 to 1 with velocity 12 s (1 - s)^2: acceleration is there at once, and gone before the end."""
    return s * s * (6.0 - 8.0 * s + 3.0 * s * s)


def phase_rate(s: float) -> float:
    """The derivative of `phase_share`."""
    return 12.0 * s * (1.0 - s) ** 2


def _side_of(item: SceneObject) -> Side:
    return "left" if item.y >= 0.0 else "right"


def _above(item: SceneObject, gap: float) -> tuple[float, float, float]:
    x, y, z = item.centre
    return (x, y, z + item.height / 2 + _HAND + gap)


def _touch(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    side = _side_of(item)
    x, y, z = _above(item, 0.10)
    final = expert.reach(side, _above(item, 0.004))
    return [Move("reach", final, REACH_TIME, via=expert.reach(side, (x - 0.05, y, z)))]


def _push(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    side = _side_of(item)
    x, y, _ = item.centre
    height = 0.76 + 0.055  # [m], low enough to meet every shape
    behind, beyond = x - 0.10, x + 0.05
    approach = expert.reach(side, (behind, y, height))
    via = expert.reach(side, (behind - 0.03, y, height + 0.10))
    return [
        Move("approach", approach, REACH_TIME - 0.2, via=via),
        Move("push", expert.reach(side, (beyond, y, height)), PUSH_TIME),
    ]


def _point(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    return [Move("point", expert.point(_side_of(item), np.array(item.centre)), REACH_TIME)]


def _look(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    return [Move("look", expert.look(np.array(item.centre)), REACH_TIME)]


def _hover(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    return [Move("hover", expert.reach(_side_of(item), _above(item, 0.11)), REACH_TIME)]


def _beside(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    x, y, z = item.centre
    final = expert.reach(_side_of(item), (x - 0.115, y, 0.76 + 0.07))
    via = expert.reach(_side_of(item), (x - 0.15, y, z + 0.14))
    return [Move("reach", final, REACH_TIME, via=via)]


def _orient(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    assert item is not None
    return [Move("turn", expert.pose(waist_yaw=atan2(item.y, item.x)), REACH_TIME)]


def _lift(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    s = goal.side
    return [
        Move("lift", expert.pose(**{f"{s}_hip_pitch": -0.9, f"{s}_knee": 1.5, f"{s}_ankle_pitch": -0.4}), REACH_TIME)
    ]


def _squat(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    bend = {f"{s}_{j}": a for s in ("left", "right") for j, a in (("hip_pitch", -0.7), ("knee", 1.4))}
    return [Move("squat", expert.pose(**bend, left_ankle_pitch=-0.7, right_ankle_pitch=-0.7), REACH_TIME)]


def _raise(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    s = goal.side
    return [Move("raise", expert.pose(**{f"{s}_shoulder_pitch": -2.6, f"{s}_elbow": 1.0}), REACH_TIME)]


def _stretch(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    s, out = goal.side, _outwards(goal.side)
    angles = {f"{s}_shoulder_roll": 1.2 * out, f"{s}_elbow": 1.2, f"{s}_shoulder_pitch": 0.0}
    return [Move("stretch", expert.pose(**angles), REACH_TIME)]


def _twist(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    return [Move("twist", expert.pose(waist_yaw=0.55 * _outwards(goal.side)), REACH_TIME)]


def _lean(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    return [Move("lean", expert.pose(waist_roll=-0.32 * _outwards(goal.side)), REACH_TIME)]


def _bow(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    return [Move("bow", expert.pose(waist_pitch=0.42), REACH_TIME)]


def _stride(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    s, out = goal.side, _outwards(goal.side)
    return [Move("stride", expert.pose(**{f"{s}_hip_roll": 0.38 * out}), REACH_TIME)]


def _wave(expert: Expert, goal: Goal, item: SceneObject | None) -> list[Move]:
    s = goal.side
    up = {f"{s}_shoulder_pitch": -0.9, f"{s}_elbow": -0.7}
    left, right = (expert.pose(**up, **{f"{s}_shoulder_yaw": a}) for a in (0.45, -0.45))
    return [Move("rise", left, 1.4), Move("wave", right, 0.6), Move("wave", left, 0.6), Move("wave", right, 0.6)]


def _outwards(side: Side) -> float:
    return 1.0 if side == "left" else -1.0


_PLANS: dict[str, Callable[[Expert, Goal, SceneObject | None], list[Move]]] = {
    "touch": _touch,
    "point": _point,
    "look": _look,
    "push": _push,
    "lift": _lift,
    "raise": _raise,
    "squat": _squat,
    "hover": _hover,
    "beside": _beside,
    "orient": _orient,
    "stretch": _stretch,
    "twist": _twist,
    "lean": _lean,
    "bow": _bow,
    "stride": _stride,
    "wave": _wave,
}
