"""Limit violations counted from the commands that reached the robot; shares no code with the safety filter.

The filter says what it did; this says what came out. Differences are taken here, at the nominal motor rate, from rest.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import EvaluationError

TOLERANCE = 1e-6  # relative to each limit: far above rounding, far below anything that matters


@dataclass(frozen=True)
class Violations:
    """Number of (step, joint) cells beyond each limit, and the worst use of each limit (1 is at the limit)."""

    position: int
    velocity: int
    acceleration: int
    not_finite: int
    worst_velocity: float
    worst_acceleration: float

    @property
    def total(self) -> int:
        return self.position + self.velocity + self.acceleration + self.not_finite


def count_violations(commands: NDArray[np.floating], start: NDArray[np.floating], robot: Embodiment) -> Violations:
    """Of `commands` [steps, J] rad at `command_hz`, from rest at `start` [J] rad. Raises `EvaluationError`."""
    if commands.ndim != 2 or commands.shape[1] != len(robot.joints) or start.shape != (len(robot.joints),):
        raise EvaluationError(
            f"Commands of '{robot.name}' are [steps, {len(robot.joints)}], not {list(commands.shape)} "
            f"from a start of {list(start.shape)}."
        )
    finite = np.isfinite(commands)
    q = np.concatenate([start[None], start[None], np.where(finite, commands, 0.0)]).astype(np.float64)
    velocity = np.diff(q, axis=0) * robot.command_hz
    acceleration = np.diff(velocity, axis=0) * robot.command_hz
    span = robot.upper - robot.lower
    outside = (q[2:] < robot.lower - TOLERANCE * span) | (q[2:] > robot.upper + TOLERANCE * span)
    speed_use = np.abs(velocity[1:]) / robot.max_velocity
    force_use = np.abs(acceleration) / robot.max_acceleration
    # A value that is no number is one violation, not four.
    return Violations(
        position=int((outside & finite).sum()),
        velocity=int(((speed_use > 1 + TOLERANCE) & finite).sum()),
        acceleration=int(((force_use > 1 + TOLERANCE) & finite).sum()),
        not_finite=int((~finite).sum()),
        worst_velocity=float(speed_use.max(initial=0.0)),
        worst_acceleration=float(force_use.max(initial=0.0)),
    )
