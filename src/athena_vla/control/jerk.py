"""The jerk stage: commands with bounded change of acceleration that never give up a stop inside the limits.

Knows positions, velocities, accelerations and limits; nothing of clocks, faults or robots.

The set is defined by a witness instead of a formula. `brake` is one fixed law that brings a joint to rest in finitely
many steps while it respects jerk and acceleration: the exact braking bound of `limits`, one derivative higher
(velocity is brought to zero with bounded change of acceleration). A state is *certified* when the motion of that law
from it stays inside the velocity and position limits and ends at rest.

Theorem. From a certified state the filter always finds a next state that respects jerk and acceleration and is
certified again.
Proof. One step of `brake` leads to such a state: the motion that certifies the old state, less its first step,
certifies the new one. The filter takes another acceleration only when the state it leads to has been certified itself.
At reset, position is inside the limits and velocity and acceleration are zero, which certifies the start. QED.

Positions far from the limits are certified by a bound instead of a simulation: along the law the speed never exceeds
`s = |v| + a^2 / (2 J)` (plus one step), and the distance never exceeds `s` times the time to a stop.
"""

import numpy as np
from numpy.typing import NDArray

from athena_vla.control.limits import StoppableSet
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

FRACTIONS = np.linspace(1.0, 0.0, 16)[1:-1, None]  # tried between the wish and pure braking, boldest first
STEP_COST = 11e-6  # [s] of one step of the braking law for all candidates of 23 joints, measured
MOST_PERIODS = 0.25  # that the longest proof may take
LOOK = 4  # steps of the braking law between two looks at what of it is left
POSITION_TOLERANCE = 1e-11  # [rad] by which a certified stop may end outside, two orders below the promise


