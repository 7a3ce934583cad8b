"""Joints and cameras of a robot, as data.

Knows nothing of the robot as a whole; each part says what is wrong with itself.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Owner = Literal["policy", "balance", "locked"]
Mode = Literal["absolute", "delta"]


@dataclass(frozen=True)
class Joint:
    """One actuated joint. Angles in [rad] (or [m] for a prismatic joint, see `unit`)."""

    name: str
    group: str
    lower: float  # [rad]
    upper: float  # [rad]
    max_velocity: float  # [rad/s]
    max_acceleration: float  # [rad/s^2]
    max_jerk: float  # [rad/s^3]
    default: float = 0.0  # [rad], the pose the robot rests in
    owner: Owner = "policy"
    mode: Mode = "absolute"
    unit: Literal["rad", "m"] = "rad"

    @property
    def problem(self) -> str:
        """What contradicts itself in the description; "" where nothing does."""
        numbers = (self.lower, self.upper, self.max_velocity, self.max_acceleration, self.max_jerk, self.default)
        if not all(math.isfinite(x) for x in numbers):
            return f"joint '{self.name}' has a limit that is not a finite number."
        if self.lower >= self.upper:
            return f"joint '{self.name}' has lower {self.lower} not below upper {self.upper}."
        if min(self.max_velocity, self.max_acceleration, self.max_jerk) <= 0:
            return f"joint '{self.name}' needs positive max_velocity, max_acceleration and max_jerk."
        if not self.lower <= self.default <= self.upper:
            return f"joint '{self.name}' rests at {self.default}, outside [{self.lower}, {self.upper}]."
        if self.owner not in get_args(Owner) or self.mode not in get_args(Mode):
            return f"joint '{self.name}' has owner '{self.owner}' / mode '{self.mode}'; owners are {get_args(Owner)}."
        return ""


@dataclass(frozen=True)
class Camera:
    """One camera stream in the order the model sees it."""

    name: str
    width: int  # [px]
    height: int  # [px]
    fps: float  # [Hz]
    fov_deg: float  # vertical field of view
    mount: str = ""  # body of the robot, or "world"

    @property
    def problem(self) -> str:
        """What contradicts itself in the description; "" where nothing does."""
        if min(self.width, self.height) <= 0 or not 0 < self.fov_deg < 180 or self.fps <= 0:
            return f"camera '{self.name}' needs a positive size and rate and a field of view in (0, 180) degrees."
        return ""
