"""Statistics that end where the robot does: one broken frame does not stretch a joint's range to where no joint goes.

The bins of an action tokeniser and the resolution of a head are shares of that range.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from athena_vla.dataset.normalize import LEAST_RANGE_SHARE, Normalizer
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.notes import Note
from athena_vla.robot_columns import RobotColumns

SLACK = 0.05  # of a column's range beyond its limits: targets may lead a joint that rests at its stop
MEANSTD_SLACK = 1.0  # four standard deviations reach beyond what was recorded

Array = NDArray[np.float64]


def within_limits(normalizer: Normalizer, robot: Embodiment) -> tuple[Normalizer, list[Note]]:
    """The normaliser with ranges that end at the limits plus slack, and a note for the columns that were cut.

    Changes of delta joints, and channels that take their limits from the data, keep what was recorded.
    """
    open_ended = set(robot.open_channels)
    free = np.array([d or n in open_ended for n, d in zip(normalizer.joint_names, normalizer.is_delta, strict=True)])
    slack = np.array([MEANSTD_SLACK if m == "meanstd" else SLACK for m in normalizer.modes])
    actions = _cut(normalizer.action_low, normalizer.action_high, robot.action_columns, slack, free)
    wide = np.full(len(normalizer.state_names), MEANSTD_SLACK if "meanstd" in normalizer.modes else SLACK)
    held = np.array([n in open_ended for n in normalizer.state_names], dtype=bool)
    states = _cut(normalizer.state_low, normalizer.state_high, robot.state_columns, wide, held)
    notes: list[Note] = []
    for what, columns, low, high, found in (
        ("actions", robot.action_columns, normalizer.action_low, normalizer.action_high, actions),
        ("states", robot.state_columns, normalizer.state_low, normalizer.state_high, states),
    ):
        cut = [i for i in range(len(columns)) if (low[i], high[i]) != (found[0][i], found[1][i])]
        if cut:
            each = ", ".join(
                f"{columns.names[i]} {low[i]:.3g}..{high[i]:.3g} "
                f"(limits {columns.lower[i]:.3g}..{columns.upper[i]:.3g})"
                for i in cut
            )
            said = f"statistics of {what} end at the limits, not at recorded values beyond them: {each}"
            notes.append(Note("limits.clipped", said, tuple(columns.names[i] for i in cut)))
    if not notes:
        return normalizer, []
    bounded = replace(
        normalizer, action_low=actions[0], action_high=actions[1], state_low=states[0], state_high=states[1]
    )
    return bounded, notes


def _cut(low: Array, high: Array, columns: RobotColumns, slack: Array, free: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Ranges within the limits; one that lies almost wholly beyond them stays: nothing of it would be left."""
    least, most = columns.lower - slack * columns.span, columns.upper + slack * columns.span
    inner_low, inner_high = np.maximum(low, least), np.minimum(high, most)
    keep = free | (inner_high - inner_low < LEAST_RANGE_SHARE * columns.span)
    return np.where(keep, low, inner_low), np.where(keep, high, inner_high)
