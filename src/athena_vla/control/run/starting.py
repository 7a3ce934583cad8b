"""How a run begins: where the robot is, whether it may start there, and how it comes inside its limits if not.

Knows a robot's limits and one measured state; nothing of chunks or actors.
"""

from dataclasses import replace

import numpy as np

from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

RAMP_SPEED = 0.1  # of the velocity limits, on the way into the position limits


def outside(guard: SafetyFilter, state: Array) -> Array:
    """[C] [rad] by which a pose lies outside the filter's limits, where one command from rest could not bring it in."""
    columns = guard.columns
    beyond = np.maximum(columns.lower - state, state - columns.upper)
    return np.where(beyond > columns.max_acceleration / guard.rate_hz**2, beyond, 0.0)


def refuse_outside(guard: SafetyFilter, state: Array) -> None:
    """Raises `SafetyError` for a start outside the limits, which the first command would have to jump over."""
    beyond = outside(guard, state)
    if beyond.any():
        body = guard.embodiment
        where = ", ".join(
            f"{body.command_names[j]} by {beyond[j]:.3g} {body.command_columns.units[j]}" for j in beyond.nonzero()[0]
        )
        raise SafetyError(
            f"'{body.name}' stands outside its limits: {where}. Move it inside by hand, correct the limits or the "
            "calibration, or let the runtime move it in slowly (RuntimeConfig.ramp_in, --ramp-in)."
        )


def ramp_filter(guard: SafetyFilter, state: Array) -> SafetyFilter:
    """A filter for the way inside: the robot's limits, widened to where it stands, at a tenth of the speed."""
    body = guard.embodiment
    columns = guard.columns
    joints = tuple(
        replace(j, lower=min(float(low), float(q)), upper=max(float(high), float(q)), default=float(q))
        for j, low, high, q in zip(body.joints, columns.lower, columns.upper, state, strict=False)
    )
    place = {name: i for i, name in enumerate(columns.names)}
    channels = tuple(
        replace(c, lower=min(c.lower, float(state[i])), upper=max(c.upper, float(state[i])))
        if (i := place.get(c.name)) is not None
        else c
        for c in body.channels
    )
    fallback = FallbackPolicy(hold_s=0.0, braking=1.0)
    wide = replace(body, joints=joints, channels=channels)
    return SafetyFilter(wide, speed=RAMP_SPEED, fallback=fallback, max_tracking_error=None)
