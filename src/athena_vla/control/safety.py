"""The safety filter: the last thing before the motor, and the only thing allowed to write to it.

Knows limits, a clock and a fallback policy; nothing of policies, chunks, cameras or networks.

Columns are the joints and, after them, the commanded channels: heights, velocities, openings, each with its own range,
greatest rate ("velocity" below) and a limit on the change of that rate ("acceleration"). The proofs speak of columns
and use nothing else of them, so they hold for channels as they stand, in the channel's unit. What differs is the stop.
A column that stops where it is (joints, `hold`) brings its rate to zero. One that stops at a value z (`zero`: z = 0, a
velocity; `default`) goes there: z lies inside its limits, and the way from any state of the set is, once its rate is
zero, a move inside the interval between two of its points, so the set is never left. `limits` gives the greatest rate
at which such a move still ends at z, and the braking and rate bounds meet as the theorem shows, z changes nothing.
For channels whose limits come from training data all this bounds the numbers alone; it is no statement of safety.

Theorem, by index. Whatever is passed to `step` (NaN, infinities, huge, random or hostile targets, a frozen, jumping or
backward clock, absent or absurd measurements), every returned vector lies inside the position limits, and the
differences of consecutive outputs at the nominal rate, from rest at `reset`, respect the velocity and acceleration
limits (and the jerk limits where that stage is on) within 1e-9; and after every step a stop inside the limits exists.

Theorem, by time. After `reset(..., by_time=True)` the same holds for the pairs of stamp and command, where `elapsed`
is the time between the last command and this one as the driver sees it: the mean velocity between any two stamps and
the second divided difference of any three consecutive pairs respect the limits, for steps of any length from an eighth
of the nominal period on. A command that leaves later than planned is made anew by `retime`; `left` tells when it left.

The proofs are in `limits`, `limits_by_time` and `jerk`; they need nothing from the input, because every output, also of
the fallback policy, is chosen from the interval that the proof shows not to be empty.

It is not a certified safety function: an emergency stop and the drive's own limits stay where they are.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from athena_vla.control.bounds import REASONS, Bounds
from athena_vla.control.columns import Columns, seconds
from athena_vla.control.fallback import STOP_AT_ONCE, FallbackPolicy, Level
from athena_vla.control.interventions import UNCHANGED, Interventions, Log
from athena_vla.control.jerk import JerkLimitedSet
from athena_vla.control.limits import StoppableSet
from athena_vla.control.limits_by_time import TimedSet
from athena_vla.control.watchdog import Watchdog
from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import SafetyError

# A check of a whole pose the robot could come to rest in: "" where it is fine, else the kind of intervention.
Guard = Callable[[Array], str]
STILL = 1e-9  # [rad/s] the jerk stage comes this near to rest
MOST_PERIODS = 10  # of the jerk stage in one step by time
KINDS = (*REASONS, "jerk", "position", "reset")  # interventions counted joint by joint; faults have names of their own


class SafetyFilter:
    """Turns any sequence of targets into commands the robot can execute; see the theorems above.

    `jerk` adds the jerk stage. `margin` [rad] shrinks the position limits on both sides. `speed` is the share of the
    velocity limits that may be used, for bring-up. `guards` check the pose in which the robot would come to rest.
    `stale_after` [s] is how long the clock, or the age of a target, may be still. `max_tracking_error` [rad] between
    command and measurement before the robot stops (None: measurements are not judged).
    """

    def __init__(
        self,
        embodiment: Embodiment,
        *,
        rate_hz: float | None = None,
        jerk: bool = False,
        margin: float = 0.0,
        speed: float = 1.0,
        fallback: FallbackPolicy | None = None,
        stale_after: float = 0.25,
        max_tracking_error: float | None = 1.0,
        guards: Sequence[Guard] = (),
        log: Log | None = None,
    ) -> None:
        self.embodiment = embodiment
        self.fallback = fallback or FallbackPolicy()
        rate = embodiment.command_hz if rate_hz is None else float(rate_hz)
        _refuse_unless(np.isfinite(rate) and rate > 0, f"needs a positive rate, not {rate_hz} Hz")
        _refuse_unless(np.isfinite(margin) and margin >= 0, f"needs a margin of at least 0 rad, not {margin}")
        _refuse_unless(0 < speed <= 1, f"needs a speed that is a share of the limits in (0, 1], not {speed}")
        _refuse_unless(np.isfinite(stale_after) and stale_after > 0, f"needs stale_after > 0 s, not {stale_after}")
        _refuse_unless(max_tracking_error is None or max_tracking_error > 0, "needs max_tracking_error > 0 rad or None")
        self.speed, self.rate_hz = float(speed), rate
        columns = self._columns = Columns.of(embodiment, rate, margin=margin, speed=speed)
        limits = (columns.lower, columns.upper, columns.max_velocity, columns.max_acceleration)
        self._slowest = -columns.max_velocity
        self._by_index, self._by_time = StoppableSet(*limits, rate), TimedSet(*limits, rate)
        self._set: Bounds = self._by_index
        self._jerk = JerkLimitedSet(self._by_index, columns.max_jerk) if jerk else None
        self._watchdog = Watchdog(rate, stale_after, max_tracking_error)
        self._guards = tuple(guards)
        self._plain = self._jerk is None and not self._guards  # steps depend on position and velocity alone
        self._safe_pose = self.fallback.pose_within(columns)
        self._interventions = Interventions(columns.names, KINDS, self._reason, log)
        self._another = partial(
            SafetyFilter,
            embodiment,
            rate_hz=rate,
            jerk=True,
            margin=margin,
            speed=speed,
            fallback=fallback,
            stale_after=stale_after,
            max_tracking_error=max_tracking_error,
            guards=guards,
        )
        self.steps = 0  # since construction
        self.reset(columns.rest)

    def reset(self, q: ArrayLike, t: float = 0.0, *, by_time: bool = False, velocity: Array | None = None) -> None:
        """Start from rest at `q` [J] rad. A pose outside the limits is moved to them and counted as `reset`.

        `by_time`: steps take as long as they are told to take. `velocity` [J] rad/s starts in motion instead, as fast
        as the limits permit from there. Raises `SafetyError` for what is no pose, and for one that a guard objects to.
        """
        pose = self._columns.vector(q, "a start pose")
        _refuse_unless(bool(np.isfinite(pose).all()), "cannot start from a pose that is not a number")
        start = self._columns.clipped(pose)
        joints = start[: self._columns.joints]
        for guard in self._guards:  # from there it would never let go of the brake
            _refuse_unless(not guard(joints), f"cannot start from a pose that has a {guard(joints)} already")
        self._q = start
        self._v = np.zeros(len(start))  # [rad/s] of the last output
        self._a = np.zeros(len(start))  # [rad/s^2] of the last output
        self._set = self._by_time if by_time else self._by_index
        self._by_time.restart()
        if velocity is not None:
            self._v = self._set.slowed(start, np.asarray(velocity, dtype=np.float64))
        self._from = self._q, self._v  # before the last output
        self._dt = 1.0 / self.rate_hz  # [s] length of this step
        self._planned = self._dt  # [s] length of the last step
        self._shaper: SafetyFilter | None = None
        self._stage = self._jerk
        if self._jerk is not None and by_time:  # the jerk stage counts in periods: it shapes what is then kept by time
            self._shaper, self._stage = self._another(), None
            self._shaper._interventions = self._interventions
            self._shaper.reset(start, t)
        self._met = (self._stage.tolerance if self._stage else self._set.tolerance) * self._dt  # [rad]
        self._good = start.copy()  # the last trustworthy target
        self._watchdog.reset(seconds(t))
        self._faulty = 0.0  # [s] that the present fault has lasted
        self._before = start.copy()  # the last target, inside the limits
        self._lagging = False  # whether it was not met
        self.level: Level = "follow"
        outside = np.abs(start - pose) > UNCHANGED
        if outside.any():
            self._interventions.limit("reset", outside, np.abs(start - pose), seconds(t), self.level)

    @property
    def columns(self) -> Columns:
        """The limits that it keeps."""
        return self._columns

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
        """[C] [rad] where the robot comes to rest when it brakes as hard as permitted."""
        rest = self._set.stopping_pose(self._q, self._v)
        rest[self._columns.stopping] = self._columns.stop
        return rest

    @property
    def touched_steps(self) -> int:
        """Steps since construction with at least one intervention."""
        return self._interventions.touched_steps

    @property
    def at_rest(self) -> bool:
        """Nothing changes any more."""
        return float(np.abs(self._v).max()) <= STILL and (self._shaper is None or self._shaper.at_rest)

    @property
    def stopped(self) -> bool:
        """At rest, and every channel is where it goes when there is nothing to follow; velocities are zero."""
        columns = self._columns
        return self.at_rest and bool((self._q[columns.stopping] == columns.stop).all())

    @property
    def interventions(self) -> Counter[str]:
        """Counts by kind since construction: joints x steps for limits, steps for faults; empty if nothing happened."""
        return self._interventions.by_kind()

    @property
    def interventions_by_joint(self) -> dict[str, dict[str, int]]:
        """Kind -> joint -> count; faults of the whole vector stand under the joint `*`."""
        return self._interventions.by_joint()

    def step(
        self,
        target: ArrayLike | None,
        t: float,
        measured: ArrayLike | None = None,
        *,
        target_time: float | None = None,
        elapsed: float | None = None,
        fault: str = "no_target",
    ) -> Array:
        """The next command [J] for the target [J] rad; None where there is nothing to follow, which `fault` names.

        `t` is the caller's clock and `target_time` the instant the target was made at, both in [s]. `elapsed` [s] is
        the time since the last command, by time; one nominal period where it is not told. Raises `SafetyError` for a
        target that is not a vector of J numbers, and for nothing else; the state is then unchanged.
        """
        wanted = self._q if target is None else self._columns.vector(target, "a target")
        missing = fault if target is None else "" if np.isfinite(wanted).all() else "not_finite"
        if type(t) is not float:
            t = seconds(t)
        if target_time is not None:
            target_time = seconds(target_time)
        if self._set is self._by_time:
            self._begin(elapsed)
            if self._shaper is not None:
                return self._shaped(None if missing else wanted, t, measured, target_time, missing)
        return self._step(wanted, self._columns.clipped(wanted), missing, t, measured, target_time)

    def _begin(self, elapsed: float | None) -> None:
        """A step by time begins; the last one took as long as was planned, or as `left` said."""
        self._by_time.took(self._planned)
        told = 1.0 / self.rate_hz if elapsed is None else seconds(elapsed)
        if not self._by_time.shortest <= told < math.inf:
            told = 1.0 / self.rate_hz  # no clock shows that: the promise by index is what is left
        self._lengthen(told)

    def _lengthen(self, length: float) -> None:
        self._by_time.begin(length)
        self._dt = self._planned = length

    def retime(self, elapsed: float) -> Array:
        """The last command again, for the case that it is given `elapsed` [s] after the one before it; by time only."""
        command, (q, v) = self._q, self._from
        self._lengthen(max(seconds(elapsed), self._by_time.shortest))
        self._q, self._v = q, v
        velocity = self._set.choose(q, v, (command - q) * self._set.rate)
        again = q + velocity * self._set.dt
        np.copyto(again, command, where=np.abs(again - command) <= self._met)
        self._lagging = self._lagging or _differ(again, command)
        return self._brake() if self._objection(again, 0.0) else self._move_to(again)

    def left(self, elapsed: float) -> None:
        """The last command was given `elapsed` [s] after the one before it; by time only."""
        if self._set is self._by_time and self._by_time.shortest <= elapsed < math.inf:
            self._planned = elapsed
            self._v = (self._q - self._from[0]) / elapsed

    def _shaped(
        self, target: Array | None, t: float, measured: ArrayLike | None, made_at: float | None, missing: str
    ) -> Array:
        """By time with jerk: the stage runs as many periods as have passed, and what it says is kept by time."""
        assert self._shaper is not None
        self.steps += 1
        periods = min(max(round(self._dt * self.rate_hz), 1), MOST_PERIODS)
        command = self._q
        for k in range(periods):
            seen = measured if k == 0 else None
            command = self._shaper.step(target, t + k / self.rate_hz, seen, target_time=made_at, fault=missing)
        self.level = self._shaper.level
        return self._advance(command, command, t)

    def _step(self, target: Array, goal: Array, missing: str, t: float, measured: Any, made_at: float | None) -> Array:
        """`goal` is the target inside the position limits, `missing` why there is none to follow."""
        self.steps += 1
        fault = self._watchdog.fault(missing, t, measured, made_at, self._q[: self._columns.joints])
        if fault:
            return self._fall(missing if missing in STOP_AT_ONCE else fault, t)
        self._faulty = 0.0
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
        rows = self._columns.numbers(targets, "a chunk")
        if rows.ndim != 2 or rows.shape[1] != len(self._q):
            which = f" ({', '.join(self._columns.names)})" if self._columns.has_channels else ""
            raise SafetyError(
                f"A chunk for '{self.embodiment.name}' is [n, {len(self._q)}]{which}, this one has shape "
                f"{list(rows.shape)}."
            )
        t = seconds(t)
        commands = np.empty_like(rows)
        goals, finite = self._columns.clipped(rows), np.asarray(np.isfinite(rows).all(axis=1))
        done, single = 0, 1  # rows done; rows to take one by one after a row that needed an intervention
        while done < len(rows):
            now = t + done * self._dt
            passed = 0
            if (measured is None or done > 0) and self._may_batch(now):
                with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are simply not admissible
                    passed = self._by_index.admissible_prefix(self._q, self._v, rows[done:])
            if passed:
                single = 1
                commands[done : done + passed] = rows[done : done + passed]
                if passed > 1:
                    self._q = rows[done + passed - 2]
                self._good = self._before = self._accept(rows[done + passed - 1].copy())
                self._watchdog.advanced(now + (passed - 1) * self._dt)
                self._faulty = 0.0
                self.steps += passed
                done += passed
                continue
            for _ in range(min(single, len(rows) - done)):
                seen, moment = measured if done == 0 else None, t + done * self._dt
                if self._set is self._by_time:
                    commands[done] = self.step(rows[done], moment, seen)
                else:
                    missing = "" if finite[done] else "not_finite"
                    commands[done] = self._step(rows[done], goals[done], missing, moment, seen, None)
                done += 1
            single *= 2
        return commands

    def time_to(self, pose: Array) -> float:
        """[s] without a command after which one from rest at `pose` keeps all limits by time, from rest where it is."""
        way = np.abs(pose - self._q)
        columns = self._columns
        longest = np.maximum(way / columns.max_velocity, np.sqrt(2.0 * way / columns.max_acceleration)).max()
        return float(longest) + 4.0 / self.rate_hz

    def summary(self) -> dict[str, Any]:
        """What happened since construction, for a report."""
        touched = self._interventions.touched_steps
        return {
            "steps": self.steps,
            "touched_steps": touched,
            "rate": touched / max(self.steps, 1),
            "interventions": dict(self.interventions),
            "by_joint": self.interventions_by_joint,
        }

    def _may_batch(self, t: float) -> bool:
        plain = self._plain and self._jerk is None and self._set is self._by_index
        return plain and self.level == "follow" and not self._lagging and self._watchdog.clock_is_fine(t)

    def _fall(self, fault: str, t: float) -> Array:
        """One step of the fallback policy."""
        self._faulty += self._dt
        self._lagging = True
        self.level = self.fallback.level(fault, self._faulty)
        if fault != "end":  # nobody's fault
            self._interventions.fault(fault, t, self.level)
        if self.level == "hold":
            self._before = self._columns.clipped(self._good)  # a target that stands still
            return self._move(self._toward(self._before)[0], t)
        if self.level == "safe_pose" and self._safe_pose is not None:
            wish = self.fallback.approaching(self._q, self._safe_pose, self._columns, 1.0 / self._dt)
        else:
            wish = self.fallback.stopping(self._v, self._set.velocity_step, self._dt, self._faulty)
        return self._move(self._choose(self._to_stop(wish)), t)

    def _to_stop(self, wish: Array) -> Array:
        """The same wish, but columns that have a value to stop at go there, without running past it."""
        stopping = self._columns.stopping
        if stopping.size:
            goal = self._q.copy()
            goal[stopping] = self._columns.stop
            wish = wish.copy()
            wish[stopping] = self._toward_still(goal)[stopping]
        return wish

    def _toward_still(self, goal: Array) -> Array:
        """The wished velocity on the way to a target that stands still."""
        if self._stage is not None:
            return self._stage.approach(goal - self._q, self._v, self._a)
        return self._set.pursue(self._q, self._v, goal, np.zeros(len(goal)))[1]

    def _advance(self, target: Array, reachable: Array, t: float) -> Array:
        """Follow a finite target as far as the limits allow; `reachable` is the target inside the position limits."""
        velocity, wish = self._toward(reachable)
        command = velocity * self._set.dt
        command += self._q
        # A target that is met is met bit for bit.
        off = command - reachable
        np.copyto(command, reachable, where=np.abs(off, out=off) <= self._met)
        if self._objection(command, t):
            self._before = reachable
            return self._brake()
        self._lagging, self._before = _differ(command, reachable), reachable
        if self._lagging or _differ(reachable, target):
            rows = (target, reachable, command, wish, velocity, self._v, self._set.velocity_step)
            self._interventions.limits(t, self.level, rows, self._set.reach)
        return self._move_to(command)

    def _toward(self, target: Array) -> tuple[Array, Array]:
        """The next velocity on the way to a target inside the limits, and the wish it comes from."""
        if not self._lagging:
            wish = (target - self._q) * self._set.rate
            return self._choose(wish), wish
        drift = target - self._before  # a target that moves on is taken to go on as in its last step
        drift *= self._set.rate
        np.maximum(drift, self._slowest, out=drift)
        np.minimum(drift, self._columns.max_velocity, out=drift)
        if self._stage is None:
            return self._set.pursue(self._q, self._v, target, drift)
        away = target - drift * self._dt - self._q
        wish = drift + self._stage.approach(away, self._v - drift, self._a)
        return self._choose(wish), wish

    def _choose(self, desired: Array) -> Array:
        if self._stage is not None:
            return self._stage.choose(self._q, self._v, self._a, desired)
        return self._set.choose(self._q, self._v, desired)

    def _move(self, velocity: Array, t: float) -> Array:
        command = self._landed(self._q + velocity * self._set.dt)
        return self._brake() if self._objection(command, t) else self._move_to(command)

    def _objection(self, command: Array, t: float) -> bool:
        """Whether a guard objects to the pose in which the robot would come to rest after this command."""
        if not self._guards:
            return False
        velocity = (command - self._q) * self._set.rate
        if self._stage is None:
            rest = self._set.stopping_pose(command, velocity)
        else:
            rest = self._stage.stopping_pose(command, velocity, (velocity - self._v) * self.rate_hz)
        kind = next(filter(None, (guard(rest[: self._columns.joints]) for guard in self._guards)), "")
        if kind:
            self.level, self._lagging = "stop", True
            self._interventions.fault(kind, t, self.level)
        return bool(kind)

    def _brake(self) -> Array:
        """One step of the motion that ends in the pose that was checked when the last command was accepted."""
        if self._stage is None:
            velocity = self._set.hardest(self._q, self._v).copy()
            if self._columns.stopping.size:
                velocity = self._choose(self._to_stop(velocity))
            return self._move_to(self._landed(self._q + velocity * self._dt))
        law = self._v + self._stage.brake(self._v, self._a) * self._dt
        return self._move_to(self._landed(self._q + self._choose(self._to_stop(law)) * self._dt))

    def _landed(self, command: Array) -> Array:
        """A stop that is met is met bit for bit."""
        places, stop = self._columns.stopping, self._columns.stop
        if places.size:
            met = np.abs(command[places] - stop) <= self._met[places]
            command[places] = np.where(met, stop, command[places])
        return command

    def _move_to(self, command: Array) -> Array:
        if self._stage is None:  # only the last bit can be outside; with jerk even that bit would be felt
            np.maximum(command, self._columns.lower, out=command)
            np.minimum(command, self._columns.upper, out=command)
        return self._accept(command)

    def _accept(self, command: Array) -> Array:
        """Remember an output exactly as it is given, so that rounding cannot pile up; the caller gets a copy."""
        velocity = (command - self._q) * self._set.rate
        if self._stage is not None:
            self._a = (velocity - self._v) * self.rate_hz
        self._from = self._q, self._v
        self._q, self._v = command, velocity
        return command.copy()

    def _reason(self, wish: Array, chosen: Array, v: Array, reach: Array, step: Array) -> NDArray[np.intp]:
        """[n, J] index into `KINDS` of what kept joints from their wish."""
        if self._jerk is not None:
            return np.full(v.shape, KINDS.index("jerk"))
        return self._set.reason(wish, chosen, v, reach, step)


def _differ(a: Array, b: Array) -> bool:
    return bool(np.count_nonzero(a != b))


def _refuse_unless(condition: bool | np.bool_, problem: str) -> None:
    if not condition:
        raise SafetyError(f"The safety filter {problem}.")
