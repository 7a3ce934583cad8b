"""A robot whose base is lifted and turned: channels that are no joints, in the simulator.

The base height is a position, the yaw rate a velocity that adds up to a heading. Knows nothing of MuJoCo.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.sim.scene import Scene, Split
from athena_vla.sim.task_language import RAIL_FAMILIES
from athena_vla.sim.tasks import sample_scene, sample_task

HEIGHT, YAW_RATE = "base_height", "yaw_rate"


def on_rail(robot: Embodiment) -> bool:
    """Whether the robot's base is lifted and turned by commands."""
    return {HEIGHT, YAW_RATE} <= {c.name for c in robot.commanded_channels}


def scene_of(robot: Embodiment, seed: int, split: Split) -> Scene:
    """The scene of that number for a robot: of the tasks that need its channels, where it has them."""
    if not on_rail(robot):
        return sample_scene(seed, split)
    return sample_task(RAIL_FAMILIES[seed % len(RAIL_FAMILIES)], seed, split)


class Rail:
    """Where the base is told to be: a height, and the sum of the yaw rates."""

    def __init__(self, robot: Embodiment) -> None:
        names = robot.command_names
        self.height, self.rate = names.index(HEIGHT), names.index(YAW_RATE)
        self.start = robot.channel(HEIGHT).default  # [m]
        self.period = 1.0 / robot.command_hz
        self.heading = 0.0  # [rad]

    def reset(self) -> None:
        """Face forward."""
        self.heading = 0.0

    def step(self, command: NDArray[np.float64]) -> tuple[float, float]:
        """Height [m] and heading [rad] after one period of a command [C]."""
        self.heading += float(command[self.rate]) * self.period
        return float(command[self.height]), self.heading
