"""The safety filter's theorem, tested as one: any input, every limit, always a stop; nothing where nothing is wrong."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike

from athena_vla import embodiment
from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.interventions import JsonLines
from athena_vla.control.jerk import JerkLimitedSet
from athena_vla.control.limits import StoppableSet
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment
from athena_vla.errors import SafetyError

ROBOTS = ("toy", "athena", "unitree_g1_23dof")
TOLERANCE = 1e-9


def assert_within_limits(outputs: np.ndarray, start: np.ndarray, robot: Embodiment, jerk: bool = False) -> None:
    """Position, velocity, acceleration (and jerk) of consecutive outputs at the command rate, from rest at `start`."""
    rate = robot.command_hz
    path = np.concatenate([start[None], start[None], start[None], outputs])
    velocity = np.diff(path, axis=0) * rate
    acceleration = np.diff(velocity, axis=0) * rate
    assert np.isfinite(outputs).all()
    assert (outputs >= robot.lower - TOLERANCE).all()
    assert (outputs <= robot.upper + TOLERANCE).all()
    assert (np.abs(velocity) <= robot.max_velocity + TOLERANCE).all()
    assert (np.abs(acceleration) <= robot.max_acceleration + TOLERANCE).all()
    if jerk:
        assert (np.abs(np.diff(acceleration, axis=0)) * rate <= robot.max_jerk + TOLERANCE).all()


def stop_distance(velocity: float, step: float, dt: float) -> float:
    """Distance of the hardest braking in discrete time, by doing it."""
    travelled, speed = 0.0, abs(velocity)
    while speed > 0:
        speed = max(speed - step, 0.0)
        travelled += speed * dt
    return travelled


def assert_can_stop(guard: SafetyFilter) -> None:
    """An independent witness that a stop inside the limits exists: brake joint by joint, in a plain loop."""
    robot, dt = guard.embodiment, 1 / guard.rate_hz
    for j, (q, v) in enumerate(zip(guard.position, guard.velocity, strict=True)):
        end = q + math.copysign(stop_distance(v, robot.max_acceleration[j] * dt, dt), v)
        assert robot.lower[j] - TOLERANCE <= end <= robot.upper[j] + TOLERANCE, robot.joint_names[j]


Target = Callable[[int, np.random.Generator, Embodiment, np.ndarray], ArrayLike | None]


def random_walk(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    return q + rng.normal(scale=0.05, size=len(q))


def bang_bang(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    return np.where((k // rng.integers(3, 40)) % 2 == 0, robot.lower - 1, robot.upper + 1)


def huge(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    return rng.choice([-1e308, 1e308, 1e17, -5e-324, 0.0], size=len(q))


def poisoned(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    target = rng.uniform(robot.lower, robot.upper)
    target[rng.integers(len(q))] = rng.choice([np.nan, np.inf, -np.inf])
    return target if k % 3 else rng.uniform(robot.lower, robot.upper)


def dropped(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    return None if (k // 70) % 2 else rng.uniform(robot.lower, robot.upper)


def grazing(k: int, rng: np.random.Generator, robot: Embodiment, q: np.ndarray) -> ArrayLike | None:
    """Full speed at a limit, then away from it in the last moment."""
    near = np.abs(robot.upper - q) < rng.uniform(0, 0.3, size=len(q))
    return np.where(near, robot.lower, robot.upper)


@pytest.mark.parametrize("robot_name", ROBOTS)
@pytest.mark.parametrize("jerk", [False, True])
@pytest.mark.parametrize("attack", [random_walk, bang_bang, huge, poisoned, dropped, grazing])
def test_theorem_under_attack(robot_name: str, jerk: bool, attack: Target) -> None:
    robot = embodiment.load(robot_name)
    steps = 60 if jerk and robot_name == "unitree_g1_23dof" else 200 if jerk else 800
    rng = np.random.default_rng(5)
    guard = SafetyFilter(robot, rate_hz=robot.command_hz, jerk=jerk)
    start = rng.uniform(robot.lower, robot.upper)
    guard.reset(start)
    clock = 0.0
    outputs = []
    for k in range(steps):
        clock += rng.choice([0.0, 1.0, 1.0, 1.0, -3.0, 50.0]) / robot.command_hz if k % 5 == 0 else 1 / robot.command_hz
        measured = (None, "near", "far", "nan")[int(rng.integers(4))]
        pose = {None: None, "near": guard.position, "far": guard.position + 1e9, "nan": guard.position * np.nan}[
            measured
        ]
        time = [clock, np.nan, np.inf][rng.choice(3, p=[0.98, 0.01, 0.01])]
        outputs.append(guard.step(attack(k, rng, robot, guard.position), time, pose))
        if not jerk and k % 20 == 0:
            assert_can_stop(guard)
    assert_within_limits(np.array(outputs), start, robot, jerk)


@settings(max_examples=60, deadline=None)
@given(
    start=arrays(np.float64, 3, elements=st.floats(-0.2, 0.8)),
    targets=arrays(np.float64, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(width=64)),
    clock=st.lists(st.floats(), min_size=60, max_size=60),
    jerk=st.booleans(),
)
def test_theorem_for_any_floats(start: np.ndarray, targets: np.ndarray, clock: list[float], jerk: bool) -> None:
    robot = embodiment.load("toy")
    guard = SafetyFilter(robot, rate_hz=robot.command_hz, jerk=jerk)
    guard.reset(start)
    outputs = np.array([guard.step(row, t) for row, t in zip(targets, clock, strict=False)])
    assert_within_limits(outputs, start, robot, jerk)
    if not jerk:
        assert_can_stop(guard)


@pytest.mark.parametrize("jerk", [False, True])
def test_stopping_at_any_moment_stays_inside(toy: Embodiment, jerk: bool) -> None:
    """Not the formula's word for it: the filter itself is stopped from random states and comes to rest inside."""
    rng = np.random.default_rng(8)
    guard = SafetyFilter(toy, jerk=jerk, fallback=FallbackPolicy(hold_s=0.0, braking=1.0))
    for _ in range(10):
        guard.reset(rng.uniform(toy.lower, toy.upper))
        start = guard.position
        outputs = [guard.step(bang_bang(k, rng, toy, guard.position), k / 100) for k in range(rng.integers(10, 150))]
        outputs += [guard.step(None, 2.0 + k / 100) for k in range(80)]
        assert np.abs(guard.velocity).max() < 1e-9
        assert_within_limits(np.array(outputs), start, toy, jerk)


