"""The set of commands from which a stop inside the limits exists, by time: for steps of any length, short or long.

Knows positions, velocities and limits as arrays; nothing of clocks, faults, robots or how often it is asked.

Commands `q_k` are given at stamps `s_k`. Between two of them lies the interval `h_k = s_k - s_{k-1}`, whose mean
velocity is `v_k = (q_k - q_{k-1}) / h_k`. By time means: for every sequence of positive intervals

    |v_k| <= v_max    and    |v_{k+1} - v_k| <= a_max (h_k + h_{k+1}) / 2,    lower <= q_k <= upper.

The first bounds the velocity between any two stamps, since that is a mean of the `v_k`; the second is the second
divided difference of the pairs (stamp, command). Motions with |q''| <= a_max have these properties at any stamps.

Let `w = v_k - a h_k / 2`: the velocity at the stamp `s_k` of a column that has braked since the middle of its interval.
Braking on means to follow the parabola that begins at `(q_k, w)` with deceleration `a`, and that stops
`max(w, 0)^2 / 2a` further on, whatever the lengths of the steps at which it is seen. The filter's set is

    Omega = { |v| <= v_max,  q + max(v - a h / 2, 0)^2 / 2a <= upper,  q - max(-v - a h / 2, 0)^2 / 2a >= lower }.

Theorem. From every state of Omega, and for every length `h'` of the next step, the interval of mean velocities that
respect velocity and acceleration and lead back into Omega is not empty.

Proof. With room `D = upper - q` the upper half of Omega is kept exactly when `v' <= f(D)`,

    f(D) = sqrt(2 a D) - a h' / 2  where D >= a h'^2 / 2,    f(D) = D / h'  else

(with `w' = v' - a h' / 2 >= 0` the condition `w'^2 / 2a + v' h' <= D` reads `(w' + a h')^2 <= 2 a D`; with `w' < 0` it
reads `v' h' <= D`). The lower half gives `v' >= -f(D')`. Intervals on a line that meet pairwise share a point, so four
facts are enough: (1) `f >= 0`, so 0 lies in the last two; (2) `v` lies in the window `v +- a (h + h') / 2` and in the
velocity limits; (3) `v - a (h + h') / 2 = w - a h' / 2 <= f(D)`: for `w <= 0` the left side is negative; for
`0 < w < a h'` and `D < a h'^2 / 2` it follows from `D >= w^2 / 2a` and `(w - a h')^2 >= 0`; in the other cases from
`sqrt(2 a D) >= w` or from `f(D) >= a h' / 2 >= w - a h' / 2`; (4) the same mirrored. QED.

A command that reaches the driver later than planned leaves the state in Omega too: `h` grows, `v` and `w` shrink.

Rounding. A velocity is known to one quantum `ulp(q) / h`. Limits used inside are tightened by the quanta of the
shortest step, and the braking curve is planned with an acceleration a little smaller still.
"""

import numpy as np

from athena_vla.control.bounds import Bounds
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

SHORTEST = 1.0 / 8.0  # of the nominal period: the shortest step that the promise is made for
QUANTA_RESERVED = 4.0  # acceleration quanta by which planned braking is weaker than permitted braking


class TimedSet(Bounds):
    """The set by time: `begin` says how long the next step is, `took` how long it was in the end.

    Limits are columns [D]; a channel without a limit on its acceleration is given one that reaches its greatest rate
    within one period.
    """

    def __init__(self, lower: Array, upper: Array, velocity: Array, acceleration: Array, rate_hz: float) -> None:
        super().__init__(lower, upper)
        self.nominal = 1.0 / rate_hz  # [s]
        self.shortest = SHORTEST * self.nominal  # [s]
        quantum = np.spacing(np.maximum(np.abs(lower), np.abs(upper))) / self.shortest  # [rad/s]
        self.max_velocity = velocity - quantum
        self._permitted = acceleration - 2.0 * quantum / self.shortest
        self._planned = self._permitted - QUANTA_RESERVED * quantum / self.shortest
        if (self._planned < 0.5 * acceleration).any() or (self.max_velocity < 0.5 * velocity).any():
            raise SafetyError(
                f"At {rate_hz:g} Hz the velocity and acceleration limits of column {int(np.argmin(self._planned))} are "
                "smaller than what 64-bit positions can express; lower the rate or raise the limits."
            )
        self.tolerance = 2.0 * quantum
        columns = len(lower)
        self._beyond, self._corners, self._halves = (np.empty((3, columns)) for _ in range(3))
        self.rate, self.dt, self.velocity_step = np.empty(columns), np.empty(columns), np.empty(columns)
        self._rates = np.empty((3, columns))
        self._fastest = np.tile(self.max_velocity, (2, 1))
        self._twice = 2.0 * self._planned
        self._twices = np.tile(self._twice, (3, 1))
        # For `harmless`: the stop after a step with mean velocity v is shorter than v^2 / 2a.
        self._per_square = 0.5 / self._planned
        hair = 1.0 - 1e-9
        self._window_per_second = self._permitted * hair
        self._harmless[0] = self.max_velocity * hair
        self._harmless[2] = 0.5 * (upper - lower) * hair - 1e-12
        self._before = self.nominal  # [s] length of the last step
        self._length = 0.0  # [s] of the step begun
        self.begin(self.nominal)

    def restart(self) -> None:
        """The columns stand still."""
        self._before = self.nominal

    def begin(self, seconds: float) -> None:
        """The next command is given this long after the last one."""
        if seconds != self._length:
            self._length = seconds
            self.dt.fill(seconds)
            self.rate.fill(1.0 / seconds)
            self._rates.fill(1.0 / seconds)
            self._halves[:] = self._planned * (0.5 * seconds)  # [rad/s]
            self._corners[:] = self._planned * (0.5 * seconds * seconds)  # [rad]
        middle = 0.5 * (self._before + seconds)  # [s] between the middles of the two intervals
        np.multiply(self._permitted, middle, out=self.velocity_step)
        np.multiply(self._window_per_second, middle, out=self._harmless[1])

    def took(self, seconds: float) -> None:
        """The step that `begin` announced is done, and it was this long."""
        self._before = seconds

    def _stoppable(self, room: Array) -> Array:
        rows = len(room)
        beyond = self._beyond[:rows]
        np.maximum(room, self._corners[:rows], out=beyond)
        room -= beyond  # at most 0: what a small room lacks to one step of braking
        room *= self._rates[:rows]
        beyond *= self._twices[:rows]
        np.sqrt(beyond, out=beyond)
        beyond -= self._halves[:rows]
        room += beyond
        return room

    def stopping_pose(self, q: Array, v: Array) -> Array:
        """Where the columns come to rest when they brake from the state after a step of the length begun."""
        w = np.maximum(np.abs(v) - self._halves[0], 0.0)
        return q + np.copysign(w * w / self._twice, v)

    def hardest(self, q: Array, v: Array) -> Array:
        speed = np.abs(v)
        w = np.maximum(speed - 0.5 * self._before * self._planned, 0.0)
        stops = w * w / self._twice * self.rate  # the parabola ends inside the step
        law = np.where(w >= 2.0 * self._halves[0], w - self._halves[0], stops)
        return self.choose(q, v, np.copysign(law, v))
