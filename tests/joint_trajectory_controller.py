"""ros2_control's JointTrajectoryController, its documented rules told again: what it takes, refuses, plays and answers.

Written from the documentation and the messages of ros2_controllers for Humble and Jazzy; it shares no code with the
package and knows only fields of messages. Positions are joined by straight lines where points have no velocities.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SUCCESSFUL, INVALID_GOAL, INVALID_JOINTS, OLD_HEADER = 0, -1, -2, -3
PATH_TOLERANCE, GOAL_TOLERANCE = -4, -5


@dataclass
class Goal:
    """A FollowJointTrajectory goal as its client sees it."""

    accepted: bool
    error_code: int | None = None  # None while it runs
    error_string: str = ""
    canceled: bool = False


@dataclass
class JointTrajectoryController:
    """`release`: humble lets a trajectory end in motion by default, jazzy does not."""

    joints: list[str]
    start: np.ndarray  # [J] [rad]
    release: str = "humble"
    allow_partial_joints_goal: bool = False
    tolerance: float = 0.0  # [rad] between where it is and where it should be, of goals; 0: not judged
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allow_nonzero_velocity_at_trajectory_end = self.release == "humble"
        self.position = np.array(self.start, dtype=float)
        self._before: tuple[float, np.ndarray] | None = None  # when and where the trajectory was taken up
        self._message: Any = None
        self._begin = 0.0
        self._goal: Goal | None = None

    def objection(self, message: Any, now: float) -> str:
        names, points = list(message.joint_names), list(message.points)
        begin = seconds(message.header.stamp)
        if not names:
            return "Empty joint names on incoming trajectory."
        if not self.allow_partial_joints_goal and len(names) != len(self.joints):
            return "Joints on incoming trajectory don't match the controller joints."
        if not points:
            return "Empty trajectory received."
        if begin and begin + seconds(points[-1].time_from_start) < now:
            return "Received trajectory with non-zero start time that ends in the past."
        for name in names:
            if name not in self.joints:
                return f"Incoming joint {name} doesn't match the controller's joints."
        velocities = list(getattr(points[-1], "velocities", []))
        if not self.allow_nonzero_velocity_at_trajectory_end and any(abs(v) > 1e-9 for v in velocities):
            return "Velocity of last trajectory point is not zero."
        previous = None
        for i, point in enumerate(points):
            at = seconds(point.time_from_start)
            if previous is not None and at <= previous:
                return f"Time between points {i - 1} and {i} is not strictly increasing."
            previous = at
            if len(point.positions) != len(names):
                return f"Mismatch between joint_names size ({len(names)}) and positions ({len(point.positions)})."
        return ""

    def on_topic(self, message: Any, now: float) -> bool:
        """A message has arrived at the controller's time `now`."""
        why = self.objection(message, now)
        if why:
            self.refused.append(why)
            return False
        self._take(message, now)
        return True

    def on_goal(self, message: Any, now: float) -> Goal:
        why = self.objection(message, now)
        if why:
            self.refused.append(why)
            return Goal(False, INVALID_GOAL, why)
        if self._goal is not None and self._goal.error_code is None:
            self._goal.canceled, self._goal.error_code = True, INVALID_GOAL
            self._goal.error_string = "Current goal cancelled due to new incoming action."
        self._take(message, now)
        self._goal = Goal(True)
        return self._goal

    def _take(self, message: Any, now: float) -> None:
        self._before = now, self.position.copy()
        self._message, self._begin = message, seconds(message.header.stamp)

    def update(self, now: float, disturbance: np.ndarray | float = 0.0) -> np.ndarray:
        """One cycle: the position that goes to the drive. `disturbance` [rad] is how far the joints lag behind it."""
        if self._message is None or self._before is None:
            return self.position
        begin = self._begin or self._before[0]
        order = [self.joints.index(n) for n in self._message.joint_names]
        times = [self._before[0], *(begin + seconds(p.time_from_start) for p in self._message.points)]
        rows = [self._before[1]]
        for point in self._message.points:
            rows.append(rows[0].copy())
            rows[-1][order] = point.positions
        if begin + seconds(self._message.points[0].time_from_start) <= now:  # the way to the first point is over
            times, rows = times[1:], rows[1:]
        later = [i for i, t in enumerate(times) if t > now]
        if not later:
            self.position = rows[-1].copy()
        elif later[0] == 0:
            self.position = rows[0].copy()
        else:
            i = later[0]
            share = (now - times[i - 1]) / (times[i] - times[i - 1])
            self.position = rows[i - 1] + share * (rows[i] - rows[i - 1])
        self._judge(bool(later), float(np.abs(disturbance).max()))
        return self.position

    def _judge(self, running: bool, off: float) -> None:
        goal = self._goal
        if goal is None or goal.error_code is not None:
            return
        if self.tolerance and off > self.tolerance:
            goal.error_code = PATH_TOLERANCE if running else GOAL_TOLERANCE
            goal.error_string = (
                "Aborted due to path tolerance violation" if running else "Aborted due to goal tolerance"
            )
            self._before, self._message = None, None  # it holds where it is
        elif not running:
            goal.error_code = SUCCESSFUL


def seconds(stamp: Any) -> float:
    return stamp.sec + stamp.nanosec * 1e-9
