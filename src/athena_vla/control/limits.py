"""The set of joint commands from which a stop inside the limits exists, in exact discrete time.

Knows positions, velocities and limits as arrays; nothing of clocks, faults, robots or how often it is asked.

One step of length `dt` chooses the next velocity `v'` and moves to `q' = q + v' dt`. With the velocity step
`A = a_max dt`, braking as hard as allowed from velocity `v > 0` travels

    S(v) = dt * sum_{k=1..n} (v - k A),  n = floor(v / A),

so that the state `(q, v)` can stop below `upper` exactly when `q + S(v) <= upper`. The filter's set is

    Omega = { |v| <= v_max,  q + S(v) <= upper for v > 0,  q - S(-v) >= lower for v < 0,  lower <= q <= upper }.

Theorem. From every state of Omega the interval of velocities that respect acceleration, velocity and lead back
into Omega is not empty, and every choice in it stays inside all limits for ever.

Proof. The step to `v'` keeps the upper half of Omega exactly when `v' dt + S(v') <= upper - q`. In units of `A dt`
with `u = v' / A` and room `D`, the left side is `F(u) = max_n ((n + 1) u - n (n + 1) / 2)` over whole `n >= 0`,
increasing and piecewise linear, hence `v' <= w(D) = A min_n (D / (n + 1) + n / 2)`, the minimum at
`n = floor((sqrt(1 + 8 D) - 1) / 2)`. The lower half gives `v' >= -w(D')` with the room below. Four facts make the three
intervals [v - A, v + A], [-v_max, v_max] and [-w(D'), w(D)] meet pairwise, and intervals on a line that meet pairwise
share a point: (1) `w >= 0`, so 0 lies in the last two; (2) `v` lies in the first two; (3) `v - A <= w(D)`: for `v <= A`
by (1), else because `(v - A) dt + S(v - A) = S(v) <= upper - q`, that is, braking is always allowed; (4) the same
mirrored. Stopping means choosing `v - A` until it changes sign, then 0: each of these choices is allowed by (3). QED.

Omega is also the largest such set: outside it even the hardest braking leaves the limits.

Rounding. Positions are doubles, so a velocity is known to one quantum `ulp(q) * rate`. Limits used inside are tightened
by one quantum, so differences of the returned numbers respect the true limits; the braking curve is planned with an
acceleration a few quanta smaller still, so that rounding can never use up the braking that the theorem counts on.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import SafetyError

Array = NDArray[np.float64]
REASONS = ("acceleration", "braking", "velocity")
QUANTA_RESERVED = 4.0  # velocity quanta by which planned braking is weaker than permitted braking
ACCELERATION_TOLERANCE = 5e-10  # [rad/s^2] the most that an unchanged target may exceed a limit by


class StoppableSet:
    """Bounds on the next velocity for every joint; buffers are reused, so results are valid until the next call."""

    def __init__(self, lower: Array, upper: Array, velocity: Array, acceleration: Array, rate_hz: float) -> None:
        self.lower, self.upper = lower, upper
        self.rate = rate_hz
        self.dt = 1.0 / rate_hz
        quantum = np.spacing(np.maximum(np.abs(lower), np.abs(upper))) * rate_hz  # [rad/s]
        self.max_velocity = velocity - quantum
        self.velocity_step = acceleration * self.dt - quantum  # A
        planned = self.velocity_step - QUANTA_RESERVED * quantum
        if (planned < 0.5 * acceleration * self.dt).any() or (self.max_velocity < 0.5 * velocity).any():
            raise SafetyError(
                f"At {rate_hz:g} Hz the velocity and acceleration limits of joint {int(np.argmin(planned))} are "
                "smaller than what 64-bit positions can express; lower the rate or raise the limits."
            )
        # A target this close to the bound passes unchanged: recordings that run exactly at a limit are not touched.
        self.tolerance = np.minimum(2 * quantum, quantum + ACCELERATION_TOLERANCE * self.dt)
        self._half = 0.5 * planned
        self._per_room = 2.0 / (planned * self.dt)  # turns room [rad] into 2 D
        joints = len(lower)
        self._room, self._count = np.empty((3, joints)), np.empty((3, joints))  # up, down, to the target
        self._allowed = np.empty((2, joints))
        self._low, self._chosen, self._wish = np.empty(joints), np.empty(joints), np.empty(joints)
        self._steps, self._window = np.stack([-self.velocity_step, self.velocity_step]), np.empty((2, joints))
        self.reach = self._room[:2]  # braking bounds of the last `choose`
        # For `harmless`: S(v) <= v^2 / 2 a, so these three bounds, a hair inside the limits, are enough.
        self._middle = 0.5 * (lower + upper)
        self._per_square = 0.5 * self.dt / planned
        hair = 1.0 - 1e-9
        room = 0.5 * (upper - lower) * hair - 1e-12
        self._harmless = np.stack([self.max_velocity * hair, self.velocity_step * hair, room])
        self._probe, self._square = np.empty((3, joints)), np.empty(joints)
        self._inside = np.empty((3, joints), dtype=bool)

    def braking(self, q: Array) -> Array:
        """`[2, ...]`: the largest speed up, and down, from which the joint still stops inside the limits; [rad/s]."""
        room = np.stack([self.upper - q, q - self.lower])
        np.maximum(room, 0.0, out=room)
        return self._stoppable(room, np.empty_like(room))

    def _stoppable(self, room: Array, n: Array) -> Array:
        """In place: room [rad] to speed w(room) [rad/s]; `n` is a buffer of the same shape."""
        room *= self._per_room
        # n + 1 = floor((sqrt(1 + 8 D) + 1) / 2) = round(sqrt(2 D + 1/4)), half up; at a tie both neighbours give one w.
        np.add(room, 0.25 + 1e-15, out=n)
        np.sqrt(n, out=n)
        np.rint(n, out=n)
        # w = A (D / (n + 1) + n / 2)
        room /= n
        room += n
        room -= 1.0
        room *= self._half
        return room

    def harmless(self, q: Array, v: Array, target: Array, clipped: Array) -> bool:
        """Whether a target is admissible in every joint by bounds so simple that they cost a few microseconds.

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
        return bool(np.less_equal(probe, self._harmless, out=self._inside).all())

    def choose(self, q: Array, v: Array, desired: Array) -> Array:
        """The admissible next velocity closest to the desired one; a buffer of this object."""
        np.subtract(self.upper, q, out=self._room[0])
        np.subtract(q, self.lower, out=self._room[1])
        np.maximum(self.reach, 0.0, out=self.reach)
        self._stoppable(self.reach, self._count[:2])
        return self._nearest(v, desired)

    def pursue(self, q: Array, v: Array, target: Array, drift: Array) -> tuple[Array, Array]:
        """The same for a target [rad] that moves with the velocity `drift`, approached without running past it.

        Relative to the target the joint may be as fast as it can still stop at it; without this a jump of the target
        would be overshot by the whole braking distance. Returns the velocity and the wish it comes from.
        """
        room, wish, low = self._room, self._wish, self._low
        np.subtract(target, q, out=wish)
        np.multiply(drift, self.dt, out=low)
        np.subtract(self.upper, q, out=room[0])
        np.subtract(q, self.lower, out=room[1])
        np.subtract(wish, low, out=room[2])
        np.abs(room, out=room)  # a joint is never outside, but for the last bit
        wish *= self.rate
        self._stoppable(room, self._count)
        np.subtract(drift, room[2], out=low)
        np.maximum(wish, low, out=wish)
        np.add(drift, room[2], out=low)
        np.minimum(wish, low, out=wish)
        return self._nearest(v, wish), wish

    def _nearest(self, v: Array, desired: Array) -> Array:
        low, window, chosen = self._low, self._window, self._chosen
        np.minimum(self.reach, self.max_velocity, out=self._allowed)
        np.negative(self._allowed[1], out=low)
        np.maximum(desired, low, out=chosen)
        np.minimum(chosen, self._allowed[0], out=chosen)
        # Acceleration last: where rounding makes the intervals miss each other by a quantum, the motor's torque wins.
        np.add(v, self._steps, out=window)
        np.maximum(chosen, window[0], out=chosen)
        np.minimum(chosen, window[1], out=chosen)
        return chosen

    def reason(self, wish: Array, chosen: Array, v: Array, reach: Array) -> NDArray[np.intp]:
        """[n, J] index into `REASONS` of the limit that bound first; braking bounds are `[n, 2, J]`."""
        up = wish > chosen
        acceleration, braking = np.where(up, v, -v) + self.velocity_step, np.where(up, reach[:, 0], reach[:, 1])
        kinds = (braking < acceleration).astype(np.intp)
        kinds[self.max_velocity < np.minimum(acceleration, braking)] = 2
        return kinds

    def admissible_prefix(self, q: Array, v: Array, targets: Array) -> int:
        """How many leading rows of `targets` [n, J] can be executed unchanged from `(q, v)`, one row per step."""
        before = np.concatenate([q[None], targets[:-1]])
        velocity = (targets - before) * self.rate
        step = np.abs(np.diff(velocity, axis=0, prepend=v[None]))
        reach = self.braking(before)
        fits = step <= self.velocity_step + self.tolerance
        fits &= np.abs(velocity) <= self.max_velocity + self.tolerance
        fits &= velocity <= reach[0] + self.tolerance
        fits &= -velocity <= reach[1] + self.tolerance
        fits &= (targets >= self.lower) & (targets <= self.upper)
        rows = fits.all(axis=1)
        return len(rows) if rows.all() else int(np.argmin(rows))

    def stopping_pose(self, q: Array, v: Array) -> Array:
        """Where the robot comes to rest when it brakes as hard as permitted from `(q, v)`."""
        speed = np.abs(v) / self.velocity_step
        n = np.floor(speed)
        travelled = (n * speed - 0.5 * n * (n + 1)) * self.velocity_step * self.dt
        return q + np.sign(v) * travelled