def fastest_that_stops_within(distance: float, step: float, dt: float) -> float:
    """By bisection on simulated stops: the largest speed u with u dt plus its braking distance inside `distance`."""
    low, high = 0.0, 10.0  # more than any speed that matters to the toy
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle * dt + stop_distance(middle, step, dt) <= distance else (low, middle)
    return low


class Oracle:
    """One joint in plain arithmetic: the admissible velocity nearest to the wish, by brute force."""

    def __init__(self, robot: Embodiment, j: int) -> None:
        self.robot, self.j, self.dt = robot, j, 1 / robot.command_hz
        self.q = self.before = float(robot.default[j])
        self.v, self.late = 0.0, False

    def follow(self, target: float) -> float:
        robot, j, dt = self.robot, self.j, self.dt
        step, top = robot.max_acceleration[j] * dt, robot.max_velocity[j]
        target = min(max(target, robot.lower[j]), robot.upper[j])
        wish = (target - self.q) / dt
        if self.late:  # close in without overshooting, in the frame of the moving target
            drift = min(max((target - self.before) / dt, -top), top)
            away = target - drift * dt - self.q
            speed = fastest_that_stops_within(abs(away), step, dt)
            wish = min(max(wish, drift - speed), drift + speed)
        above = fastest_that_stops_within(robot.upper[j] - self.q, step, dt)
        below = fastest_that_stops_within(self.q - robot.lower[j], step, dt)
        chosen = min(max(wish, -below, -top, self.v - step), above, top, self.v + step)
        q = self.q + chosen * dt
        self.late, self.before = abs(q - target) > 1e-14, target
        self.q, self.v = q, chosen
        return q


