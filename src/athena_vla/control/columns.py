"""What a filter needs to know of a command vector: a name and limits for every column, whatever the column stands for.

Joints are columns; a channel that is no joint (base height, planar velocity, gripper opening) is one as well, with its
range, its greatest rate and a limit on the change of that rate. Numbers arrive here, from networks and drivers too.
"""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from athena_vla.channels import SPEEDS
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
    stopping: NDArray[np.intp]  # columns that have a value to go to when there is nothing to follow
    stop: Array  # [number of those] that value; every other column stays where it stops
    joints: int  # columns that are joints; they come first

    @classmethod
    def of(cls, robot: Embodiment, rate_hz: float, *, margin: float = 0.0, speed: float = 1.0) -> "Columns":
        """The joints of a robot, `margin` [rad] inside their position limits, then its commanded channels.

        `speed` is the share that joints and channels may use of their speed: of the rate, or of the value itself where
        that is a speed. A channel has no jerk limit: the one given here, at `rate_hz`, is never felt.
        Raises `SafetyError` where there is no room, or a channel's limits are still to be taken from data.
        """
        if robot.open_channels:
            raise SafetyError(
                f"Channels {', '.join(robot.open_channels)} of '{robot.name}' take their limits from training data; "
                "take the robot from a dataset or a bundle, which have them."
            )
        lower, upper = robot.lower + margin, robot.upper - margin
        for name, low, high in zip(robot.joint_names, lower, upper, strict=True):
            if not low < high:
                raise SafetyError(f"The safety filter leaves no room for joint '{name}' with a margin of {margin} rad.")
        channels, joints = robot.commanded_channels, len(robot.joints)
        share = [speed if c.unit in SPEEDS and c.lower <= 0.0 <= c.upper else 1.0 for c in channels]
        lower = np.concatenate([lower, [s * c.lower for s, c in zip(share, channels, strict=True)]])
        upper = np.concatenate([upper, [s * c.upper for s, c in zip(share, channels, strict=True)]])
        all_columns = robot.command_columns
        velocity = speed * all_columns.max_rate
        velocity[joints:] = [c.max_rate if c.unit in SPEEDS else speed * c.max_rate for c in channels]
        acceleration = all_columns.max_rate_derivative
        jerk = np.concatenate([robot.max_jerk, 2.0 * rate_hz * acceleration[joints:]])
        rest = np.minimum(np.maximum(all_columns.default, lower), upper) if channels else all_columns.default
        stops = [(joints + k, c.stop) for k, c in enumerate(channels) if c.stop is not None]
        places = np.array([k for k, _ in stops], dtype=np.intp)
        stop = np.minimum(np.maximum(np.array([x for _, x in stops], dtype=np.float64), lower[places]), upper[places])
        limits = (lower, upper, velocity, acceleration, jerk, rest)
        return cls(robot.name, robot.command_names, *limits, places, stop, joints)

    @property
    def has_channels(self) -> bool:
        return self.joints < len(self.names)

    def clipped(self, values: Array) -> Array:
        """The same inside the limits; NaN stays NaN."""
        return np.minimum(np.maximum(values, self.lower), self.upper)

    def vector(self, values: ArrayLike, what: str) -> Array:
        """[D] numbers, a copy. Raises `SafetyError` for anything else; NaN and infinities are numbers here."""
        vector = self.numbers(values, what)
        if vector.shape != self.lower.shape:
            raise SafetyError(
                f"{what} for '{self.owner}' has shape {list(vector.shape)}; the robot has "
                f"{len(self.names)} joints{self._lacking(vector.shape)}: {', '.join(self.names)}."
            )
        return vector

    def _lacking(self, shape: tuple[int, ...]) -> str:
        """With channels: that they count, and which columns a shorter vector lacks."""
        if len(shape) != 1 or not 0 < shape[0] < len(self.names):
            return " and channels" if self.has_channels else ""
        return f" and channels ({', '.join(self.names[shape[0] :])} are missing)" if self.has_channels else ""

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
