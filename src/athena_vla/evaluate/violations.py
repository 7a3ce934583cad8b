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
    """Number of (step, column) cells beyond each limit, and the worst use of each limit (1 is at the limit)."""

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
    """Of `commands` [steps, C] at `command_hz`, from rest at `start` [C]. Raises `EvaluationError`."""
    columns = robot.command_columns
    if commands.ndim != 2 or commands.shape[1] != len(columns) or start.shape != (len(columns),):
        raise EvaluationError(
            f"Commands of '{robot.name}' are [steps, {len(columns)}], not {list(commands.shape)} "
            f"from a start of {list(start.shape)}."
        )
    finite = np.isfinite(commands)
    q = np.concatenate([start[None], start[None], np.where(finite, commands, 0.0)]).astype(np.float64)
    velocity = np.diff(q, axis=0) * robot.command_hz
    acceleration = np.diff(velocity, axis=0) * robot.command_hz
    span = columns.span
    outside = (q[2:] < columns.lower - TOLERANCE * span) | (q[2:] > columns.upper + TOLERANCE * span)
    speed_use = np.abs(velocity[1:]) / columns.max_rate
    force_use = np.abs(acceleration) / columns.max_rate_derivative
    # A value that is no number is one violation, not four.
    return Violations(
        position=int((outside & finite).sum()),
        velocity=int(((speed_use > 1 + TOLERANCE) & finite).sum()),
        acceleration=int(((force_use > 1 + TOLERANCE) & finite).sum()),
        not_finite=int((~finite).sum()),
        worst_velocity=float(speed_use.max(initial=0.0)),
        worst_acceleration=float(force_use.max(initial=0.0)),
    )
