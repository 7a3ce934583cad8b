"""The simulator's own demonstrator as a teleoperator: it takes over after a while and does what the policy should do.

Knows the scene's true geometry, never the image.
"""

import math

from athena_vla.control.runtime import Robot
from athena_vla.control.teleoperator import Source, Wish
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError
from athena_vla.sim.experts import Expert, Trajectory
from athena_vla.sim.robot import SimRobot


class ScriptedTeleoperator:
    """Takes over `after` [s] unless the goal is reached, and hands back when its motion is over, or at `until` [s].

    Raises `SafetyError` for a robot that is not the embedded simulator's, or one on a rail.
    """

    source: Source = "script"

    def __init__(self, robot: Robot, after: str = "2", until: str = "inf") -> None:
        if not isinstance(robot, SimRobot) or robot.world.rail is not None:
            raise SafetyError("The teleoperator 'script' knows the scenes of the simulated athena; use --robot sim.")
        self._robot, self._after, self._until = robot, float(after), float(until)
        if not (0 <= self._after < self._until) or math.isinf(self._after):
            raise SafetyError(
                f"The script takes over after a time of at least 0 s and before it ends: {after}, {until}."
            )
        self._plan: Trajectory | None = None
        self._begun = 0.0  # [s]

    def read(self, command: Array, time: float, /) -> Wish:
        if time < self._after or time >= self._until:
            return Wish(False)
        if self._plan is None:
            if self._robot.success():
                return Wish(False)
            self._plan, self._begun = Expert(self._robot.world).plan(self._robot.scene), time
        passed = time - self._begun
        return Wish(False) if passed > self._plan.duration else Wish(True, self._plan.at(passed))
