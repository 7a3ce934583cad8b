"""The filter's promise for channels, by a witness of its own: differences of what came out, taken here."""

import dataclasses
import time

import numpy as np
import pytest

from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.run.runtime_config import RuntimeConfig, resolve_owners
from athena_vla.control.runtime import Runtime, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import SafetyError, UnknownName
from channels import GRIP, HEIGHT, TOKEN, YAW_RATE, robot

TOLERANCE = 1e-9  # the filter's promise; in each column's unit, unit/s and unit/s^2
NAMES = ("base", "shoulder", "finger", "base_height", "yaw_rate", "grip")
# Written out, not read from the robot: joints from toy.toml, channels from channels.py.
LOWER = np.array([-1.5, -1.0, -0.2, 0.4, -0.6, 0.0])
UPPER = np.array([1.5, 1.2, 0.8, 0.8, 0.8, 1.0])
RATE = np.array([2.0, 2.0, 4.0, 0.25, 1.2, 4.0])
DERIVATIVE = np.array([10.0, 10.0, 40.0, 1.5, 8.0, 60.0])
START = np.array([0.0, 0.0, 0.0, 0.7, 0.0, 1.0])


def excess(commands: np.ndarray, periods: np.ndarray) -> tuple[float, float, float]:
    """By how much value, rate and its derivative go beyond their limits; at rest for one period before the first."""
    rates = np.diff(commands, axis=0) / periods[:, None]
    before = np.concatenate([np.zeros((1, commands.shape[1])), rates[:-1]])
    # The second divided difference of three stamps: the change of the mean rate over the mean of the two periods.
    between = (periods + np.concatenate([[0.01], periods[:-1]])) / 2
    bend = np.abs(rates - before) / between[:, None]
    outside = np.maximum(LOWER - commands, commands - UPPER).max()
    return float(outside), float((np.abs(rates) - RATE).max()), float((bend - DERIVATIVE).max())


def hostile(rng: np.random.Generator, steps: int) -> list[np.ndarray | None]:
    """Jumps far beyond the limits, stretches of holding, of nothing, of NaN."""
    out: list[np.ndarray | None] = []
    while len(out) < steps:
        kind, length = rng.integers(5), int(rng.integers(1, 60))
        middle, half = (LOWER + UPPER) / 2, (UPPER - LOWER) / 2
        target = middle + half * rng.uniform(-4, 4, len(middle))
        if kind == 0:
            out += [None] * length
        elif kind == 1:
            out += [np.where(rng.random(len(middle)) < 0.3, np.nan, target)] * length
        elif kind == 2:
            out += [middle + half * rng.uniform(-1, 1, len(middle)) for _ in range(length)]
        else:
            out += [target] * length
    return out[:steps]


def test_the_columns_of_the_filter_are_joints_then_commanded_channels() -> None:
    columns = SafetyFilter(robot()).columns
    assert columns.names == NAMES
    assert np.array_equal(columns.lower, LOWER)
    assert np.array_equal(columns.upper, UPPER)
    assert np.array_equal(columns.max_velocity, RATE)
    assert np.array_equal(columns.max_acceleration, DERIVATIVE)
    assert np.array_equal(columns.rest, START)


@pytest.mark.parametrize("jerk", [False, True])
def test_every_column_keeps_value_rate_and_derivative_by_index(jerk: bool) -> None:
    body = robot()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        guard = SafetyFilter(body, jerk=jerk)
        commands, t = [START], 0.0
        for target in hostile(rng, 1500):
            t += 1 / body.command_hz
            commands.append(guard.step(target, t))
        rows = np.array(commands)
        assert max(excess(rows, np.full(len(rows) - 1, 1 / body.command_hz))) <= TOLERANCE
        assert (np.ptp(rows, axis=0) > 0.5 * (UPPER - LOWER)).all()  # each column was driven across its range


@pytest.mark.parametrize("jerk", [False, True])
def test_every_column_keeps_them_by_time_whatever_the_periods(jerk: bool) -> None:
    """Steps from an eighth of a period to thirty periods; the derivative is that of any three consecutive stamps."""
    body = robot()
    for seed in range(3):
        rng = np.random.default_rng(10 + seed)
        guard = SafetyFilter(body, jerk=jerk)
        guard.reset(START, by_time=True)
        commands, periods, t = [START], [], 0.0
        for target in hostile(rng, 1200):
            scale = rng.choice([0.126, 0.5, 1.0, 1.0, 1.0, 3.0, 30.0])
            period = float(scale / body.command_hz)
            t += period
            commands.append(guard.step(target, t, elapsed=period))
            periods.append(period)
        assert max(excess(np.array(commands), np.array(periods))) <= TOLERANCE


