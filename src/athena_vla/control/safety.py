"""The safety filter: the last thing before the motor, and the only thing allowed to write to it.

Knows limits, a clock and a ladder of fallbacks; nothing of policies, chunks, cameras or networks.

Theorem. Whatever is passed to `step` (NaN, infinities, huge, random or hostile targets, a frozen, jumping or backward
clock, absent or absurd measurements), every returned vector lies inside the position limits, and the differences of
consecutive outputs at the nominal rate, from rest at `reset`, respect the velocity and acceleration limits (and the
jerk limits where that stage is on) within 1e-9; and after every step a stop inside the limits exists.
The proof for velocity and acceleration is in `limits`, for jerk in `jerk`; it needs nothing from the input, because
every output, also of the fallback ladder, is chosen from the interval that the proof shows not to be empty.

It is not a certified safety function: an emergency stop and the drive's own limits stay where they are.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from athena_vla.control.fallback import Ladder, Level
from athena_vla.control.interventions import UNCHANGED, Interventions, Log
from athena_vla.control.jerk import JerkLimitedSet
from athena_vla.control.limits import REASONS, Array, StoppableSet
from athena_vla.control.watchdog import Watchdog
from athena_vla.embodiment import Embodiment
from athena_vla.errors import SafetyError

# A check of a whole pose the robot could come to rest in: "" where it is fine, else the kind of intervention.
Guard = Callable[[Array], str]
KINDS = (*REASONS, "jerk", "position", "reset")  # interventions counted joint by joint; faults have names of their own


class SafetyFilter:
    """Turns any sequence of targets into commands the robot can execute; see the theorem above.

    `jerk` adds the jerk stage. `margin` [rad] shrinks the position limits on both sides. `guards` check the pose in
    which the robot would come to rest. `stale_after` [s] is how long the clock, or the age of a target, may be still.
    `max_tracking_error` [rad] between command and measurement before the robot stops (None: measurements are not
    judged).
    """

    def __init__(
        self,
        embodiment: Embodiment,
        *,
        rate_hz: float | None = None,
        jerk: bool = False,
        margin: float = 0.0,
        ladder: Ladder | None = None,
        stale_after: float = 0.25,
        max_tracking_error: float | None = 1.0,
        guards: Sequence[Guard] = (),
        log: Log | None = None,
    ) -> None:
        self.embodiment = embodiment
        self.ladder = ladder or Ladder()
        rate = embodiment.command_hz if rate_hz is None else float(rate_hz)
        _refuse_unless(np.isfinite(rate) and rate > 0, f"needs a positive rate, not {rate_hz} Hz")
        _refuse_unless(np.isfinite(margin) and margin >= 0, f"needs a margin of at least 0 rad, not {margin}")
        _refuse_unless(np.isfinite(stale_after) and stale_after > 0, f"needs stale_after > 0 s, not {stale_after}")
        lower, upper = embodiment.lower + margin, embodiment.upper - margin
        _refuse_unless(max_tracking_error is None or max_tracking_error > 0, "needs max_tracking_error > 0 rad or None")
        for name, low, high in zip(embodiment.joint_names, lower, upper, strict=True):
            _refuse_unless(low < high, f"leaves no room for joint '{name}' with a margin of {margin} rad")
        self.rate_hz = rate
        self._dt = 1.0 / rate
        self._lower, self._upper = lower, upper
        self._set = StoppableSet(lower, upper, embodiment.max_velocity, embodiment.max_acceleration, rate)
        self._jerk = JerkLimitedSet(self._set, embodiment.max_jerk) if jerk else None
        self._watchdog = Watchdog(rate, stale_after, max_tracking_error)
        self._guards = tuple(guards)
        self._plain = self._jerk is None and not self._guards  # steps depend on position and velocity alone
        self._safe_pose = self.ladder.pose_within(lower, upper)
        self._joints = len(lower)
        self._met = (self._jerk.tolerance if self._jerk else self._set.tolerance) * self._dt  # [rad]
        self._ledger = Interventions(embodiment.joint_names, KINDS, self._reason, log)
        self.steps = 0  # since construction
        self.reset(embodiment.default)

    def reset(self, q: ArrayLike, t: float = 0.0) -> None:
        """Start from rest at `q` [J] rad. A pose outside the limits is moved to them and counted as `reset`.

        Raises `SafetyError` for what is no pose, and for one that a guard objects to.
        """
        pose = self._vector(q, "a start pose")
        _refuse_unless(bool(np.isfinite(pose).all()), "cannot start from a pose that is not a number")
        self._q = np.clip(pose, self._lower, self._upper)
        for guard in self._guards:  # from there it would never let go of the brake
            _refuse_unless(not guard(self._q), f"cannot start from a pose that has a {guard(self._q)} already")
        self._v = np.zeros(self._joints)  # [rad/s] of the last output
        self._a = np.zeros(self._joints)  # [rad/s^2] of the last output
        self._good = self._q.copy()  # the last trustworthy target
        self._watchdog.reset(t)
        self._faulty_steps = 0
        self._before = self._q.copy()  # the last target, inside the limits
        self._lagging = False  # whether it was not met
        self.level: Level = "follow"
        outside = np.abs(self._q - pose) > UNCHANGED
        if outside.any():
            self._ledger.limit("reset", outside, np.abs(self._q - pose), t, self.level)

    @property
    def position(self) -> Array:
        """[J] [rad] the last output."""
        return self._q.copy()

    @property
    def velocity(self) -> Array:
        """[J] [rad/s] of the last output."""
        return self._v.copy()

    @property
    def stopping_pose(self) -> Array:
        """[J] [rad] where the robot comes to rest when it brakes as hard as permitted."""
        return self._set.stopping_pose(self._q, self._v)

    @property
    def touched_steps(self) -> int:
        """Steps since construction with at least one intervention."""
        return self._ledger.touched_steps

    @property
    def at_rest(self) -> bool:
        return not self._v.any()

    @property
    def interventions(self) -> Counter[str]:
        """Counts by kind since construction: joints x steps for limits, steps for faults; empty if nothing happened."""
        return self._ledger.by_kind()

    @property
    def interventions_by_joint(self) -> dict[str, dict[str, int]]:
        """Kind -> joint -> count; faults of the whole vector stand under the joint `*`."""
        return self._ledger.by_joint()

    def step(
        self,
        target: ArrayLike | None,
        t: float,
        measured: ArrayLike | None = None,
        *,
        target_time: float | None = None,
    ) -> Array:
        """The next command [J] for the target [J] rad; None where there is nothing to follow.

        `t` is the caller's clock and `target_time` the instant the target was made at, both in [s]. Raises
        `SafetyError` for a target that is not a vector of J numbers, and for nothing else; the state is then unchanged.
        """
        if target is None:
            return self._step(self._q, self._q, "no_target", t, measured, target_time)
        wanted = self._vector(target, "a target")
        missing = "" if np.isfinite(wanted).all() else "not_finite"
        return self._step(wanted, self._clipped(wanted), missing, t, measured, target_time)

    def _step(self, target: Array, goal: Array, missing: str, t: float, measured: Any, made_at: float | None) -> Array:
        """`goal` is the target inside the position limits, `missing` why there is none to follow."""
        self.steps += 1
        fault = self._watchdog.fault(missing, t, measured, made_at, self._q)
        if fault:
            return self._fall(fault, t)
        self._faulty_steps = 0
        self.level = "follow"
        self._good = target
        if self._plain and not self._lagging and self._set.harmless(self._q, self._v, target, goal):
            self._before = target
            return self._accept(target)
        return self._advance(target, goal, t)

    def chunk(self, targets: ArrayLike, t: float, measured: ArrayLike | None = None) -> Array:
        """Commands [n, J] for n consecutive steps at the nominal rate, the first at `t`; equal to n calls of `step`.

        Rows that need no intervention are passed on together, which is what makes filtering a chunk cheap.
        """
        rows = self._numbers(targets, "a chunk")
        if rows.ndim != 2 or rows.shape[1] != self._joints:
            raise SafetyError(
                f"A chunk for '{self.embodiment.name}' is [n, {self._joints}], this one has shape {list(rows.shape)}."
            )
        commands = np.empty_like(rows)
        goals, finite = self._clipped(rows), np.isfinite(rows).all(axis=1)
        done, single = 0, 1  # rows done; rows to take one by one after a row that needed an intervention
        while done < len(rows):
            now = t + done * self._dt
            passed = 0
            if (measured is None or done > 0) and self._may_batch(now):
                with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are simply not admissible
                    passed = self._set.admissible_prefix(self._q, self._v, rows[done:])
            if passed:
                single = 1
                commands[done : done + passed] = rows[done : done + passed]
                if passed > 1:
                    self._q = rows[done + passed - 2]
                self._good = self._before = self._accept(rows[done + passed - 1].copy())
                self._watchdog.advanced(now + (passed - 1) * self._dt)
                self._faulty_steps = 0
                self.steps += passed
                done += passed
                continue
            for _ in range(min(single, len(rows) - done)):
                missing, seen = "" if finite[done] else "not_finite", measured if done == 0 else None
                commands[done] = self._step(rows[done], goals[done], missing, t + done * self._dt, seen, None)
                done += 1
            single *= 2
        return commands

    def summary(self) -> dict[str, Any]:
        """What happened since construction, for a report."""
        touched = self._ledger.touched_steps
        return {
            "steps": self.steps,
            "touched_steps": touched,
            "rate": touched / max(self.steps, 1),
            "interventions": dict(self.interventions),
            "by_joint": self.interventions_by_joint,
        }

    def _may_batch(self, t: float) -> bool:
        return self._plain and self.level == "follow" and not self._lagging and self._watchdog.clock_is_fine(t)

    def _fall(self, fault: str, t: float) -> Array:
        """One step of the fallback ladder."""
        self._faulty_steps += 1
        self._lagging = True
        self.level = self.ladder.rung(fault, self._faulty_steps * self._dt)
        self._ledger.fault(fault, t, self.level)
        if self.level == "hold":
            self._before = self._clipped(self._good)  # a target that stands still
            return self._move(self._toward(self._before)[0], t)
        if self.level == "safe_pose" and self._safe_pose is not None:
            wish = self.ladder.approaching(self._q, self._safe_pose, self.embodiment, self.rate_hz)
        else:
            wish = self.ladder.stopping(self._v, self._set.velocity_step)
        return self._move(self._choose(wish), t)

    def _advance(self, target: Array, reachable: Array, t: float) -> Array:
        """Follow a finite target as far as the limits allow; `reachable` is the target inside the position limits."""
        velocity, wish = self._toward(reachable)
        command = velocity * self._dt
        command += self._q
        # A target that is met is met bit for bit.
        off = command - reachable
        np.copyto(command, reachable, where=np.abs(off, out=off) <= self._met)
        if self._objection(command, t):
            self._before = reachable
            return self._brake()
        self._lagging, self._before = bool((command != reachable).any()), reachable
        if self._lagging or (reachable != target).any():
            positions, velocities = (target, reachable, command), (wish, velocity, self._v)
            self._ledger.limits(t, self.level, positions, velocities, self._set.reach)
        return self._move_to(command)

    def _toward(self, target: Array) -> tuple[Array, Array]:
        """The next velocity on the way to a target inside the limits, and the wish it comes from."""
        if not self._lagging:
            wish = (target - self._q) * self.rate_hz
            return self._choose(wish), wish
        drift = target - self._before  # a target that moves on is taken to go on as in its last step
        drift *= self.rate_hz
        np.maximum(drift, -self.embodiment.max_velocity, out=drift)
        np.minimum(drift, self.embodiment.max_velocity, out=drift)
        if self._jerk is None:
            return self._set.pursue(self._q, self._v, target, drift)
        away = target - drift * self._dt - self._q
        wish = drift + self._jerk.approach(away, self._v - drift, self._a)
        return self._choose(wish), wish

    def _choose(self, desired: Array) -> Array:
        if self._jerk is not None:
            return self._jerk.choose(self._q, self._v, self._a, desired)
        return self._set.choose(self._q, self._v, desired)

    def _move(self, velocity: Array, t: float) -> Array:
        command = self._q + velocity * self._dt
        return self._brake() if self._objection(command, t) else self._move_to(command)

    def _objection(self, command: Array, t: float) -> bool:
        """Whether a guard objects to the pose in which the robot would come to rest after this command."""
        if not self._guards:
            return False
        velocity = (command - self._q) * self.rate_hz
        if self._jerk is None:
            rest = self._set.stopping_pose(command, velocity)
        else:
            rest = self._jerk.stopping_pose(command, velocity, (velocity - self._v) * self.rate_hz)
        kind = next(filter(None, (guard(rest) for guard in self._guards)), "")
        if kind:
            self.level, self._lagging = "stop", True
            self._ledger.fault(kind, t, self.level)
        return bool(kind)

    def _brake(self) -> Array:
        """One step of the motion that ends in the pose that was checked when the last command was accepted."""
        if self._jerk is None:
            return self._move_to(self._q + self._choose(np.zeros(self._joints)) * self._dt)
        law = self._v + self._jerk.brake(self._v, self._a) * self._dt
        return self._move_to(self._q + self._choose(law) * self._dt)

    def _move_to(self, command: Array) -> Array:
        if self._jerk is None:  # only the last bit can be outside; with jerk even that bit would be felt
            np.minimum(np.maximum(command, self._lower, out=command), self._upper, out=command)
        return self._accept(command)

    def _accept(self, command: Array) -> Array:
        """Remember an output exactly as it is given, so that rounding cannot pile up; the caller gets a copy."""
        velocity = (command - self._q) * self.rate_hz
        if self._jerk is not None:
            self._a = (velocity - self._v) * self.rate_hz
        self._q, self._v = command, velocity
        return command.copy()

    def _reason(self, wish: Array, chosen: Array, v: Array, reach: Array) -> NDArray[np.intp]:
        """[n, J] index into `KINDS` of what kept joints from their wish."""
        if self._jerk is not None:
            return np.full(v.shape, KINDS.index("jerk"))
        return self._set.reason(wish, chosen, v, reach)

    def _clipped(self, target: Array) -> Array:
        return np.minimum(np.maximum(target, self._lower), self._upper)

    def _vector(self, values: ArrayLike, what: str) -> Array:
        vector = self._numbers(values, what)
        if vector.shape != (self._joints,):
            raise SafetyError(
                f"{what} for '{self.embodiment.name}' has shape {list(vector.shape)}; the robot has "
                f"{self._joints} joints: {', '.join(self.embodiment.joint_names)}."
            )
        return vector

    def _numbers(self, values: ArrayLike, what: str) -> Array:
        try:
            return np.array(values, dtype=np.float64)  # a copy: the caller may reuse its buffer
        except (TypeError, ValueError) as error:
            raise SafetyError(f"{what} for '{self.embodiment.name}' must be numbers: {error}.") from error


def _refuse_unless(condition: bool | np.bool_, problem: str) -> None:
    if not condition:
        raise SafetyError(f"The safety filter {problem}.")