class JerkLimitedSet:
    """Chooses the next velocity of every joint under position, velocity, acceleration and jerk limits."""

    def __init__(self, inner: StoppableSet, jerk: Array) -> None:
        self._inner = inner
        self.dt, self.rate = float(inner.dt[0]), float(inner.rate[0])
        quantum = np.spacing(np.maximum(np.abs(inner.lower), np.abs(inner.upper))) * self.rate  # [rad/s]
        self.tolerance = quantum  # [rad/s] a wish met this closely is met exactly
        self.max_acceleration = inner.velocity_step * self.rate
        self.step = jerk * self.dt - 2.0 * quantum * self.rate  # [rad/s^2] change of acceleration per step
        if (self.step < 0.5 * jerk * self.dt).any():
            raise SafetyError(
                f"At {self.rate:g} Hz the jerk limit of joint {int(np.argmin(self.step))} is smaller than what 64-bit "
                "positions can express; lower the rate, raise the limit or switch the jerk stage off."
            )
        self._unit = self.step * self.dt  # [rad/s] velocity change of one acceleration step
        self._max_velocity = inner.max_velocity + 2.0 * quantum
        # Closing in on a target keeps some braking in reserve for the time the acceleration takes to turn around.
        self._closing_acceleration, self._closing_jerk = 0.6 * self.max_acceleration, 0.4 * jerk
        self._lower = inner.lower - POSITION_TOLERANCE
        self._upper = inner.upper + POSITION_TOLERANCE
        self._ramp = self.max_acceleration / self.step  # steps from no to full acceleration
        longest = inner.max_velocity / (self.max_acceleration * self.dt) + 4.0 * self._ramp
        self._horizon = int(np.ceil(longest.max())) + 16
        # To turn full acceleration around, and to find the law where it is known how it goes on.
        self._proof = int(np.ceil(2.5 * self._ramp.max())) + 4 * LOOK
        worst = self._proof * STEP_COST
        if worst > MOST_PERIODS * self.dt:
            raise SafetyError(
                f"At {self.rate:g} Hz joint {int(np.argmax(self._ramp))} takes {np.ceil(self._ramp.max()):.0f} "
                "commands from no to full acceleration with its jerk limit. The proof that it can stop takes up to "
                f"{1e3 * worst:.2g} ms, a quarter of a period is {1e3 * MOST_PERIODS * self.dt:.2g} ms: lower the "
                "rate, raise the limit or switch the jerk stage off."
            )
        self._whole = _Slice(self, np.arange(len(jerk)))

    def choose(self, q: Array, v: Array, a: Array, desired: Array) -> Array:
        """The next velocity, as close to the desired one as the certificate lets it be."""
        wish = (desired - v) * self.rate
        np.clip(wish, np.maximum(a - self.step, -self.max_acceleration), a + self.step, out=wish)
        np.minimum(wish, self.max_acceleration, out=wish)
        velocity = v + wish * self.dt
        certified = self._certain(q + velocity * self.dt, velocity, wish)
        if certified.all():
            return velocity
        near = np.flatnonzero(~certified)
        limits = _Slice(self, near)
        braking = limits.brake(v[near], a[near])
        candidates = braking + np.concatenate([[[1.0]], FRACTIONS]) * (wish[near] - braking)
        velocities = v[near] + candidates * self.dt
        accepted = limits.certify(q[near] + velocities * self.dt, velocities, candidates)
        first = np.argmax(accepted, axis=0)
        column = np.arange(len(near))
        velocity[near] = np.where(accepted.any(axis=0), velocities[first, column], v[near] + braking * self.dt)
        return velocity

    def brake(self, v: Array, a: Array) -> Array:
        """The acceleration of the braking law in every joint."""
        return self._whole.brake(v, a)

    def stopping_pose(self, q: Array, v: Array, a: Array) -> Array:
        """Where the braking law comes to rest, by running it."""
        for _ in range(self._horizon):
            if np.abs(v).max() <= 1e-9 and (np.abs(a) <= self.step).all():
                break
            a = self._whole.brake(v, a)
            v = v + a * self.dt
            q = q + v * self.dt
        return q

    def certify(self, q: Array, v: Array, a: Array) -> NDArray[np.bool_]:
        """Whether the braking law from each state comes to rest inside the limits, by running it."""
        return self._whole.certify(q, v, a)

    def approach(self, away: Array, v: Array, a: Array) -> Array:
        """The next velocity that closes in on a point `away` [rad] from rest relative to it, without running past it.

        Two nested laws: a speed that shrinks with the distance, and the braking law on the difference to that speed.
        Only a wish, like any target: what is safe is decided in `choose`.
        """
        distance, sign = np.abs(away), np.copysign(1.0, away)
        jerk, hard = self._closing_jerk, self._closing_acceleration
        corner = hard * hard / jerk  # [rad/s] above it the braking has a phase of constant deceleration
        root = np.sqrt(corner * corner + 8.0 * hard * distance)
        slow = np.cbrt(distance * distance * jerk)
        speed = np.where(slow <= corner, slow, 0.5 * (root - corner))
        slope = np.where(slow <= corner, np.cbrt(jerk / np.maximum(distance, 1e-12)) / 1.5, 2.0 * hard / root)
        along = -sign * np.minimum(np.abs(v), speed) * slope  # [rad/s^2] of the speed that shrinks with the distance
        along = np.clip(along, -hard, hard)
        law = along + self._whole.brake(v - sign * speed, a - along)
        # Near enough, the point is met in one step and the speed is gone in the next two.
        landing = (away * self.rate - v) * self.rate
        resting = -away * self.rate * self.rate
        meets = np.abs(landing - a) <= self.step
        # A column whose jerk limit is wider than its acceleration limit must be able to take the speed away as well.
        least = np.minimum(self.step, self.max_acceleration)
        meets &= (np.abs(resting - landing) <= self.step) & (np.abs(resting) <= least)
        return np.where(meets, away * self.rate, v + law * self.dt)

    def _certain(self, q: Array, v: Array, a: Array) -> NDArray[np.bool_]:
        """A cheap sufficient condition for `certify`, for joints far from their limits."""
        jerk = self.step * self.rate
        lean = np.abs(a)
        gained = lean * lean / (2.0 * jerk) + (lean + self.step) * self.dt
        growing = a * v > 0.0
        # Speeding up adds to the speed; slowing down can at most turn it around, and that is slower still.
        speed = np.where(growing, np.abs(v) + gained, np.maximum(np.abs(v), gained))
        ramp = self.max_acceleration / jerk
        stop = np.maximum(speed / self.max_acceleration + ramp, 2.0 * np.sqrt(speed / jerk))
        reach = speed * (np.where(growing, lean / jerk, 0.0) + 0.5 * stop + 4.0 * self.dt)
        inside = (q + reach <= self._upper) & (q - reach >= self._lower)
        return inside & (speed <= self._max_velocity)


