"""The promise by time: whatever the lengths of the steps, what (stamp, command) pairs show stays inside the limits."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.limits_by_time import SHORTEST, TimedSet
from athena_vla.control.run.pacing import LEAD, ON_TIME, Pacer
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Array, Embodiment

ROBOTS = ("toy", "athena", "unitree_g1_23dof")
L = np.longdouble


def assert_within_limits_by_time(
    stamps: Array,
    commands: Array,
    robot: Embodiment,
    start: Array | None = None,
    *,
    resolution: float = 0.0,
    unknown: Sequence[int] = (),
) -> None:
    """The witness: mean velocities between stamps and their change over time, in extended precision.

    `start` is where the robot stood at time 0 and before, where that is known. `unknown` are commands whose stamps are
    only bounds; of accelerations next to them nothing can be said.

    `resolution` [s] is what a stamp may be off by: that much in both ends of an interval `h` changes a mean velocity
    `v` by `2 v resolution / h`, and an acceleration by two such errors over the time between the intervals' middles.
    """
    times, path = stamps.astype(L), commands.astype(L)
    if start is not None:
        times = np.concatenate([[-1.0 / robot.command_hz, 0.0], times])
        path = np.concatenate([start[None], start[None], path])
    h = np.diff(times)[:, None]
    assert (h > 0).all()
    velocity = np.diff(path, axis=0) / h
    error = 2 * np.abs(velocity) * resolution / h
    assert (commands >= robot.lower - 1e-9).all()
    assert (commands <= robot.upper + 1e-9).all()
    assert (np.abs(velocity) <= robot.max_velocity + 1e-9 + error).all()
    middle = 0.5 * (h[1:] + h[:-1])
    # A stamp is a double: half a unit of its last place stands in every interval.
    rounding = 4 * np.abs(velocity).max() * np.spacing(np.abs(stamps).max()) / (h.min() * middle)
    acceleration = np.abs(np.diff(velocity, axis=0)) / middle
    for k in unknown:
        acceleration[max(k - 2, 0) : k + 1] = 0.0
    assert (acceleration <= robot.max_acceleration + 1e-6 + rounding + (error[1:] + error[:-1]) / middle).all()


def intervals(rng: np.random.Generator, count: int, period: float) -> Array:
    """Lengths of steps: punctual, jittering from 0.1 to 50 ms, and suspended for seconds."""
    jitter = np.maximum(10 ** rng.uniform(-4, np.log10(0.05), count), SHORTEST * period * 1.0001)
    kind = rng.choice(4, count, p=[0.5, 0.3, 0.18, 0.02])
    return np.choose(
        kind, [np.full(count, period), period * rng.uniform(0.2, 3, count), jitter, rng.uniform(1, 20, count)]
    )


@pytest.mark.parametrize("robot_name", ROBOTS)
@pytest.mark.parametrize("seed", range(3))
def test_the_theorem_by_time_under_attack(robot_name: str, seed: int) -> None:
    robot = embodiment.load(robot_name)
    rng = np.random.default_rng(seed)
    guard = SafetyFilter(robot)
    start = rng.uniform(robot.lower, robot.upper)
    guard.reset(start, by_time=True)
    h = intervals(rng, 700, 1 / robot.command_hz)
    stamp, stamps, commands, target = 0.0, [], [], start
    for k in range(len(h)):
        kind = (k // 40) % 4
        if kind == 0:
            target = np.where((k // rng.integers(3, 40)) % 2 == 0, robot.lower - 1, robot.upper + 1)
        elif kind == 1 and rng.random() < 0.1:
            target = rng.uniform(robot.lower - 0.2, robot.upper + 0.2)
        elif kind == 2:
            target = guard.position + rng.normal(size=len(start)) * robot.max_velocity * 2 / robot.command_hz
        clock = [stamp, np.nan, -5.0][rng.choice(3, p=[0.97, 0.02, 0.01])]  # the robot's clock may say what it likes
        command = guard.step(None if rng.random() < 0.03 else target, clock, elapsed=h[k])
        length = h[k]
        if rng.random() < 0.15:  # late: made anew, perhaps twice, and given a little later than even that
            for _ in range(rng.integers(1, 3)):
                length += 10 ** rng.uniform(-4, -1.3)
                command = guard.retime(length)
        stamp += length
        guard.left(length)
        stamps.append(stamp)
        commands.append(command)
    assert_within_limits_by_time(np.array(stamps), np.array(commands), robot, start)
    last = np.array(commands[-2:])
    h_last = stamps[-1] - stamps[-2]
    for j, v in enumerate((last[1] - last[0]) / h_last):  # a stop exists: the parabola's end, in plain arithmetic
        w = max(abs(v) - 0.5 * robot.max_acceleration[j] * h_last, 0.0)
        end = last[1, j] + np.copysign(w * w / (2 * robot.max_acceleration[j]), v)
        assert robot.lower[j] - 1e-9 <= end <= robot.upper[j] + 1e-9


@settings(max_examples=80, deadline=None)
@given(
    room=st.floats(0, 4),
    velocity=st.floats(0.05, 30),
    acceleration=st.floats(0.2, 300),
    step=st.floats(2e-4, 2.0),
    rate=st.sampled_from([50.0, 200.0, 1000.0]),
)
def test_the_fastest_step_is_the_last_that_can_stop(
    room: float, velocity: float, acceleration: float, step: float, rate: float
) -> None:
    """Against bisection on the stopping parabola itself."""
    one = np.ones(1)
    bounds = TimedSet(-5 * one, 5 * one, velocity * one, acceleration * one, rate)
    step = max(step, bounds.shortest)
    bounds.begin(step)

    def fits(v: float) -> bool:
        w = max(v - 0.5 * acceleration * step, 0.0)
        return v * step + w * w / (2 * acceleration) <= room

    low, high = 0.0, 1e7
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    q, rest = np.array([5.0 - room]), np.array([min(low, velocity)])
    chosen = bounds.choose(q, rest, np.array([1e9]))  # already as fast: the window is no limit
    np.testing.assert_allclose(chosen, rest, rtol=1e-5, atol=1e-9)
    assert chosen[0] <= rest[0] + 1e-9


def test_at_the_nominal_rate_both_sets_give_the_same_where_no_limit_is_near(athena: Embodiment) -> None:
    by_index, by_time = SafetyFilter(athena), SafetyFilter(athena)
    by_time.reset(athena.default, by_time=True)
    t = np.arange(1, 600) / athena.command_hz
    room = 0.2 * np.minimum(athena.upper - athena.default, athena.default - athena.lower)
    path = athena.default + room * (1 - np.cos(2 * t))[:, None]
    for k, row in enumerate(path):
        np.testing.assert_array_equal(by_index.step(row, t[k]), row)
        np.testing.assert_array_equal(by_time.step(row, t[k], elapsed=1 / athena.command_hz), row)
    assert not by_index.interventions
    assert not by_time.interventions


def test_a_plan_seen_at_jittering_stamps_passes_unchanged(athena: Embodiment) -> None:
    """What lies inside the limits as a motion does so at any stamps: jitter alone is no reason to intervene."""
    rng = np.random.default_rng(1)
    guard = SafetyFilter(athena)
    guard.reset(athena.default, by_time=True)
    room = 0.2 * np.minimum(athena.upper - athena.default, athena.default - athena.lower)
    stamp = 0.0
    for _ in range(500):
        h = rng.uniform(0.3, 4) / athena.command_hz
        stamp += h
        row = athena.default + room * (1 - np.cos(2 * stamp))
        np.testing.assert_array_equal(guard.step(row, stamp, elapsed=h), row)
    assert not guard.interventions


@pytest.mark.parametrize("gap", [0.02, 0.1, 1.0, 10.0])
def test_after_a_suspension_the_robot_is_where_braking_brought_it(athena: Embodiment, gap: float) -> None:
    """The smallest way that keeps the acceleration by time; after the time that a stop takes, none."""
    guard = SafetyFilter(athena)
    guard.reset(athena.lower + 0.4 * (athena.upper - athena.lower), by_time=True)
    h, before = 1 / athena.command_hz, guard.position
    for k in range(60):
        before = guard.step(athena.upper, k * h, elapsed=h)
    v, a = guard.velocity, athena.max_acceleration
    assert v.max() > 2
    after = guard.step(before, 60 * h, elapsed=gap)
    slowest = np.maximum(v - 0.5 * a * (h + gap), 0)
    np.testing.assert_allclose(after - before, slowest * gap, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("jerk", [False, True])
def test_the_jerk_stage_goes_before_the_limits_by_time(athena: Embodiment, jerk: bool) -> None:
    rng = np.random.default_rng(3)
    guard = SafetyFilter(athena, jerk=jerk)
    guard.reset(athena.default, by_time=True)
    h = intervals(rng, 150, 1 / athena.command_hz)
    commands = []
    for k in range(150):
        target = athena.upper if (k // 20) % 2 else athena.lower
        commands.append(guard.step(target, float(np.sum(h[: k + 1])), elapsed=h[k]))
    assert_within_limits_by_time(np.cumsum(h), np.array(commands), athena, athena.default)


def test_punctual_steps_keep_the_jerk_limit_too(toy: Embodiment) -> None:
    by_index, by_time = SafetyFilter(toy, jerk=True), SafetyFilter(toy, jerk=True)
    by_time.reset(toy.default, by_time=True)
    for k in range(150):
        target = toy.upper if (k // 30) % 2 else toy.lower
        expected = by_index.step(target, k / 100)
        np.testing.assert_allclose(by_time.step(target, k / 100, elapsed=0.01), expected, rtol=0, atol=1e-12)


def test_a_guard_approves_where_a_step_of_any_length_ends(toy: Embodiment) -> None:
    def no_further(pose: Array) -> str:
        return "collision" if pose[0] > 0.5 else ""

    rng = np.random.default_rng(2)
    guard = SafetyFilter(toy, guards=[no_further], fallback=FallbackPolicy(hold_s=0.0))
    guard.reset(toy.default, by_time=True)
    farthest = 0.0
    for k, h in enumerate(intervals(rng, 400, 0.01)):
        command = guard.step([1.4, 0.3, 0.1], k * 0.01, elapsed=h)
        if k % 3 == 0:
            command = guard.retime(h + 0.03)
        farthest = max(farthest, float(command[0]))
    assert 0.4 < farthest <= 0.5 + 1e-9


class FakeClock:
    """Time that passes when somebody looks, sleeps or is held up."""

    def __init__(self) -> None:
        self.t, self.looked = 100.0, 0

    def now(self) -> float:
        self.t += 1e-6
        self.looked += 1
        return self.t

    def sleep(self, seconds: float) -> None:
        self.t += seconds + 8e-5  # late, as the kernel is


@pytest.mark.parametrize("hiccup", [0.0, 0.003, 0.012, 0.4])
def test_no_command_follows_another_within_a_period(hiccup: float) -> None:
    clock, period, stamps = FakeClock(), 0.005, []
    pacer = Pacer(period, clock.now, clock.sleep)
    for k in range(200):
        planned = pacer.next()
        if k % 40 == 20:
            clock.t += hiccup
        while (longer := pacer.arrive()) is not None:
            planned = longer
        pacer.stamp()
        pacer.given()
        assert abs(pacer.since - planned) <= ON_TIME + 4e-6
        stamps.append(pacer.last)
    gaps = np.diff(stamps)
    assert gaps.min() >= period - 1e-9
    late = [19, 59, 99, 139, 179]
    on_time = np.delete(gaps, late)
    assert on_time.max() <= period + ON_TIME + 2e-6
    if hiccup > period:
        np.testing.assert_allclose(gaps[late], hiccup + LEAD, atol=2e-4)
        assert pacer.overruns == 5


def test_the_loop_without_a_filter_keeps_a_period_after_an_overrun() -> None:
    period, stamps = 0.004, []
    pacer = Pacer(period)
    for k in range(60):
        if k % 20 == 10:
            time.sleep(0.011)
        stamps.append(time.perf_counter())
        pacer.wait()
    assert np.diff(stamps).min() >= period - 1e-5


class PausedClock:
    """Simulated time: each look costs 1 us, and the look numbered `at` finds that `pause` has passed before it."""

    def __init__(self, at: int, pause: float) -> None:
        self.t, self.looks, self.at, self.pause = 0.0, 0, at, pause

    def __call__(self) -> float:
        self.looks += 1
        self.t += 1e-6 + (self.pause if self.looks == self.at else 0.0)
        return self.t

    def sleep(self, duration: float) -> None:
        self.t += duration


@pytest.mark.parametrize("pause", [6e-5, 0.003])
def test_no_pause_makes_a_stamp_later_than_its_command_was_made_for(pause: float) -> None:
    """Wherever the machine pauses: the stamp is the slot's, a later slot is told, or the stamp is marked as a bound."""
    period = 0.01
    marked = told = 0
    for at in range(1, 700):
        clock = PausedClock(at, pause)
        pacer = Pacer(period, clock, clock.sleep)
        for _ in range(2):
            made_for = pacer.next()
            while (longer := pacer.arrive()) is not None:
                made_for, told = longer, told + 1
            pacer.stamp()
            pacer.given()
            if pacer.interrupted:
                marked += 1
                break
            assert abs(pacer.since - made_for) <= ON_TIME
    assert marked
    assert told
