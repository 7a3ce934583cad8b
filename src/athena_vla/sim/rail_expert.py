"""The demonstrator of a robot on a rail: turns the base to an object and lowers it, by a height and a yaw rate.

Knows the scene's true geometry, never the image.
"""

from dataclasses import dataclass, replace
from math import atan2

import numpy as np
from numpy.typing import NDArray

from athena_vla.sim.experts import REACH_TIME, STAY_TIME, phase_rate, phase_share
from athena_vla.sim.scene import OBJECTS_ON_TABLE, Scene
from athena_vla.sim.world import World

DEPTH = 0.18  # [m] that the pelvis is lowered by


@dataclass(frozen=True)
class RailTrajectory:
    """Commands as a function of time: the joints stand still, the base turns and sinks, then both stay."""

    start: NDArray[np.float64]  # [C]
    height: int  # columns of the command
    rate: int
    turn: float  # [rad], to the left
    depth: float  # [m]
    moving: float = REACH_TIME  # [s]
    staying: float = STAY_TIME  # [s]
    share: float = 1.0  # of the motion that is made; less than 1 fails

    @property
    def duration(self) -> float:
        return self.moving + self.staying  # [s]

    @property
    def phases(self) -> tuple[tuple[str, float, float], ...]:
        """(name, start, stop) of every move. [s]"""
        return ("kneel", 0.0, self.moving), ("stay", self.moving, self.duration)

    def at(self, time: float) -> NDArray[np.float64]:
        """The command [C] at `time` [s]."""
        s = min(max(time, 0.0) / self.moving, 1.0)
        command = self.start.copy()
        command[self.height] -= self.share * self.depth * phase_share(s)
        command[self.rate] = self.share * self.turn * phase_rate(s) / self.moving
        return command


class RailExpert:
    """Plans demonstrations in one world with a rail, which must be reset to the scene first."""

    def __init__(self, world: World) -> None:
        self.world = world

    def plan(self, scene: Scene) -> RailTrajectory:
        """Face the scene's object and kneel, from the present pose."""
        rail, target = self.world.rail, scene.target
        assert rail is not None, "this robot has no rail"
        assert target is not None, "the task is about an object"
        joints = self.world.data.ctrl[self.world.ctrl_index]
        start = np.concatenate([joints, np.zeros(2)])
        start[rail.height] = rail.start
        return RailTrajectory(start, rail.height, rail.rate, atan2(target.y, target.x), DEPTH)

    def plan_failure(self, scene: Scene, rng: np.random.Generator) -> tuple[RailTrajectory, str]:
        """A demonstration that fails on purpose, and how: it stops early, or faces another object."""
        if rng.random() < 0.5:
            return replace(self.plan(scene), share=float(rng.uniform(0.2, 0.45))), "stop early"
        assert scene.goal.target is not None
        other = (scene.goal.target + 1 + int(rng.integers(OBJECTS_ON_TABLE - 1))) % OBJECTS_ON_TABLE
        return self.plan(replace(scene, goal=replace(scene.goal, target=other))), "another object"
