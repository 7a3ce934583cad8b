"""Which next velocity a column may take: what the two sets of safe states, by index and by time, have in common.

Knows columns (joints or channels) as arrays of limits; nothing of clocks, faults, robots or how often it is asked.
Buffers are reused, so results are valid until the next call. Constants are stored in the shape that they are used in:
on some twenty columns, numpy takes three times as long for a number or for one row against several.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array

REASONS = ("acceleration", "braking", "velocity")


class Bounds(ABC):
    """Bounds on the next velocity of every column, as intervals of which the set's theorem shows that they meet."""

    rate: Array  # [D] [Hz] steps per second, of the step that comes next
    dt: Array  # [D] [s] its length
    velocity_step: Array  # [D] [rad/s] the most that the velocity may change in it
    tolerance: Array  # [D] [rad/s] a wish met this closely is met exactly

    def __init__(self, lower: Array, upper: Array) -> None:
        self.lower, self.upper = lower, upper
        columns = len(lower)
        self._middle = 0.5 * (lower + upper)
        self._room = np.empty((3, columns))  # up, down, to the target
        self._allowed = np.empty((2, columns))
        self._low, self._chosen, self._wish = np.empty(columns), np.empty(columns), np.empty(columns)
        self._least, self._most = np.empty(columns), np.empty(columns)
        self.reach = self._room[:2]  # braking bounds of the last `choose`
        self._probe, self._square = np.empty((3, columns)), np.empty(columns)
        self._inside = np.empty((3, columns), dtype=bool)
        # To be filled by the set: greatest speed, the window of velocities around the last one, and for `harmless`
        # the three simple bounds and the factor that turns a squared velocity into a braking distance.
        self.max_velocity: Array
        self._fastest: Array  # the same twice
        self._harmless = np.empty((3, columns))
        self._per_square: Array

    @abstractmethod
    def _stoppable(self, room: Array) -> Array:
        """In place: room [rad] to the greatest speed [rad/s] of the next step after which a stop still fits into it."""

    @abstractmethod
    def stopping_pose(self, q: Array, v: Array) -> Array:
        """Where the columns come to rest when they brake as hard as permitted from `(q, v)`."""

    @abstractmethod
    def hardest(self, q: Array, v: Array) -> Array:
        """The next velocity of the hardest braking, which ends in `stopping_pose`."""

    def harmless(self, q: Array, v: Array, target: Array, clipped: Array) -> bool:
        """Whether a target is admissible in every column by bounds so simple that they cost a few microseconds.

        Sufficient, not necessary: what passes here would pass `choose` unchanged; NaN and infinities never do.
        """
        probe = self._probe
        speed, step, room = probe
        np.subtract(clipped, q, out=speed)  # not `target`: a huge one would overflow, and warn
        speed *= self.rate
        np.subtract(speed, v, out=step)
        np.subtract(target, self._middle, out=room)
        np.abs(probe, out=probe)
        np.multiply(speed, speed, out=self._square)
        self._square *= self._per_square
        room += self._square
        return np.count_nonzero(np.less_equal(probe, self._harmless, out=self._inside)) == self._inside.size

    def choose(self, q: Array, v: Array, desired: Array) -> Array:
        """The admissible next velocity closest to the desired one; a buffer of this object."""
        np.subtract(self.upper, q, out=self._room[0])
        np.subtract(q, self.lower, out=self._room[1])
        np.abs(self.reach, out=self.reach)  # a column is never outside, but for the last bit
        self._stoppable(self.reach)
        return self._nearest(v, desired)

    def pursue(self, q: Array, v: Array, target: Array, drift: Array) -> tuple[Array, Array]:
        """The same for a target [rad] that moves with the velocity `drift`, approached without running past it.

        Relative to the target the column may be as fast as it can still stop at it; without this a jump of the target
        would be overshot by the whole braking distance. Returns the velocity and the wish it comes from.
        """
        room, wish, low = self._room, self._wish, self._low
        np.subtract(target, q, out=wish)
        np.multiply(drift, self.dt, out=low)
        np.subtract(self.upper, q, out=room[0])
        np.subtract(q, self.lower, out=room[1])
        np.subtract(wish, low, out=room[2])
        np.abs(room, out=room)
        wish *= self.rate
        near = self._stoppable(room)[2]
        np.subtract(drift, near, out=low)
        np.maximum(wish, low, out=wish)
        near += drift
        np.minimum(wish, near, out=wish)
        return self._nearest(v, wish), wish

    def _nearest(self, v: Array, desired: Array) -> Array:
        low, chosen = self._low, self._chosen
        np.minimum(self.reach, self._fastest, out=self._allowed)
        np.negative(self._allowed[1], out=low)
        np.maximum(desired, low, out=chosen)
        np.minimum(chosen, self._allowed[0], out=chosen)
        # Acceleration last: where rounding makes the intervals miss each other by a quantum, the motor's torque wins.
        np.subtract(v, self.velocity_step, out=self._least)
        np.add(v, self.velocity_step, out=self._most)
        np.maximum(chosen, self._least, out=chosen)
        np.minimum(chosen, self._most, out=chosen)
        return chosen

    def slowed(self, q: Array, v: Array) -> Array:
        """The velocity itself, or as much of it as leaves a stop inside the limits from `q`."""
        up, down = (
            np.minimum(np.sqrt(np.maximum(r, 0.0) / self._per_square), self.max_velocity)
            for r in (self.upper - q, q - self.lower)
        )
        return np.minimum(np.maximum(v, -down), up)

    def reason(self, wish: Array, chosen: Array, v: Array, reach: Array, step: Array) -> NDArray[np.intp]:
        """[n, D] index into `REASONS` of the limit that bound first; braking bounds are `[n, 2, D]`."""
        up = wish > chosen
        acceleration, braking = np.where(up, v, -v) + step, np.where(up, reach[:, 0], reach[:, 1])
        kinds = (braking < acceleration).astype(np.intp)
        kinds[self.max_velocity < np.minimum(acceleration, braking)] = 2
        return kinds
