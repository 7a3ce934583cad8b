"""One rule of time for every pair of rates: where the rows of each control step lie among the recorded ones.

An action column holds the target that is reached one recorded period after its row. The chunk row of step k is what
the robot should have reached one control period after the step, at any pair of rates; states and images are those of
the step itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Resample

SAME_RATE = 1e-6  # relative difference of two rates that are one
EDGE = 1e-9  # [rows] rounding of a product of rates
LEVELS = 8  # a column of no more different values than this, each held for a while, is a switch and no motion
HELD = 4  # rows that each value of such a column holds on average


@dataclass(frozen=True)
class Steps:
    """Places of control steps among recorded rows, in rows and fractions of rows."""

    state: NDArray[np.float64]  # [K] where the robot is at step k
    target: NDArray[np.float64]  # [K] the recorded command that is reached one control period later
    period: float  # [rows] one control period
    rule: str  # in words, for the record of a set


def control_steps(length: int, fps: float, control_hz: float) -> Steps:
    """The steps that lie wholly inside `length` rows recorded at `fps` [Hz]; nothing is extrapolated or repeated.

    Empty where the recording is shorter than one control period.
    """
    ratio = fps / control_hz
    if abs(ratio - 1.0) < SAME_RATE:
        steps = np.arange(length, dtype=np.float64)
        return Steps(steps, steps, 1.0, "identity")
    # Step k needs the state at row k * ratio and the command at row (k + 1) * ratio - 1.
    first = max(0, int(np.ceil(1.0 / ratio - 1.0 - EDGE)))
    last = int(np.floor(min((length - 1) / ratio, length / ratio - 1.0) + EDGE))
    k = np.arange(first, last + 1, dtype=np.float64)
    state = np.clip(k * ratio, 0.0, max(length - 1, 0))
    target = np.clip((k + 1.0) * ratio - 1.0, 0.0, max(length - 1, 0))
    return Steps(state, target, ratio, "linear interpolation of numbers, switches and images held")


def is_switch(column: NDArray[Any]) -> bool:
    """True for a column that jumps among few values, such as an open and shut gripper: it has no values between."""
    if column.dtype.kind in "bui":
        return True
    levels = len(np.unique(column))
    return levels <= LEVELS and levels * HELD <= len(column)


def columns_at(rows: NDArray[Any], places: NDArray[np.float64]) -> NDArray[Any]:
    """Rows `[T, D]` at fractional places `[K]`: motion is interpolated, each switch keeps its last value."""
    low = np.floor(places + EDGE).astype(np.intp)
    weight = np.clip(places - low, 0.0, 1.0)
    weight[weight < EDGE] = 0.0
    if not weight.any():
        return rows[low]
    values = interpolated(rows, places)
    for column in range(rows.shape[1]):
        if is_switch(rows[:, column]):
            values[:, column] = rows[low, column]
    return values


def interpolated(rows: NDArray[Any], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation of rows `[T, ...]` at places `[K]` in `[0, T - 1]`."""
    exact = np.asarray(rows, np.float64)
    low = np.floor(places + EDGE).astype(np.intp)
    high = np.minimum(low + 1, len(rows) - 1)
    weight = np.clip(places - low, 0.0, 1.0).reshape(-1, *[1] * (exact.ndim - 1))
    return exact[low] * (1.0 - weight) + exact[high] * weight


def resampled(values: NDArray[Any], places: NDArray[np.float64], period: float, how: Resample) -> NDArray[np.float64]:
    """A channel's recorded values `[T]` at places `[K]`, as its description asks.

    `mean` is that of the rows within one control period that ends at the place: what a rate or a torque amounts to.
    """
    exact = np.asarray(values, np.float64)
    if how == "interpolate":
        return interpolated(exact, places)
    if how == "hold":
        return exact[np.floor(places + EDGE).astype(np.intp)]
    # The integral of the piecewise constant signal over the period, over its length.
    total = np.concatenate([[0.0], np.cumsum(exact)])
    stop = np.minimum(places + 1.0, len(exact))
    start = np.maximum(stop - period, 0.0)
    grid = np.arange(len(total), dtype=np.float64)
    return (np.interp(stop, grid, total) - np.interp(start, grid, total)) / np.maximum(stop - start, EDGE)