@pytest.mark.parametrize("by_time", [False, True])
@pytest.mark.parametrize("jerk", [False, True])
def test_with_nothing_to_follow_a_velocity_goes_to_zero_a_height_holds_and_a_grip_goes_to_its_default(
    jerk: bool, by_time: bool
) -> None:
    body = robot()
    guard = SafetyFilter(body, jerk=jerk)
    guard.reset(START, by_time=by_time)
    target = np.array([0.3, 0.2, 0.1, 0.55, 0.6, 0.2])
    t, rows = 0.0, [START]
    for k in range(2000):
        t += 1 / body.command_hz
        rows.append(guard.step(target if k < 300 else None, t))
    rows = np.array(rows)
    assert np.allclose(rows[300], target, atol=1e-9)  # it was there, walking in a circle
    assert max(excess(rows, np.full(len(rows) - 1, 1 / body.command_hz))) <= TOLERANCE
    assert rows[-1, 4] == 0.0
    assert rows[-1, 5] == 1.0
    assert rows[-1, 3] == pytest.approx(0.55, abs=1e-9)
    assert np.array_equal(rows[-1], rows[-200])
    assert guard.stopped
    fast = np.flatnonzero(rows[:, 4] == 0.0)
    reached = fast[fast > 300][0]
    # From 0.6 rad/s at 1.2 rad/s^2 half a second is the least, beside what holding (0.1 s) and its derivative take.
    assert 0.5 <= (reached - 300) / body.command_hz <= 1.5
    assert (np.diff(rows[301:, 4]) <= 1e-12).all()  # never the other way, never past zero
    assert rows[:, 4].min() >= 0.0


@pytest.mark.parametrize("fault", ["stopped", "heartbeat", "end", "tracking"])
def test_an_emergency_stop_brings_velocities_to_zero_at_once(fault: str) -> None:
    body = robot()
    guard = SafetyFilter(body)
    target = np.array([0.0, 0.0, 0.0, 0.7, -0.5, 1.0])
    for k in range(200):
        guard.step(target, k / body.command_hz)
    assert guard.position[4] == pytest.approx(-0.5)
    first = guard.step(None, 2.0, fault=fault)
    assert abs(first[4]) < 0.5
    last = first
    for k in range(1, 300):
        last = guard.step(None, 2.0 + k / body.command_hz, fault=fault)
    assert last[4] == 0.0
    assert guard.stopped


def test_at_rest_is_not_stopped_while_a_velocity_is_commanded() -> None:
    """A constant velocity command has no rate, and yet the robot walks."""
    body = robot()
    guard = SafetyFilter(body)
    for k in range(300):
        guard.step(np.array([0.0, 0.0, 0.0, 0.7, 0.5, 1.0]), k / body.command_hz)
    assert guard.at_rest
    assert not guard.stopped
    assert guard.stopping_pose[4] == 0.0


def test_a_guard_that_objects_sees_joints_only_and_velocities_still_go_to_zero() -> None:
    body, seen = robot(), []

    def guard_of(pose: np.ndarray) -> str:
        seen.append(pose.shape)
        return "wall" if pose[0] > 0.5 else ""

    guard = SafetyFilter(body, guards=[guard_of])
    command = guard.position
    for k in range(400):
        command = guard.step(np.array([1.2, 0.0, 0.0, 0.7, 0.5, 1.0]), k / body.command_hz)
    assert set(seen) == {(3,)}
    assert command[0] <= 0.5 + 1e-9
    assert command[4] == 0.0
    assert guard.interventions["wall"] > 0


def test_bring_up_scales_velocities_themselves_and_the_rates_of_other_columns() -> None:
    columns = SafetyFilter(robot(), speed=0.5).columns
    assert (columns.lower[4], columns.upper[4]) == (-0.3, 0.4)
    assert columns.max_velocity[4] == 1.2
    assert columns.max_velocity[3] == 0.125
    assert (columns.lower[3], columns.upper[3]) == (0.4, 0.8)
    margin = SafetyFilter(robot(), margin=0.05).columns
    assert margin.lower[0] == -1.45
    assert margin.lower[3] == 0.4


def test_a_short_vector_is_refused_with_the_names_it_lacks() -> None:
    guard = SafetyFilter(robot())
    with pytest.raises(SafetyError, match=r"base_height, yaw_rate, grip are missing"):
        guard.step(np.zeros(3), 0.01)
    with pytest.raises(SafetyError, match=r"\[n, 6\] \(base, shoulder, finger, base_height"):
        guard.chunk(np.zeros((4, 3)), 0.0)


def test_a_robot_whose_tokens_have_no_limits_yet_is_refused() -> None:
    with pytest.raises(SafetyError, match="token of 'toy' take their limits from training data"):
        SafetyFilter(robot(TOKEN))


def test_owners_of_channels_are_found_by_name() -> None:
    body = robot()
    assert resolve_owners(body, {"yaw_rate": "balance"}) == ("policy",) * 4 + ("balance", "policy")
    with pytest.raises(UnknownName, match="group, joint or channel of 'toy' 'vx'"):
        resolve_owners(body, {"vx": "policy"})
    assert RuntimeConfig(groups=("arm", "grip")).owners_on(body)[2:] == ("locked", "locked", "locked", "policy")


