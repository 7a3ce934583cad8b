"""The scripted corrector: it watches a policy in the simulator, takes over where it fails, and finishes the task.

Knows the judge of the scene, never the image. The motion starts in the state that the policy had reached.
"""

from typing import Literal

from athena_vla.control.teleoperator import Source, Wish
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError
from athena_vla.sim.experts import Expert, Trajectory
from athena_vla.sim.robot import TIME_LIMIT, SimRobot
from athena_vla.sim.success import HOLD_TIME

Why = Literal["", "another object", "no progress", "time over"]
PATIENCE = 2.0  # [s] without progress
STEP = {"m": 0.01, "deg": 1.0}  # the least that counts as progress
WRONG = HOLD_TIME / 2  # [s] at another object: half of what would end the episode


class SceneCorrector:
    """Takes over at another object, without progress for `PATIENCE`, or when the time is over; then plays to the end.

    Progress is what the judge measures: the least that was lacking to the goal until now. Raises `SafetyError` for a
    robot on a rail, whose scenes have another demonstrator.
    """

    source: Source = "script"

    def __init__(self, robot: SimRobot) -> None:
        if robot.world.rail is not None:
            raise SafetyError("The scripted corrector knows the scenes of 'athena', not those of a robot on a rail.")
        self._robot = robot
        self._plan: Trajectory | None = None
        self._begun = 0.0  # [s]
        self._best: float | None = None  # lacking to the goal
        self._since = 0.0  # [s] when that was reached
        self.why: Why = ""
        self.over = False  # the motion has ended

    def read(self, command: Array, time: float, /) -> Wish:
        if self._plan is None:
            self.why = self.reason(time)
            if not self.why:
                return Wish(False)
            self._plan, self._begun = Expert(self._robot.world).plan(self._robot.scene), time
        passed = time - self._begun
        if passed > self._plan.duration:
            self.over = True
            return Wish(False)
        return Wish(True, self._plan.at(passed))

    def reason(self, time: float) -> Why:
        """Why to take over at `time` [s]; "" as long as there is no reason."""
        judge = self._robot.judge
        if judge.success or judge.failure:
            return ""
        if judge.wrong_for >= WRONG - 1e-9:
            return "another object"
        lacking = judge.missed_by
        if lacking is not None and (self._best is None or self._best - lacking >= STEP[judge.unit]):
            self._best, self._since = lacking, time
        if time >= TIME_LIMIT:
            return "time over"
        return "no progress" if time - self._since >= PATIENCE - 1e-9 else ""
