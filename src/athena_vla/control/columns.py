"""What a filter needs to know of a command vector: a name and limits for every column, whatever the column stands for.

Joints are columns; a channel that is no joint (base height, planar velocity, gripper opening) is one as well, with its
range, its greatest rate and a limit on the change of that rate. Numbers arrive here, from networks and drivers too.
"""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import SafetyError


@dataclass(frozen=True)
class Columns:
    """Limits of D columns; units are each column's own (rad for joints) and seconds."""

    owner: str  # whose columns they are, for messages
    names: tuple[str, ...]
    lower: Array  # [D] [rad]
    upper: Array  # [D] [rad]
    max_velocity: Array  # [D] [rad/s]
    max_acceleration: Array  # [D] [rad/s^2]
    max_jerk: Array  # [D] [rad/s^3]
    rest: Array  # [D] [rad]

    @classmethod
    def of(cls, robot: Embodiment, *, margin: float = 0.0, speed: float = 1.0) -> "Columns":
        """The joints of a robot, `margin` [rad] inside their position limits, at a share of their speed."""
        lower, upper = robot.lower + margin, robot.upper - margin
        for name, low, high in zip(robot.joint_names, lower, upper, strict=True):
            if not low < high:
                raise SafetyError(f"The safety filter leaves no room for joint '{name}' with a margin of {margin} rad.")
        velocity = speed * robot.max_velocity
        acceleration, jerk = robot.max_acceleration, robot.max_jerk
        return cls(robot.name, robot.joint_names, lower, upper, velocity, acceleration, jerk, robot.default)

    def clipped(self, values: Array) -> Array:
        """The same inside the limits; NaN stays NaN."""
        return np.minimum(np.maximum(values, self.lower), self.upper)

    def vector(self, values: ArrayLike, what: str) -> Array:
        """[D] numbers, a copy. Raises `SafetyError` for anything else; NaN and infinities are numbers here."""
        vector = self.numbers(values, what)
        if vector.shape != self.lower.shape:
            raise SafetyError(
                f"{what} for '{self.owner}' has shape {list(vector.shape)}; the robot has "
                f"{len(self.names)} joints: {', '.join(self.names)}."
            )
        return vector

    def numbers(self, values: ArrayLike, what: str) -> Array:
        """Any array of real numbers, as a copy. Raises `SafetyError`: text, truth values, objects are not numbers."""
        if type(values) is np.ndarray and values.dtype == np.float64:
            return values.copy()
        try:
            given = np.asanyarray(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise SafetyError(f"{what} for '{self.owner}' must be numbers: {error}.") from error
        if given.dtype.kind not in "fiu" or np.ma.is_masked(given):
            kind = "masked values" if np.ma.is_masked(given) else f"values of type {given.dtype}"
            raise SafetyError(f"{what} for '{self.owner}' must be numbers, it has {kind}.")
        return np.array(given, dtype=np.float64)


def measured_pose(values: ArrayLike, columns: int) -> Array | None:
    """[D] finite numbers; None for anything that is not, whatever it is."""
    try:
        pose = np.asanyarray(values)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = pose.shape == (columns,) and pose.dtype.kind in "fiu" and not np.ma.is_masked(pose)
    return np.asarray(pose) if fits and np.isfinite(pose).all() else None


def seconds(value: object) -> float:
    """A time as a number; NaN for what is none."""
    if type(value) is float:
        return value
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.nan