class Body:
    """A robot whose measurements are its last commands; unobserved channels are seen by nobody."""

    def __init__(self, body: Embodiment) -> None:
        self.embodiment, self.commands = body, [START]
        self.image = np.zeros((48, 64, 3), np.uint8)

    @property
    def time(self) -> float:
        return (len(self.commands) - 1) / self.embodiment.command_hz

    def observe(self) -> Observation:
        state = np.append(self.commands[-1][:4], 3.0)  # three joints, the height, a force
        return Observation({"front": self.image}, state, "go", self.time)

    def command(self, positions: np.ndarray, /) -> None:
        self.commands.append(positions.copy())


class Walker:
    """Asks for a height, a turn and a grip, by name and in an order of its own."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def act(self, observation: Observation, /) -> ActionChunk:
        row = [0.5, 0.4, 0.2]  # yaw_rate, grip, base
        return ActionChunk(np.tile(row, (self.rows, 1)), ("yaw_rate", "grip", "base"), 0.1, observation.time)


def test_the_loop_drives_channels_by_name_and_brings_them_to_rest_at_the_end() -> None:
    body = robot()
    sim = Body(body)
    trace = run_episode(sim, Walker(16), SafetyFilter(body), duration=2.0)
    assert trace.joint_names == NAMES
    driven = np.array(sim.commands)
    assert driven[200, 4] == pytest.approx(0.5, abs=1e-6)
    assert driven[200, 5] == pytest.approx(0.4, abs=1e-6)
    assert np.allclose(driven[:, 3], 0.7)  # nobody asked for another height
    assert trace.states.shape[1] == body.state_dim
    assert driven[-1, 4] == 0.0  # the braking phase at the end of the run
    assert driven[-1, 5] == 1.0
    assert max(excess(driven, np.full(len(driven) - 1, 1 / body.command_hz))) <= TOLERANCE


def test_a_chunk_that_ends_stops_the_robot_and_a_new_run_starts_where_channels_were_left() -> None:
    body = dataclasses.replace(robot(), channels=(dataclasses.replace(HEIGHT, observed=False), YAW_RATE, GRIP))
    columns = SafetyFilter(body, fallback=FallbackPolicy(safe_after_s=0.3, safe_pose=(0.1, 0.1, 0.1))).columns
    assert columns.names == NAMES

    class Silent(Walker):
        def act(self, observation: Observation, /) -> ActionChunk:
            rows = np.tile([0.5, 0.6], (4, 1))
            return ActionChunk(rows, ("yaw_rate", "base_height"), 0.1, observation.time)

    class Blind(Body):
        def observe(self) -> Observation:
            return Observation({"front": self.image}, self.commands[-1][:3], "go", self.time)

    guard = SafetyFilter(body, fallback=FallbackPolicy(safe_after_s=0.3, safe_pose=(0.1, 0.1, 0.1)))
    sim = Blind(body)
    run_episode(sim, Silent(4), guard, duration=3.0, config=RuntimeConfig(replan_every=100, latch=False))
    rows = np.array(sim.commands)
    assert max(excess(rows, np.full(len(rows) - 1, 1 / body.command_hz))) <= TOLERANCE
    assert rows[-1, 4] == 0.0
    assert np.allclose(rows[-1, :3], 0.1, atol=1e-6)  # the safe pose is of joints
    left = rows[-1, 3]
    assert left < 0.69  # it went down while it could, and holds there
    again = Blind(body)
    again.commands = [rows[-1]]
    run_episode(again, Silent(4), guard, duration=0.5)
    more = np.array(again.commands)
    assert abs(more[1, 3] - left) <= 0.25 / body.command_hz + 1e-12  # no jump to the default


def test_a_shadow_report_compares_what_is_measured_in_radians_and_leaves_out_the_rest() -> None:
    from athena_vla.control.shadow import ShadowReport

    body = robot()

    class Still(Body):
        """Somebody else keeps it where it is; only time passes."""

        @property
        def time(self) -> float:
            return time.perf_counter() - began

        def observe(self) -> Observation:
            return Observation({"front": self.image}, np.array([0.0, 0.0, 0.0, 0.7, 3.0]), "go", self.time)

    class Asking(Walker):
        def act(self, observation: Observation, /) -> ActionChunk:
            rows = np.tile([0.5, 0.6, 0.2], (self.rows, 1))
            return ActionChunk(rows, ("yaw_rate", "base_height", "base"), 0.1, observation.time)

    began = time.perf_counter()
    runtime = Runtime(Still(body), Asking(4), SafetyFilter(body), RuntimeConfig(shadow=True, replan_every=2))
    trace = runtime.run(1.2, real_time=True)
    report = ShadowReport.of(trace)
    assert report.compared > 0
    assert [n for n, _ in report.worst_joints] == ["base"]
    assert report.worst_joints[0][1] == pytest.approx(0.2)
    assert max(report.mean) == pytest.approx(0.2)
