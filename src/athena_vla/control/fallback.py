"""What the robot does while there is nothing trustworthy to follow: hold, come to a stop, go to a safe pose.

Knows times, poses and velocities; the limits are the filter's business, which treats this policy like any
other caller.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from athena_vla.control.columns import Columns
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

Level = Literal["follow", "hold", "stop", "safe_pose"]
# No holding, no safe pose: joints that are not where they are told to be, an emergency stop, the end of a run.
STOP_AT_ONCE = ("tracking", "stopped", "heartbeat", "end")


@dataclass(frozen=True, kw_only=True)
class FallbackPolicy:
    """The levels, with times counted from the first faulty step; a good target leads back to following at once."""

    hold_s: float = 0.1
    """First keep going to the last good target: one lost message is no reason to stop. [s]"""
    braking: float = 0.5
    """Then decelerate to a stop with this fraction of the acceleration limits."""
    stop_within: float = 0.4
    """Or with more of them, where that is needed to stand still this long after the fault began. [s]"""
    safe_after_s: float = 2.0
    """After this long move to the safe pose, where one is given. [s]"""
    safe_pose: tuple[float, ...] | None = None
    """[rad] for every joint in the robot's order; None stays where it stopped."""
    safe_speed: float = 0.1
    """Fraction of the velocity limits on the way to the safe pose."""

    def __post_init__(self) -> None:
        if not (0 < self.braking <= 1 and 0 < self.safe_speed <= 1):
            raise SafetyError(
                f"The fallback policy's braking {self.braking} and safe_speed {self.safe_speed} must lie in (0, 1]."
            )
        if not (self.hold_s >= 0 and self.safe_after_s >= self.hold_s and self.stop_within > 0):
            raise SafetyError(
                f"The fallback policy's times must satisfy 0 <= {self.hold_s} <= {self.safe_after_s} s and "
                f"0 < {self.stop_within} s."
            )

    def pose_within(self, columns: Columns) -> Array | None:
        """The safe pose of a robot with these limits, channels at rest. Raises `SafetyError` where it does not fit."""
        if self.safe_pose is None:
            return None
        pose, joints = np.array(self.safe_pose, dtype=np.float64), columns.joints
        lower, upper = columns.lower[:joints], columns.upper[:joints]
        if pose.shape != lower.shape or not ((pose >= lower) & (pose <= upper)).all():
            raise SafetyError(f"The fallback policy's safe pose must be {joints} joint positions inside the limits.")
        return pose

    def level(self, fault: str, elapsed: float) -> Level:
        """The level to which a fault leads that has lasted `elapsed` [s]."""
        if fault in STOP_AT_ONCE:
            return "stop"
        late = elapsed - 1e-9  # the sum of many steps
        if late <= self.hold_s:
            return "hold"
        return "safe_pose" if self.safe_pose is not None and late > self.safe_after_s else "stop"

    def stopping(self, v: Array, velocity_step: Array, dt: float, elapsed: float) -> Array:
        """The next velocity of the damped stop, `elapsed` [s] after the fault began; a step lasts `dt` [s]."""
        speed = np.abs(v)
        remaining = max(self.hold_s + self.stop_within - elapsed, dt)
        less = np.maximum(self.braking * velocity_step, np.minimum(speed * (dt / remaining), velocity_step))
        return np.copysign(np.maximum(speed - less, 0.0), v)

    def approaching(self, q: Array, pose: Array, columns: Columns, rate_hz: float) -> Array:
        """The next velocity on the way to the safe pose; channels beside it come to rest."""
        away = np.zeros(len(q))
        away[: columns.joints] = pose - q[: columns.joints]
        speed = np.minimum(self.safe_speed * columns.max_velocity, np.abs(away) * rate_hz)
        # No faster than half the acceleration limit can stop at the pose itself.
        return np.copysign(np.minimum(speed, np.sqrt(columns.max_acceleration * np.abs(away))), away)
