"""The watchdog: is there something to follow, is the clock alive, is the joint where it was told to be?

Knows clocks, ages and one measured pose per step; nothing of limits or of what happens to a fault.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from athena_vla.control.columns import measured_pose
from athena_vla.embodiment import Array


class Watchdog:
    """Names the gravest fault of each step's inputs; a clock that stands still or is old is one after `stale_after`."""

    def __init__(self, rate_hz: float, stale_after: float, max_tracking_error: float | None) -> None:
        self._dt = 1.0 / rate_hz
        self._stale_after = stale_after  # [s]
        self._stale_steps = max(1, round(stale_after * rate_hz))
        self._tracking = np.inf if max_tracking_error is None else float(max_tracking_error)  # [rad]
        self.reset(0.0)

    def reset(self, t: float) -> None:
        self._time = float(t) if math.isfinite(t) else 0.0
        self._still = 0  # steps since the clock last advanced
        self._fresh = True  # the next step sets the clock, whatever it shows

    def fault(self, missing: str, t: float, measured: ArrayLike | None, made_at: float | None, q: Array) -> str:
        """By name, "" where there is none; `missing` is why there is no target, `q` the last command."""
        clock = "" if self.clock_is_fine(t) else "clock"
        self._still = self._still + 1 if t == self._time else 0
        self._fresh = False
        if math.isfinite(t):
            self._time = t
        if measured is not None:
            pose = measured_pose(measured, len(q))
            # An unreadable measurement proves nothing about the joint, but neither can it be ignored.
            if pose is None:
                return "measurement"
            if np.abs(pose - q).max() > self._tracking:
                return "tracking"
        if missing:
            return missing
        if made_at is not None and not 0.0 <= t - made_at + self._dt <= self._stale_after + self._dt:
            return "stale"
        return clock

    def clock_is_fine(self, t: float) -> bool:
        if self._fresh:
            return math.isfinite(t)
        if t == self._time:
            return self._still < self._stale_steps
        return 0.0 < t - self._time <= self._stale_after

    def advanced(self, t: float) -> None:
        """Several steps without a fault went by, the last one at `t`."""
        self._time, self._still, self._fresh = t, 0, False
