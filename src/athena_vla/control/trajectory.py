"""A chunk as a smooth curve through time: what to command between its rows, and how to leave the curve before it.

Knows knots and slopes; nothing of limits, policies or clocks.
"""

from dataclasses import dataclass

import numpy as np

from athena_vla.embodiment import Array


@dataclass(frozen=True)
class Trajectory:
    """Cubic Hermite curve through knots; before the first and after the last knot it stands still."""

    times: Array  # [n] [s], increasing
    positions: Array  # [n, D] [rad]
    slopes: Array  # [n, D] [rad/s]

    @property
    def end(self) -> float:
        return float(self.times[-1])

    def sample(self, times: Array) -> Array:
        """Positions [m, D] at the times [m]."""
        if len(self.times) == 1:
            return np.repeat(self.positions, len(times), axis=0)
        inside = np.clip(times, self.times[0], self.times[-1])
        left = np.minimum(np.searchsorted(self.times, inside, side="right") - 1, len(self.times) - 2)
        width = (self.times[left + 1] - self.times[left])[:, None]
        x = (inside - self.times[left])[:, None] / width
        p0, p1 = self.positions[left], self.positions[left + 1]
        m0, m1 = self.slopes[left] * width, self.slopes[left + 1] * width
        square = x * x
        rise = square * (3.0 - 2.0 * x)
        curve = p0 + rise * (p1 - p0) + x * (1.0 - x) * ((1.0 - x) * m0 - x * m1)
        # Exactly on a knot the row itself comes out, bit for bit.
        return np.where(x <= 0.0, p0, np.where(x >= 1.0, p1, curve))


def rows_passed(times: Array, now: float, blend: float) -> int:
    """How many rows of a chunk that arrives at `now` are in the past or nearer than `blend` [s]."""
    return int(np.searchsorted(times, now + blend - 1e-9))


def through(times: Array, positions: Array, now: float, q: Array, v: Array, blend: float) -> Trajectory:
    """The curve that leaves the present command `(q, v)` at `now` with its velocity and joins the rows of a chunk.

    Rows earlier than `now + blend` [s] are in the past or too near to be reached smoothly and are dropped.
    """
    first = rows_passed(times, now, blend)
    if first == len(times):  # nothing left to do but come to rest at the last row
        knots, rows = np.array([now, now + max(blend, 1e-3)]), np.stack([q, positions[-1]])
    else:
        knots, rows = np.concatenate([[now], times[first:]]), np.concatenate([q[None], positions[first:]])
    slopes = monotone_slopes(knots, rows)
    slopes[0] = v
    return Trajectory(knots, rows, slopes)


def monotone_slopes(times: Array, positions: Array) -> Array:
    """Slopes [n, D] that never overshoot a row (harmonic mean of the neighbours, after Fritsch and Butland, 1984).

    Zero at both ends: a chunk that is not followed by another one comes to rest.
    """
    slopes = np.zeros_like(positions)
    width = np.diff(times)[:, None]
    rise = np.diff(positions, axis=0) / width
    before, after = rise[:-1], rise[1:]
    same = before * after > 0.0
    w0, w1 = 2.0 * width[1:] + width[:-1], width[1:] + 2.0 * width[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (w0 + w1) / (w0 / before + w1 / after)
    slopes[1:-1] = np.where(same, mean, 0.0)
    return slopes
