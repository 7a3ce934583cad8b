"""A chunk as a smooth curve through time: what to command between its rows, and how to leave the curve before it.

Knows knots and slopes; nothing of limits, policies or clocks.
"""

from dataclasses import dataclass

import numpy as np

from athena_vla.embodiment import Array

# A cubic that begins or ends at rest runs 4/3 as fast in between as the straight line, one that does both 3/2. A curve
# may run this much faster than its chunk, in any joint; where it would, it is given more time.
FASTER = 1.15
MOST_TIME = 4.0  # times what the chunk gives, at most: a policy that asks for a jump gets it, inside the limits
MOST_TIME_AT_THE_END = 10.0  # the same for a last row alone, behind which nothing waits
HARDLY = 2e-3  # [rad] a way shorter than this takes no time
LITTLE = 1e-2  # [rad] nor one shorter than this, of a joint that the chunk hardly moves: an offset and not a motion


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


def through(
    times: Array,
    positions: Array,
    now: float,
    q: Array,
    v: Array,
    blend: float,
    *,
    resting: bool = False,
    acceleration: Array | None = None,
    approach: Array | None = None,
) -> Trajectory:
    """The curve that leaves the present command `(q, v)` at `now` with its velocity and joins the rows of a chunk.

    Rows earlier than `now + blend` [s] are in the past or too near to be reached smoothly and are dropped. Where the
    robot is `resting`, the rows come as much later as it takes to begin without running faster than the chunk does, and
    with no more than `acceleration` [D] rad/s^2; the last row comes later by what it takes to come to rest there.
    With `approach` [D] rad/s the rows come as much later as it takes to reach them no faster than that or than they go.
    """
    passed = rows_passed(times, now, blend)
    planned = _speeds(times, positions)
    if passed == len(times):  # nothing left to do but come to rest at the last row
        knots, rows = np.array([now, now + max(blend, 1e-3)]), np.stack([q, positions[-1]])
    else:
        knots, rows = np.concatenate([[now], times[passed:]]), np.concatenate([q[None], positions[passed:]])
    knots = knots.copy()
    limit = np.full(len(q), np.inf) if acceleration is None else acceleration
    alone = len(knots) == 2
    first, way = knots[1] - knots[0], np.abs(rows[1] - rows[0])
    later = _more(first, way, planned, limit, alone=alone) if resting or alone or approach is not None else 0.0
    if approach is not None:
        speed = np.maximum(planned, approach) / FASTER
        later = max(later, _more(first, way, speed, limit, alone=alone, most=np.inf))
    knots[1:] += later
    if len(knots) > 2:
        knots[-1] += _more(knots[-1] - knots[-2], np.abs(rows[-1] - rows[-2]), planned, limit, alone=False)
    slopes = monotone_slopes(knots, rows)
    slopes[0] = v
    return Trajectory(knots, rows, slopes)


def _speeds(times: Array, positions: Array) -> Array:
    """[D] the greatest speed between two rows of a chunk; [rad/s]."""
    if len(times) < 2:
        return np.zeros(positions.shape[1])
    return np.abs(np.diff(positions, axis=0) / np.diff(times)[:, None]).max(axis=0)


def _more(
    width: float, way: Array, planned: Array, acceleration: Array, *, alone: bool, most: float | None = None
) -> float:
    """[s] by which a segment that begins or ends at rest, or (`alone`) does both, must be longer than `width`."""
    counts = (way > HARDLY) & (planned > 0.0) & ((way > LITTLE) | (3.0 * planned * width > way))
    if not counts.any():
        return 0.0
    peak, steepest, usual = (1.5, 6.0, MOST_TIME_AT_THE_END) if alone else (4.0 / 3.0, 4.0, MOST_TIME)
    slow = peak * way[counts] / (FASTER * planned[counts])  # [s] for the speed
    soft = np.sqrt(steepest * way[counts] / acceleration[counts])  # [s] for its change
    longest = (usual if most is None else most) * width
    return min(max(float(np.maximum(slow, soft).max()), width), longest) - width


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