def test_agrees_with_a_slow_independent_oracle() -> None:
    robot = embodiment.load("toy")
    guard = SafetyFilter(robot, rate_hz=robot.command_hz)
    oracles = [Oracle(robot, j) for j in range(3)]
    rng = np.random.default_rng(3)
    guard.reset(robot.default)
    target = robot.default.copy()
    speed = np.zeros(3)
    for k in range(150):
        if rng.random() < 0.1:
            target = rng.uniform(robot.lower - 0.5, robot.upper + 0.5)
            speed = rng.choice([0.0, 1.0]) * rng.normal(size=3) * robot.max_velocity * 0.5
        target = target + speed / robot.command_hz
        # All joints share the flag that some joint was late.
        late = any(o.late for o in oracles)
        for o in oracles:
            o.late = late
        expected = [o.follow(x) for o, x in zip(oracles, target, strict=True)]
        np.testing.assert_allclose(guard.step(target, k / robot.command_hz), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("jerk", [False, True])
@pytest.mark.parametrize("moving", [0.0, 0.5])
def test_a_jump_of_the_target_is_not_overshot(athena: Embodiment, jerk: bool, moving: float) -> None:
    guard = SafetyFilter(athena, jerk=jerk)
    start, jump = athena.default, 0.4 * np.minimum(athena.upper - athena.default, 1.0)
    speed = moving * 0.2 * (athena.upper - athena.default - jump)
    distances = []
    for k in range(400):
        target = start + jump + speed * (k / 200 if k < 200 else 1.0)
        distances.append(target - guard.step(target, k / 200))
    overshoot = -np.min(np.array(distances) / jump)
    assert overshoot < (0.05 if jerk else 0.005)
    assert np.abs(distances[-1]).max() < 1e-6


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_cheap_certificate_implies_the_full_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for robot in (embodiment.load("toy"), embodiment.load("athena")):
        inner = StoppableSet(robot.lower, robot.upper, robot.max_velocity, robot.max_acceleration, robot.command_hz)
        limited = JerkLimitedSet(inner, robot.max_jerk)
        q = rng.uniform(robot.lower, robot.upper)
        v = rng.uniform(-1, 1, len(q)) * robot.max_velocity * rng.choice([0.01, 0.3, 1.0])
        a = rng.uniform(-1, 1, len(q)) * robot.max_acceleration * rng.choice([0.0, 0.3, 1.0])
        assert (limited.certify(q, v, a) | ~limited._certain(q, v, a)).all()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), robot_name=st.sampled_from(ROBOTS))
def test_what_passes_the_cheap_bounds_passes_the_exact_ones_unchanged(seed: int, robot_name: str) -> None:
    rng = np.random.default_rng(seed)
    robot = embodiment.load(robot_name)
    bounds = StoppableSet(robot.lower, robot.upper, robot.max_velocity, robot.max_acceleration, robot.command_hz)
    harmless = 0
    q = np.zeros_like(robot.lower)
    for _ in range(40):
        q = rng.uniform(robot.lower, robot.upper)
        reach = np.minimum(bounds.braking(q), bounds.max_velocity)
        v = rng.uniform(-reach[1], reach[0]) * rng.choice([0.0, 0.3, 1.0])
        # Wishes up to a little more than what is possible: many on the border of one bound or another.
        target = q + (v + rng.uniform(-1.02, 1.02) * bounds.velocity_step) / robot.command_hz
        if bounds.harmless(q, v, target, np.clip(target, robot.lower, robot.upper)):
            harmless += 1
            wish = (target - q) * robot.command_hz
            np.testing.assert_array_equal(bounds.choose(q, v, wish), wish)
    if robot_name == "toy":
        assert harmless > 0
    bad = np.where(np.arange(len(robot.joints)) == 0, rng.choice([np.nan, np.inf, -np.inf, 1e308]), q)
    assert not bounds.harmless(q, np.zeros_like(q), bad, np.clip(bad, robot.lower, robot.upper))


