"""Channels: what a robot is told or measures beside its joints, such as a height, a velocity or a latent token.

Knows nothing of the robot as a whole; a channel says what is wrong with itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from athena_vla.robot_parts import Owner

ChannelUnit = Literal["m", "m/s", "rad", "rad/s", "1", "m/s^2", "N", "N m"]
WhenNothing = Literal["hold", "zero", "default"]
Resample = Literal["interpolate", "hold", "mean"]
LimitsFrom = Literal["robot", "data"]
SPEEDS = ("m/s", "rad/s")  # units of channels whose value is a speed
LEAST_SPAN = 1e-3  # of a channel that takes its limits from data and never changed, in its unit or as a share of it


@dataclass(frozen=True)
class Channel:
    """One quantity that is no joint: a commanded height, velocity, gripper opening or latent token, or a measured one.

    Values are in `unit`; rates are in `unit` per second and its derivative in `unit` per second squared. An observed
    channel is part of the state, and nobody commands it unless an owner is named; any other one is commanded.
    """

    name: str
    unit: ChannelUnit
    lower: float = 0.0  # [unit]
    upper: float = 0.0  # [unit]
    max_rate: float = 0.0  # [unit/s], of a commanded channel
    max_rate_derivative: float = 0.0  # [unit/s^2], of a commanded channel
    default: float = 0.0  # [unit]
    when_nothing: WhenNothing = "hold"  # what it does while there is no command to trust
    owner: Owner | None = None  # who commands it; None: the policy, or nobody where it is observed
    observed: bool = False  # True where its present value is part of the state
    resample: Resample = "interpolate"  # how it is brought from the recorded rate to the control rate
    limits: LimitsFrom = "robot"  # data: limits are what the training data showed; they are no statement of safety

    @property
    def is_commanded(self) -> bool:
        return self.commander != "locked"

    @property
    def commander(self) -> Owner:
        """Who commands it; "locked" where nobody does."""
        if self.owner is None:
            return "locked" if self.observed else "policy"
        return self.owner

    @property
    def is_open(self) -> bool:
        """Whether its limits are still to be taken from data."""
        return self.limits == "data" and self.lower == self.upper

    @property
    def stop(self) -> float | None:
        """[unit] where it goes when there is nothing to trust; None: it stays where it is."""
        return {"hold": None, "zero": 0.0, "default": self.default}[self.when_nothing]

    @property
    def problem(self) -> str:
        """What contradicts itself in the description; "" where nothing does."""
        for key in ("lower", "upper", "max_rate", "max_rate_derivative", "default"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return f"channel '{self.name}' has {key} = {value!r}, which is not a finite number."
        for key, known in _WORDS.items():
            value = getattr(self, key)
            if value not in get_args(known) and not (key == "owner" and value is None):
                return f"channel '{self.name}' has {key} '{value}'; known are {', '.join(get_args(known))}."
        if not isinstance(self.observed, bool):
            return f"channel '{self.name}' has observed = {self.observed!r}, not true or false."
        if not self.observed and not self.is_commanded:
            return f"channel '{self.name}' is neither commanded nor observed, so that it is nothing."
        return "" if self.is_open else self._problem_of_limits()

    def _problem_of_limits(self) -> str:
        if self.lower == self.upper == 0.0:
            return f"channel '{self.name}' has no limits; it needs lower and upper in {self.unit}."
        if self.lower >= self.upper:
            return f"channel '{self.name}' has lower {self.lower} not below upper {self.upper}."
        if self.is_commanded and min(self.max_rate, self.max_rate_derivative) <= 0:
            return f"channel '{self.name}' is commanded: it needs a positive max_rate and max_rate_derivative."
        if not self.lower <= self.default <= self.upper:
            return f"channel '{self.name}' has the default {self.default}, outside [{self.lower}, {self.upper}]."
        if self.when_nothing == "zero" and not self.lower <= 0.0 <= self.upper:
            return f"channel '{self.name}' goes to zero when there is nothing to trust, but 0 is outside its limits."
        return ""


_WORDS = {"unit": ChannelUnit, "when_nothing": WhenNothing, "owner": Owner, "resample": Resample, "limits": LimitsFrom}


def problem_of_keys(raw: Mapping[str, Any]) -> str:
    """Which keys of a channel's description are missing or not known; "" where none is."""
    name = raw.get("name", "?")
    needed = ("name", "unit", *(() if raw.get("limits") == "data" else ("lower", "upper")))
    missing = [k for k in needed if k not in raw]
    if missing:
        return f"channel '{name}' has no {', no '.join(missing)}; it needs {', '.join(needed)}."
    known = [f.name for f in fields(Channel)]
    unknown = [k for k in raw if k not in known]
    if unknown:
        return f"channel '{name}' has unknown {', '.join(unknown)}; known are {', '.join(known)}."
    return ""


def limited(channel: Channel, low: float, high: float, rate: float, derivative: float) -> Channel:
    """A channel that takes its limits from data, with what the data showed.

    One that never changed gets a range around its value, and a default outside moves to the nearest limit.
    """
    least = LEAST_SPAN * max(1.0, abs(low))
    if high - low < least:
        low, high = low - least / 2, high + least / 2
    if not channel.is_commanded:
        rate = derivative = 0.0
    elif min(rate, derivative) <= 0.0:
        rate, derivative = high - low, high - low
    default = min(max(channel.default, low), high)
    return replace(channel, lower=low, upper=high, max_rate=rate, max_rate_derivative=derivative, default=default)
