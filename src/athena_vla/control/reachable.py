"""Which values a policy may choose from, before it chooses: inside the limits and reachable, as masks over its bins.

Knows joints, bins in radians and time; nothing of tokens or models. A policy that picks among these bins gives the
safety filter nothing to change, so safety costs no accuracy.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array, Embodiment


def reach(robot: Embodiment, q: Array, v: Array | None, seconds: float) -> tuple[Array, Array]:
    """Lowest and highest command [C] that each column can have after `seconds`, from position `q` and velocity `v`.

    Where the velocity is not known (None) it may be anything up to its limit. Full acceleration up to the velocity
    limit, clipped to the position limits: the exact reachable interval of a joint whose motion is bounded in velocity
    and acceleration, apart from the stop it must keep in hand near a limit.
    """
    ends = []
    columns = robot.command_columns
    fastest, hardest = columns.max_rate, columns.max_rate_derivative
    for sign, limit in ((-1.0, columns.lower), (1.0, columns.upper)):
        known = fastest if v is None else sign * v
        speed = np.clip(known, -fastest, fastest)
        ramp = np.minimum((fastest - speed) / hardest, seconds)  # [s] of acceleration
        travelled = speed * ramp + 0.5 * hardest * ramp**2 + fastest * (seconds - ramp)
        end = q + sign * travelled
        ends.append(np.maximum(end, limit) if sign < 0 else np.minimum(end, limit))
    return ends[0], ends[1]


def reachable_bins(
    robot: Embodiment, joints: NDArray[np.intp], bins: Array, q: Array, v: Array | None = None, *, seconds: float
) -> NDArray[np.bool_]:
    """Mask [D, B] of the bins that joint `joints[d]` of the robot can be at after `seconds`.

    `bins` [D, B] are the positions [rad] that the policy's tokens stand for, `q` and `v` [J] the present command and
    its velocity (anything up to its limit where absent). A joint none of whose bins is reachable keeps the one nearest
    to its interval, so that there is always a choice; the safety filter takes care of the rest.
    """
    low, high = reach(robot, q, v, seconds)
    low, high = low[joints][:, None], high[joints][:, None]
    mask = (bins >= low) & (bins <= high)
    outside = np.maximum(low - bins, bins - high)
    nearest = outside == outside.min(axis=1, keepdims=True)
    return np.where(mask.any(axis=1, keepdims=True), mask, nearest)