def smooth_demonstration(robot: Embodiment, seconds: float) -> np.ndarray:
    """A recording inside all limits, jerk included: slow sines around the middle, starting from rest."""
    t = np.arange(1, int(seconds * robot.command_hz) + 1)[:, None] / robot.command_hz
    middle, room = (robot.lower + robot.upper) / 2, (robot.upper - robot.lower) / 2
    w = 2 * np.pi * np.linspace(0.1, 0.4, len(robot.joints))
    amplitude = np.minimum.reduce(
        [0.98 * room, 0.9 * robot.max_velocity / w, 0.4 * robot.max_acceleration / w**2, 0.2 * robot.max_jerk / w**3]
    )
    ramp = np.minimum(t / 2.0, 1.0)
    ramp = ramp**4 * (35 - 84 * ramp + 70 * ramp**2 - 20 * ramp**3)  # three derivatives vanish at both ends
    return middle + ramp * amplitude * np.sin(w * t)


@pytest.mark.parametrize("robot_name", ROBOTS)
@pytest.mark.parametrize("jerk", [False, True])
def test_changes_nothing_when_nothing_is_wrong(robot_name: str, jerk: bool) -> None:
    robot = embodiment.load(robot_name)
    demonstration = smooth_demonstration(robot, 3.0)
    guard = SafetyFilter(robot, rate_hz=robot.command_hz, jerk=jerk)
    guard.reset((robot.lower + robot.upper) / 2)
    for k, row in enumerate(demonstration):
        np.testing.assert_array_equal(guard.step(row, k / robot.command_hz), row)
    assert not guard.interventions


def test_a_trajectory_at_the_limits_passes(toy: Embodiment) -> None:
    """Full acceleration, full speed, full braking onto the very limit: sampled bang-bang motion is not touched."""
    a, top, dt = toy.max_acceleration, toy.max_velocity, 1 / toy.command_hz
    ramp = np.ceil(top / (a * dt)).astype(int)
    speed = np.zeros((400, 3))
    for j in range(3):
        steps = min(int((toy.upper[j] - toy.lower[j]) / (top[j] * dt)) - ramp[j] - 3, 300)
        up = np.minimum(np.arange(1, ramp[j] + 1) * a[j] * dt, top[j])
        profile = np.concatenate([up, np.full(max(steps, 0), top[j]), up[::-1]])
        speed[: len(profile), j] = profile
    path = toy.upper - np.cumsum(speed[::-1], axis=0)[::-1] * dt + speed * dt  # ends exactly at the upper limit
    start = path[0] - speed[0] * dt
    assert (start >= toy.lower).all()
    guard = SafetyFilter(toy)
    guard.reset(start)
    outputs = np.array([guard.step(row, k * dt) for k, row in enumerate(path)])
    np.testing.assert_allclose(outputs, path, rtol=0, atol=1e-12)
    assert not guard.interventions


@pytest.mark.parametrize("jerk", [False, True])
def test_filtering_twice_is_filtering_once(toy: Embodiment, jerk: bool) -> None:
    rng = np.random.default_rng(0)
    first, second = (SafetyFilter(toy, jerk=jerk) for _ in range(2))
    target = toy.default
    for k in range(600):
        if rng.random() < 0.05:
            target = rng.uniform(toy.lower - 1, toy.upper + 1)
        once = first.step(target, k / 100)
        np.testing.assert_allclose(second.step(once, k / 100), once, rtol=0, atol=1e-12)
    assert not second.interventions


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), gentle=st.booleans(), nan=st.booleans())
def test_a_chunk_equals_its_steps(seed: int, gentle: bool, nan: bool) -> None:
    toy = embodiment.load("toy")
    rng = np.random.default_rng(seed)
    scale = 0.002 if gentle else 0.2
    together, one_by_one = SafetyFilter(toy), SafetyFilter(toy)
    for block in range(4):
        rows = np.cumsum(rng.normal(scale=scale, size=(20, 3)), axis=0) + together.position
        if nan:
            rows[rng.integers(20), rng.integers(3)] = np.nan
        t = block * 0.2
        a = together.chunk(rows, t)
        b = np.array([one_by_one.step(row, t + i * 0.01) for i, row in enumerate(rows)])
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(together.velocity, one_by_one.velocity)
    assert together.interventions == one_by_one.interventions
    assert together.steps == one_by_one.steps


