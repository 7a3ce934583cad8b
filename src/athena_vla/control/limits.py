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

from athena_vla.control.bounds import Bounds
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

QUANTA_RESERVED = 4.0  # velocity quanta by which planned braking is weaker than permitted braking
ACCELERATION_TOLERANCE = 5e-10  # [rad/s^2] the most that an unchanged target may exceed a limit by


class StoppableSet(Bounds):
    """The set by index: every step takes one nominal period."""

    def __init__(self, lower: Array, upper: Array, velocity: Array, acceleration: Array, rate_hz: float) -> None:
        super().__init__(lower, upper)
        columns = len(lower)
        self.rate, self.dt = np.full(columns, rate_hz), np.full(columns, 1.0 / rate_hz)
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
        self._fastest = np.tile(self.max_velocity, (2, 1))
        self._half = 0.5 * planned
        self._per_room = 2.0 / (planned * self.dt)  # turns room [rad] into 2 D
        self._count = np.empty((3, columns))
        # The same for three rows at once; a number more than 1/4, for rounding.
        rows = (np.full(columns, 0.25 + 1e-15), np.ones(columns), self._half, self._per_room)
        self._quarters, self._ones, self._halves, self._per_rooms = (np.tile(r, (3, 1)) for r in rows)
        # For `harmless`: S(v) <= v^2 / 2 a, so these three bounds, a hair inside the limits, are enough.
        self._per_square = 0.5 * self.dt / planned
        hair = 1.0 - 1e-9
        self._harmless[:] = self.max_velocity * hair, self.velocity_step * hair, 0.5 * (upper - lower) * hair - 1e-12

    def braking(self, q: Array) -> Array:
        """`[2, ...]`: the largest speed up, and down, from which the joint still stops inside the limits; [rad/s]."""
        room = np.stack([self.upper - q, q - self.lower])
        np.maximum(room, 0.0, out=room)
        room *= self._per_room
        n = np.rint(np.sqrt(room + (0.25 + 1e-15)))
        return (room / n + n - 1.0) * self._half

    def _stoppable(self, room: Array) -> Array:
        rows = len(room)
        n = self._count[:rows]
        room *= self._per_rooms[:rows]
        # n + 1 = floor((sqrt(1 + 8 D) + 1) / 2) = round(sqrt(2 D + 1/4)), half up; at a tie both neighbours give one w.
        np.add(room, self._quarters[:rows], out=n)
        np.sqrt(n, out=n)
        np.rint(n, out=n)
        # w = A (D / (n + 1) + n / 2)
        room /= n
        room += n
        room -= self._ones[:rows]
        room *= self._halves[:rows]
        return room

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

    def hardest(self, q: Array, v: Array) -> Array:
        return self.choose(q, v, np.zeros(len(q)))
