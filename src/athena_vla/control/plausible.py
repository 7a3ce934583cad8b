"""Is a measured state one that this robot can have? Beyond its limits it is an error of units, wiring or calibration.

Knows a robot and numbers; used where states arrive: in the control loop and in the policy server.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import InvalidObservation

SHARE = 0.05  # of a joint's range, beyond its limits
TURN = 2.0 * np.pi  # [rad] smaller numbers are radians and metres, or nothing gives them away
ANGLE, LENGTH = 0.1, 0.01  # [rad], [m] more: what a joint's zero may be off by


def tolerance(robot: Embodiment) -> Array:
    """[J] how far beyond its limits a measured joint may be; rad, or m for a prismatic one."""
    offset = np.array([ANGLE if j.unit == "rad" else LENGTH for j in robot.joints])
    return offset + SHARE * (robot.upper - robot.lower)


def implausible(robot: Embodiment, state: NDArray[np.floating]) -> str:
    """What is wrong with a measured state [S], by joint and likely unit; "" where nothing is.

    Joints alone are judged: a measured velocity or force may go beyond what anybody would command.
    """
    q = np.asarray(state, dtype=np.float64)[: len(robot.joints)]
    beyond = np.maximum(robot.lower - q, q - robot.upper)
    far = ~(beyond <= tolerance(robot))  # NaN is far
    if not far.any():
        return ""
    order = np.argsort(-np.nan_to_num(beyond, nan=np.inf))[: min(3, int(far.sum()))]
    worst = [
        f"{j.name} {q[i]:.4g} (limits {j.lower:.4g} to {j.upper:.4g} {j.unit})"
        for i, j in ((i, robot.joints[i]) for i in order)
    ]
    others = f" and {int(far.sum()) - 3} others" if far.sum() > 3 else ""
    return (
        f"The state of '{robot.name}' is beyond what its joints can reach: {', '.join(worst)}{others}. "
        f"{_likely(robot, q)}"
    )


def require_plausible(robot: Embodiment, state: NDArray[np.floating]) -> None:
    """Raises `InvalidObservation` for a state that the robot cannot have."""
    problem = implausible(robot, state)
    if problem:
        raise InvalidObservation(problem)


def _likely(robot: Embodiment, q: Array) -> str:
    """Which other unit would make the state a possible one."""
    if not np.isfinite(q).all() or np.abs(q).max() > 1e6:
        return "No unit makes sense of these numbers: look at the driver."
    if np.abs(q).max() <= TURN:
        return "Check calibration, joint order and the limits in the robot's description."
    span = robot.upper - robot.lower
    angles = np.array([j.unit == "rad" for j in robot.joints])
    units = {
        "degrees": np.where(angles, np.radians(q), q),
        "millimetres": np.where(angles, q, 0.001 * q),
        "degrees and millimetres": np.where(angles, np.radians(q), 0.001 * q),
        "percent of the range": robot.lower + 0.01 * q * span,
        "percent from -100 to 100": robot.lower + 0.005 * (q + 100.0) * span,
        "encoder ticks (4096 a turn)": (q - 2048.0) * (2.0 * np.pi / 4096.0),
    }
    edge = tolerance(robot)
    for unit, turned in units.items():
        if ((turned >= robot.lower - edge) & (turned <= robot.upper + edge)).all():
            return f"In {unit} it would be possible: convert it to radians and metres before it is sent."
    return "Check units, calibration and joint order."