def test_the_fallback_policy_level_by_level(toy: Embodiment) -> None:
    safe = (0.3, 0.3, 0.3)
    guard = SafetyFilter(toy, fallback=FallbackPolicy(hold_s=0.05, safe_after_s=1.0, safe_pose=safe))
    for k in range(60):
        guard.step(np.array([0.012 * k, 0.0, 0.0]), k / 100)
    levels, poses = [], [guard.position]
    for k in range(60, 700):
        poses.append(guard.step(None, k / 100))
        levels.append(guard.level)
    assert list(dict.fromkeys(levels)) == ["hold", "stop", "safe_pose"]
    assert levels.count("hold") == 5
    assert levels.count("stop") == 95
    stopped = poses[1 + levels.index("safe_pose") - 1]
    assert np.abs(np.array(poses[60:100]) - stopped).max() < 1e-12  # stood still well before the safe pose
    np.testing.assert_allclose(poses[-1], safe, atol=1e-9)
    assert np.abs(np.diff(poses[101:], axis=0)).max() * 100 <= 0.1 * toy.max_velocity.max() + 1e-9
    guard.step(np.array(safe), 7.0)
    assert guard.level == "follow"  # a good target ends the fault at once
    assert guard.interventions["no_target"] == 640


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("not_finite", lambda g, q: g.step(q * np.nan, 0.01)),
        ("no_target", lambda g, q: g.step(None, 0.01)),
        ("clock", lambda g, q: g.step(q, -1.0)),
        ("clock", lambda g, q: g.step(q, 9.0)),
        ("clock", lambda g, q: g.step(q, float("nan"))),
        ("clock", lambda g, q: [g.step(q, 0.0) for _ in range(26)]),
        ("stale", lambda g, q: g.step(q, 0.01, target_time=-0.5)),
        ("stale", lambda g, q: g.step(q, 0.01, target_time=0.5)),
        ("tracking", lambda g, q: g.step(q, 0.01, q + 1.5)),
        ("measurement", lambda g, q: g.step(q, 0.01, q * np.nan)),
        ("measurement", lambda g, q: g.step(q, 0.01, [1.0])),
        ("position", lambda g, q: g.step([9.0, 0, 0], 0.01)),
        ("velocity", lambda g, q: [g.step([0.03 * (k + 1), 0, 0], k / 100) for k in range(40)]),
        ("acceleration", lambda g, q: g.step([0.01, 0, 0], 0.01)),
        ("braking", lambda g, q: [g.step([-0.9 + 0.02 * k, 0, 0], k / 100) for k in range(200)]),
    ],
)
def test_every_intervention_has_a_name(
    toy: Embodiment, kind: str, act: Callable[[SafetyFilter, np.ndarray], object]
) -> None:
    guard = SafetyFilter(toy)
    guard.step(toy.default, 0.0)
    act(guard, toy.default)
    assert guard.interventions[kind] > 0, guard.interventions
    assert sum(guard.interventions.values()) == sum(sum(c.values()) for c in guard.interventions_by_joint.values())