class _Slice:
    """The law and its certificate for some of the joints."""

    def __init__(self, whole: JerkLimitedSet, joints: NDArray[np.intp]) -> None:
        self.dt, self.rate, self.proof = whole.dt, whole.rate, whole._proof
        self.step, self.unit = whole.step[joints], whole._unit[joints]
        self.per_room, self.half = 2.0 / self.unit, 0.5 * self.step
        self.max_acceleration, self.max_velocity = whole.max_acceleration[joints], whole._max_velocity[joints]
        self.ramp = whole._ramp[joints]
        self.lower, self.upper = whole._lower[joints], whole._upper[joints]

    def brake(self, v: Array, a: Array) -> Array:
        speed = np.abs(v)
        n = np.floor(np.sqrt(speed * self.per_room + 0.25) + 0.5)  # as in `limits`, one derivative higher
        wanted = np.minimum(speed / n * self.rate + (n - 1.0) * self.half, self.max_acceleration)
        return np.minimum(np.maximum(-np.copysign(wanted, v), a - self.step), a + self.step)

    def certify(self, q: Array, v: Array, a: Array) -> NDArray[np.bool_]:
        """Runs the law in units of one step of the acceleration: it then changes by at most 1, speeds by it, and so on.

        Two parts of the law are sums and need not be run. At full braking every step takes the same off the speed. A
        joint that can have the wished acceleration at once, and that wishes less than the full one, wishes exactly one
        less after every step: with `n` steps to go from the speed `x` it travels `(n - 1) (x / 2 - n (n + 1) / 12)`.
        """
        ramp, full = self.ramp, 0.5 * (self.ramp + 1.0) ** 2  # above it the law wishes more than the full acceleration
        u, b = v / self.unit, a / self.step
        way, speed = np.zeros_like(u), np.abs(u)
        lowest, highest, fastest = way.copy(), way.copy(), speed.copy()
        n, wish, change = np.empty_like(u), np.empty_like(u), np.empty_like(u)
        known = np.zeros(u.shape, dtype=bool)
        for k in range(self.proof):
            np.multiply(speed, 2.0, out=n)
            n += 0.25 + 1e-12  # never none to go
            np.rint(np.sqrt(n, out=n), out=n)
            np.divide(speed, n, out=wish)
            np.multiply(n, 0.5, out=change)
            change -= 0.5
            wish += change
            if k % LOOK == LOOK - 1 or k == self.proof - 1:
                known = (np.abs(np.copysign(wish, u) + b) <= 1.0 + 1e-9) & (wish <= ramp)
                if known.all() or k == self.proof - 1:
                    break
                u, way = self._fully_braked(u, b, way, speed, full)
                speed = np.abs(u)
                continue
            np.minimum(wish, ramp, out=wish)
            np.copysign(wish, u, out=change)
            change += b
            np.maximum(change, -1.0, out=change)
            np.minimum(change, 1.0, out=change)
            b = b - change
            u = u + b
            way = way + u
            np.minimum(lowest, way, out=lowest)
            np.maximum(highest, way, out=highest)
            np.abs(u, out=speed)
            np.maximum(fastest, speed, out=fastest)
        way = way + np.copysign((n - 1.0) * (0.5 * speed - n * (n + 1.0) / 12.0), u)
        lowest, highest = np.minimum(lowest, way), np.maximum(highest, way)
        room = self.unit * self.dt
        inside = (q + highest * room <= self.upper) & (q + lowest * room >= self.lower)
        return known & inside & (fastest * self.unit <= self.max_velocity)

    def _fully_braked(self, u: Array, b: Array, way: Array, speed: Array, full: Array) -> tuple[Array, Array]:
        """Speed and way at the end of full braking, for the joints that brake fully."""
        if not (speed > full).any():
            return u, way
        left = np.floor((speed - full) / self.ramp)
        left = np.where((left > 0.0) & (np.abs(b + np.copysign(self.ramp, u)) <= 1e-12), left, 0.0)
        less = np.copysign(self.ramp, u)
        return u - left * less, way + left * (u - 0.5 * (left + 1.0) * less)