def test_a_slow_or_absent_fault_does_not_stop_the_robot(toy: Embodiment) -> None:
    guard = SafetyFilter(toy)
    for k in range(40):  # a caller at a quarter of the rate whose clock stands still now and then
        guard.step(toy.default, (k // 3) * 0.04, toy.default + 0.2)
    assert not guard.interventions
    assert guard.level == "follow"


def test_reset_outside_the_limits_is_moved_inside_and_counted(toy: Embodiment) -> None:
    guard = SafetyFilter(toy)
    guard.reset([2.0, 0.0, -0.3])
    np.testing.assert_array_equal(guard.position, [1.5, 0.0, -0.2])
    assert guard.interventions_by_joint == {"reset": {"base": 1, "finger": 1}}


def test_margin_shrinks_the_limits(toy: Embodiment) -> None:
    guard = SafetyFilter(toy, margin=0.1)
    q = guard.position
    for k in range(400):
        q = guard.step(toy.upper, k / 100)
    np.testing.assert_allclose(q, toy.upper - 0.1, atol=1e-12)


def test_a_guard_stops_the_robot_in_a_pose_it_approved(toy: Embodiment) -> None:
    wall = 0.5

    def no_further(pose: np.ndarray) -> str:
        return "collision" if pose[0] > wall else ""

    guard = SafetyFilter(toy, guards=[no_further])
    q = guard.position
    for k in range(300):
        q = guard.step([1.4, 0.3, 0.1], k / 100)
    assert 0.4 < q[0] <= wall + 1e-9
    assert guard.interventions["collision"] > 0
    guard.step([0.0, 0.0, 0.0], 3.0)
    assert guard.level == "follow"


def test_events_are_written_as_json_lines(toy: Embodiment, tmp_path) -> None:
    with JsonLines(tmp_path / "log.jsonl") as log:
        guard = SafetyFilter(toy, log=log)
        guard.step([9.0, 0.0, 0.0], 0.0)
        guard.step(None, float("nan"))
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["kind"] for e in events] == ["position", "acceleration", "no_target"]
    assert events[0]["joints"].keys() == {"base"}
    assert events[2]["t"] is None


def test_summary_counts_steps(toy: Embodiment) -> None:
    guard = SafetyFilter(toy)
    for k in range(10):
        guard.step([0.0 if k % 2 else 9.0, 0.0, 0.0], k / 100)
    summary = guard.summary()
    assert summary["steps"] == 10
    assert summary["touched_steps"] == summary["rate"] * 10
    assert summary["by_joint"]["position"] == {"base": 5}


@pytest.mark.parametrize("target", [[0.0, 0.0], np.zeros((1, 3)), 1.0, "abc", [[1], [2, 3]], []])
def test_a_wrong_shape_raises_and_changes_nothing(toy: Embodiment, target: object) -> None:
    guard = SafetyFilter(toy)
    guard.step([0.001, 0, 0], 0.0)
    before = guard.position, guard.velocity, guard.steps
    with pytest.raises(SafetyError, match="toy"):
        guard.step(target, 0.01)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SafetyError):
        guard.chunk([[0.0]] if isinstance(target, np.ndarray) else target, 0.01)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(before[0], guard.position)
    np.testing.assert_array_equal(before[1], guard.velocity)
    assert guard.steps == before[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_hz": 0.0},
        {"rate_hz": -1.0},
        {"rate_hz": float("nan")},
        {"rate_hz": 1e9},
        {"margin": -0.1},
        {"margin": 0.6},
        {"margin": float("nan")},
        {"stale_after": 0.0},
        {"fallback": FallbackPolicy(safe_pose=(0.0,))},
        {"fallback": FallbackPolicy(safe_pose=(9.0, 0.0, 0.0))},
        {"max_tracking_error": -1.0},
    ],
)
def test_construction_refuses(toy: Embodiment, wrong: dict) -> None:
    with pytest.raises(SafetyError):
        SafetyFilter(toy, **wrong)


@pytest.mark.parametrize(
    "wrong", [{"braking": 0.0}, {"braking": 1.5}, {"safe_speed": 0.0}, {"hold_s": -1.0}, {"safe_after_s": 0.0}]
)
def test_the_fallback_policy_refuses(wrong: dict) -> None:
    with pytest.raises(SafetyError, match="fallback policy"):
        FallbackPolicy(**wrong)


def test_reset_refuses_what_is_no_pose(toy: Embodiment) -> None:
    guard = SafetyFilter(toy)
    for pose in ([0.0], [np.nan, 0, 0]):
        with pytest.raises(SafetyError):
            guard.reset(pose)


@settings(max_examples=200, deadline=None)
@given(
    room=st.floats(0, 5),
    velocity=st.floats(0.1, 40),
    acceleration=st.floats(0.5, 500),
    rate=st.sampled_from([25.0, 100.0, 200.0, 500.0, 1000.0]),
)
def test_braking_bound_is_exact(room: float, velocity: float, acceleration: float, rate: float) -> None:
    """From the bound the simulated stop just fits; a little above it does not."""
    one = np.array([1.0])
    bounds = StoppableSet(-10 * one, 10 * one, velocity * one, acceleration * one, rate)
    q = 10.0 - room
    speed = float(bounds.braking(np.array([q]))[0, 0])
    dt, step = 1 / rate, acceleration / rate

    def end(u: float) -> float:
        return q + u * dt + stop_distance(u, step, dt)

    assert end(speed) <= 10.0 + 1e-9
    assert end(speed * 1.001 + 1e-6) > 10.0 - 1e-9


def test_bad_limits_are_one_error_at_construction(toy: Embodiment) -> None:
    for change in ({"lower": 1.0, "upper": -1.0}, {"max_velocity": 0.0}, {"max_acceleration": float("nan")}):
        with pytest.raises(embodiment.InvalidEmbodiment, match="base"):
            replace(toy, joints=(replace(toy.joints[0], **change), *toy.joints[1:]))


@pytest.mark.parametrize(
    ("rate", "velocity", "acceleration", "jerk"), [(500.0, 2.1, 1.4, 10.0), (1000.0, 1.0, 0.5, 2.0)]
)
def test_a_jerk_stage_that_could_not_keep_up_is_refused(
    toy: Embodiment, rate: float, velocity: float, acceleration: float, jerk: float
) -> None:
    limits = {"max_velocity": velocity, "max_acceleration": acceleration, "max_jerk": jerk}
    slow = replace(toy, control_hz=rate, command_hz=rate, joints=tuple(replace(j, **limits) for j in toy.joints))
    SafetyFilter(slow)
    with pytest.raises(SafetyError, match="commands from no to full acceleration with its jerk limit"):
        SafetyFilter(slow, jerk=True)


@pytest.mark.parametrize(
    ("name", "rate"), [("athena", 50), ("athena", 200), ("athena", 400), ("unitree_g1_23dof", 500)]
)
def test_a_stop_is_certified_exactly_where_the_braking_law_makes_it(name: str, rate: float) -> None:
    """The certificate skips what is known of the law; here every step of it is run until all joints are at rest."""
    limits = SafetyFilter(embodiment.load(name), jerk=True, rate_hz=rate)._jerk
    assert limits is not None
    rng = np.random.default_rng(0)
    shape = 2000, len(limits.step)
    near = limits._upper - rng.exponential(0.01, shape)
    q = start = np.where(rng.random(shape) < 0.5, near, rng.uniform(limits._lower, limits._upper, shape))
    v = rng.uniform(-1, 1, shape) * limits._max_velocity * rng.choice([1, 0.1, 0.01, 0], shape)
    a = rng.uniform(-1, 1, shape) * limits.max_acceleration * rng.choice([1, 0.1, 0], shape)
    certified = limits.certify(q, v, a)
    lowest = highest = start
    fastest = np.abs(v)
    for _ in range(limits._horizon + 50):
        n = np.floor(np.sqrt(2.0 * np.abs(v) / (limits.step * limits.dt) + 0.25) + 0.5)
        wish = np.minimum(np.abs(v) / n / limits.dt + 0.5 * (n - 1.0) * limits.step, limits.max_acceleration)
        a = np.clip(-np.copysign(wish, v), a - limits.step, a + limits.step)
        v = v + a * limits.dt
        q = q + v * limits.dt
        lowest, highest, fastest = np.minimum(lowest, q), np.maximum(highest, q), np.maximum(fastest, np.abs(v))
    assert np.abs(v).max() < 1e-9
    inside = (highest <= limits._upper) & (lowest >= limits._lower) & (fastest <= limits._max_velocity)
    assert 0.1 < inside.mean() < 0.99
    assert np.array_equal(certified, inside)
