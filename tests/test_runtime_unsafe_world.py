"""The loop in a world that misbehaves: slow answers, ends in motion, old and impossible observations, stops."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.plausible import implausible, require_plausible, tolerance
from athena_vla.control.runtime import LEVELS, Runtime, RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.trace import Trace
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, ModelError, SafetyError
from test_runtime import Puppet, Wave, check_by_time
from test_safety import assert_within_limits

SPEED = 0.4  # [rad/s] what a plan of `Steady` asks for
STILL = 0.5  # [s] within which a robot must stand still after the end of what it may follow


class Steady:
    """Plans the same speed from wherever the robot is."""

    def __init__(self, body: Embodiment, joint: int = 0, horizon: int = 16) -> None:
        self.body, self.joint, self.horizon, self.calls = body, joint, horizon, 0

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        steps = np.arange(1, self.horizon + 1) / self.body.control_hz
        rows = np.tile(observation.state[self.body.action_index], (self.horizon, 1))
        rows[:, self.joint] += SPEED * steps
        return ActionChunk(
            np.asarray(rows, np.float64), self.body.action_joints, 1 / self.body.control_hz, observation.time
        )


def speeds(trace: Trace, body: Embodiment) -> Array:
    """[n] [rad/s] of the fastest joint, by the time that passed in simulation."""
    return np.abs(np.diff(trace.commands, axis=0)).max(axis=1) * body.command_hz


def last_motion(trace: Trace) -> float:
    """[s] robot clock at the last command that differs from the one before it."""
    moving = np.flatnonzero(np.abs(np.diff(trace.commands, axis=0)).max(axis=1) > 1e-12)
    return float(trace.times[moving[-1] + 1])


@pytest.mark.parametrize("latency", [0.0, 0.05, 0.137, 0.5, 0.7, 1.4, 1.55, 1.6, 1.65, 3.3, 10.0])
@pytest.mark.parametrize("replan", [1, 8])
def test_no_answer_is_so_late_that_the_robot_lunges(toy: Embodiment, latency: float, replan: int) -> None:
    config = RuntimeConfig(replan_every=replan, latency=latency, latch=False)
    start = replace(toy, joints=(replace(toy.joints[0], default=-1.4), *toy.joints[1:]))
    trace = run_episode(Puppet(start), Steady(start), SafetyFilter(start), duration=3 * latency + 5, config=config)
    assert len(trace.chunks) > 0
    assert np.ptp(trace.commands[:, 0]) > 0.3
    assert speeds(trace, toy).max() <= 1.2 * SPEED


@pytest.mark.parametrize("speed", [0.1, 0.5])
def test_a_share_of_the_speed_executes_the_plan_more_slowly(toy: Embodiment, speed: float) -> None:
    trace = run_episode(Puppet(toy), Steady(toy), SafetyFilter(toy, speed=speed), duration=1.5)
    assert speeds(trace, toy).max() <= 1.2 * SPEED * speed
    np.testing.assert_allclose(trace.commands[trace.braking_from - 1, 0], SPEED * speed * 1.5, rtol=0.12)


def test_a_chunk_whose_rows_were_all_executed_is_never_followed(toy: Embodiment) -> None:
    class Late(Steady):
        """Its second answer comes after everything in it was executed, and would lead backwards."""

        def act(self, observation: Observation) -> ActionChunk:
            chunk = super().act(observation)
            return replace(chunk, positions=chunk.positions[:3]) if self.calls == 2 else chunk

    config = RuntimeConfig(replan_every=1, latency=0.5, latch=False)
    trace = run_episode(Puppet(toy), Late(toy, horizon=16), SafetyFilter(toy), duration=2.0, config=config)
    assert any("3 rows were past" in e for e in trace.errors)
    assert len(trace.chunks) == 2
    assert np.diff(trace.commands[:, 0]).min() >= -1e-12


class Bad(Puppet):
    """A driver that raises from some moment on."""

    def __init__(self, body: Embodiment, problem: BaseException, after: float, *, of: str = "observe") -> None:
        super().__init__(body)
        self.problem, self.after, self.of = problem, after, of

    def observe(self) -> Observation:
        if self.of == "observe" and self.time > self.after:
            raise self.problem
        return super().observe()

    def command(self, positions: Array) -> None:
        if self.of == "command" and self.after < self.time < self.after + 0.155:
            self.ticks += 1
            raise self.problem
        super().command(positions)


def ends_at_rest(robot: Puppet, runtime: Runtime, body: Embodiment) -> None:
    trace = runtime.trace
    assert trace is not None
    assert_within_limits(trace.commands, body.default, body)
    assert (trace.commands[-1] == trace.commands[-2]).all()
    np.testing.assert_array_equal(robot.q, trace.commands[-1])
    assert trace.braking_from < len(trace.commands)
    assert trace.events[-1].kind == "end"


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_ends_the_program_first_ends_the_motion(toy: Embodiment, problem: BaseException) -> None:
    robot = Bad(toy, problem, 0.5)
    runtime = Runtime(robot, Steady(toy), SafetyFilter(toy), RuntimeConfig(replan_every=1))
    if isinstance(problem, Exception):
        trace = runtime.run(3.0)
        assert "MemoryError" in trace.errors[0]
        assert LEVELS[trace.levels[trace.braking_from - 1]] == "stop"
    else:
        with pytest.raises(type(problem)):
            runtime.run(3.0)
        ends_at_rest(robot, runtime, toy)
        assert runtime.trace is not None
        assert runtime.trace.ended_by.startswith(type(problem).__name__)


@pytest.mark.parametrize("where", ["until", "act"])
def test_an_exception_of_actor_or_condition_ends_at_rest(toy: Embodiment, where: str) -> None:
    class Broken(Steady):
        def act(self, observation: Observation) -> ActionChunk:
            if where == "act" and observation.time > 0.5:
                raise ModelError("gone")
            return super().act(observation)

    robot = Puppet(toy)

    def until() -> bool:
        if where == "until" and robot.time > 0.5:
            raise ModelError("gone")
        return False

    runtime = Runtime(robot, Broken(toy), SafetyFilter(toy), RuntimeConfig(replan_every=1))
    with pytest.raises(ModelError):
        runtime.run(3.0, until=until)
    ends_at_rest(robot, runtime, toy)


def test_an_unplugged_camera_is_a_missing_observation(toy: Embodiment) -> None:
    robot = Bad(toy, OSError("camera unplugged"), 0.5)
    trace = run_episode(robot, Steady(toy), SafetyFilter(toy), duration=6.0, config=RuntimeConfig(replan_every=4))
    assert trace.ended_by == "duration"
    assert trace.errors[0] == "observation: OSError: camera unplugged"
    assert last_motion(trace) <= 0.5 + 0.5 + STILL  # its last observation, the greatest age, and then


def test_a_command_that_the_driver_refuses_is_tried_again(toy: Embodiment) -> None:
    robot = Bad(toy, OSError("bus off"), 0.5, of="command")
    trace = run_episode(robot, Steady(toy), SafetyFilter(toy), duration=1.5)
    assert "command: OSError: bus off" in trace.errors
    assert LEVELS[trace.levels[trace.braking_from - 1]] == "follow"
    assert trace.interventions["driver"] > 0


def test_a_driver_that_refuses_for_good_ends_the_run_with_a_sentence(toy: Embodiment) -> None:
    class Dead(Puppet):
        def command(self, positions: Array) -> None:
            self.ticks += 1
            raise OSError("no such device")

    with pytest.raises(SafetyError, match="no such device.*emergency stop"):
        run_episode(Dead(toy), Steady(toy), SafetyFilter(toy), duration=9.0)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_at_rest(toy: Embodiment, name: signal.Signals) -> None:
    robot = Puppet(toy, wall=True)
    runtime = Runtime(robot, Steady(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), name))
    timer.start()
    with pytest.raises(KeyboardInterrupt if name == signal.SIGINT else SystemExit):
        runtime.run(20.0, real_time=True)
    timer.join()
    trace = runtime.trace
    assert trace is not None
    assert trace.ended_by == name.name
    assert (trace.commands[-1] == trace.commands[-2]).all()
    check_by_time(trace, toy)
    assert signal.getsignal(name) in (signal.default_int_handler, signal.SIG_DFL)


class Frozen(Puppet):
    """Shows the same message for ever from some moment on, or shifts its stamps."""

    def __init__(self, body: Embodiment, after: float, shift: Callable[[float], float] | None = None) -> None:
        super().__init__(body)
        self.after, self.shift, self.last = after, shift, None

    def observe(self) -> Observation:
        if self.shift is not None:
            seen = super().observe()
            return replace(seen, time=self.shift(seen.time) if seen.time > self.after else seen.time)
        if self.last is None or self.time <= self.after:
            self.last = super().observe()
        return self.last


@pytest.mark.parametrize("replan", [1, 4, 8])
def test_a_frozen_camera_is_noticed_by_its_stamps(toy: Embodiment, replan: int) -> None:
    ages = []

    class Noting(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            ages.append(robot.time - observation.time)
            return super().act(observation)

    robot = Frozen(toy, 1.0)
    config = RuntimeConfig(replan_every=replan, max_observation_age=0.3)
    trace = run_episode(robot, Noting(toy), SafetyFilter(toy), duration=8.0, config=config)
    assert max(ages) <= 0.3
    assert "stands still" in trace.errors[0]
    looked = (replan + 1) / toy.control_hz  # in simulated time nobody looks between two questions
    assert last_motion(trace) <= 1.0 + max(0.3 + 1 / toy.control_hz, looked) + STILL
    assert trace.interventions["observation"] > 0
    assert any(e.kind == "latched" for e in trace.events)


@pytest.mark.parametrize(("shift", "words"), [(lambda t: t + 5.0, "future"), (lambda t: t - 0.45, "before the one")])
def test_negative_ages_and_stamps_out_of_order_are_refused(toy: Embodiment, shift, words: str) -> None:
    robot = Frozen(toy, 1.0, shift)
    config = RuntimeConfig(replan_every=1)
    trace = run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.25, config=config)
    assert words in trace.errors[0]


@pytest.mark.parametrize("stamp", [NAN := float("nan"), float("inf"), -float("inf")])
def test_a_stamp_that_is_no_time_is_refused_at_once(toy: Embodiment, stamp: float) -> None:
    robot = Frozen(toy, -1.0, lambda t: stamp)
    robot.ticks = 1
    with pytest.raises(InvalidObservation, match="stamp|old|future"):
        run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.0)
    assert robot.ticks == 1


def unit(body: Embodiment, name: str) -> Array:
    q = 0.4 * body.lower + 0.6 * body.upper
    span = body.upper - body.lower
    return {
        "degrees": np.degrees(q),
        "percent of the range": 100 * (q - body.lower) / span,
        "encoder ticks": 2048 + q * 4096 / (2 * np.pi),
    }[name]


@pytest.mark.parametrize("name", ["degrees", "percent of the range", "encoder ticks"])
def test_states_in_other_units_are_named(athena: Embodiment, name: str) -> None:
    words = implausible(athena, unit(athena, name))
    assert f"In {name}" in words
    assert sum(j in words for j in athena.joint_names) == 3
    with pytest.raises(InvalidObservation, match="athena"):
        require_plausible(athena, unit(athena, name))


def test_a_state_a_little_beyond_the_limits_is_possible_and_one_of_1e30_is_not(athena: Embodiment) -> None:
    assert implausible(athena, athena.upper + 0.99 * tolerance(athena)) == ""
    beyond = athena.default.copy()
    beyond[0] = athena.upper[0] + 1.01 * tolerance(athena)[0]
    assert "left_hip_pitch" in implausible(athena, beyond)
    wild = athena.default.copy()
    wild[3] = 1e30
    assert "No unit makes sense" in implausible(athena, wild)
    wild[3] = np.nan
    assert "left_knee" in implausible(athena, wild)
    assert "calibration" in implausible(athena, np.where(np.arange(23) == 15, athena.upper + 0.5, athena.default))


def test_an_impossible_state_in_the_middle_of_a_run_is_no_observation(toy: Embodiment) -> None:
    class Lying(Puppet):
        def observe(self) -> Observation:
            seen = super().observe()
            return replace(seen, state=np.degrees(seen.state) + 400) if 0.45 < self.time < 0.55 else seen

    trace = run_episode(Lying(toy), Wave(toy), SafetyFilter(toy), duration=1.5, config=RuntimeConfig(replan_every=1))
    assert "beyond what its joints can reach" in trace.errors[0]
    assert len(trace.errors) == 1
    assert (np.abs(trace.states) < 2).all()


@pytest.mark.parametrize("beyond", [0.02, 0.1])
def test_a_start_outside_the_limits_is_refused_or_ramped(toy: Embodiment, beyond: float) -> None:
    robot = Puppet(toy)
    robot.q[0] = toy.upper[0] + beyond
    with pytest.raises(SafetyError, match="base by.*--ramp-in"):
        run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.0)
    assert robot.ticks == 0
    start = robot.q.copy()
    trace = run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.0, config=RuntimeConfig(ramp_in=True))
    outside = trace.commands[:, 0] > toy.upper[0]
    assert outside.any()
    steps = np.abs(np.diff(np.concatenate([start[None], trace.commands]), axis=0)) * toy.command_hz
    assert steps[: int(outside.sum()) + 1].max() <= 0.1 * toy.max_velocity[0] + 1e-9
    wide = replace(toy, joints=(replace(toy.joints[0], upper=float(start[0])), *toy.joints[1:]))
    assert_within_limits(trace.commands, start, wide)
    assert not outside[int(outside.sum()) :].any()


class Pressing(Puppet):
    """Calls the runtime at given moments, and can be pushed by hand."""

    def __init__(self, body: Embodiment, calls: dict[float, Callable[[], object]]) -> None:
        super().__init__(body)
        self.calls: dict[float, Callable[[], object]] = dict(calls)
        self.pushed, self.offset = 0.0, 0.0

    def command(self, positions: Array) -> None:
        super().command(positions)
        self.q[0] += self.offset
        for moment in [m for m in self.calls if m <= self.time]:
            self.calls.pop(moment)()


def test_a_stop_is_latched_until_it_is_acknowledged_and_reseated(toy: Embodiment) -> None:
    def push() -> None:
        robot.offset = 0.9

    def released() -> None:
        robot.offset = 0.0

    robot = Pressing(toy, {})
    runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2))
    robot.calls = {
        0.6: lambda: runtime.stop("the red button"),
        2.0: push,
        3.0: runtime.acknowledge,
        3.1: released,
    }
    trace = runtime.run(6.0)
    kinds = {e.kind: e for e in trace.events}
    assert kinds["acknowledged"].words == "the red button"
    at = trace.times
    stopped = (at > 0.61 + (toy.max_velocity / (0.5 * toy.max_acceleration)).max()) & (at < 3.0)
    assert np.ptp(trace.commands[stopped], axis=0).max() == 0.0
    assert {LEVELS[k] for k in trace.levels[(at > 0.62) & (at < 3.0)]} == {"stop"}
    assert trace.interventions["stopped"] > 200
    first = int(np.flatnonzero(at >= kinds["reseated"].time - 1e-9)[0])
    held = trace.commands[first - 1]
    reach = toy.max_acceleration / toy.command_hz**2
    assert (np.abs(trace.commands[first] - held - [0.9, 0, 0]) <= reach + 1e-9).all()  # where it is measured to be
    assert_within_limits(trace.commands[first:], trace.commands[first], toy)
    assert np.ptp(trace.commands[first + 100 :], axis=0).max() > 0.1  # and it moves again


def test_a_fault_that_reached_standstill_is_latched_unless_asked_otherwise(toy: Embodiment) -> None:
    class Away(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            if 0.3 < observation.time < 2.0:
                raise ModelError("no answer")
            return super().act(observation)

    for latch in (True, False):
        config = RuntimeConfig(replan_every=2, raise_errors=False, latch=latch)
        trace = run_episode(Puppet(toy), Away(toy, horizon=5), SafetyFilter(toy), duration=4.0, config=config)
        late = trace.commands[(trace.times > 2.5) & (trace.times < 4.0)]
        assert bool(np.ptp(late, axis=0).max() == 0) is latch
        assert [e.kind for e in trace.events] == (["latched", "end"] if latch else ["end"])
        assert ("latched" in trace.interventions) is latch
        if latch:
            assert "no answer" in trace.events[0].words


def test_without_a_beat_the_robot_comes_to_rest(toy: Embodiment) -> None:
    robot = Puppet(toy, wall=True)
    runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2, heartbeat=0.3))
    done = threading.Event()

    def person() -> None:
        for _ in range(8):
            runtime.beat()
            done.wait(0.1)

    watching = threading.Thread(target=person)
    watching.start()
    trace = runtime.run(2.2, real_time=True)
    done.set()
    watching.join()
    assert trace.interventions["heartbeat"] > 0
    first = int(np.flatnonzero(trace.levels > 0)[0])
    assert 0.6 < trace.times[first] < 1.8
    assert np.abs(np.diff(trace.commands[-20:], axis=0)).max() == 0
    check_by_time(trace, toy)


def test_in_real_time_a_reseat_keeps_the_limits_by_time(toy: Embodiment) -> None:
    robot = Puppet(toy, wall=True)
    runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2))

    class Hand:
        def __call__(self) -> bool:
            if 0.5 < robot.time < 1.2:
                runtime.stop("hand")
            if robot.time > 1.5 and runtime.operator.waiting_for:
                robot.q[0] -= 0.7
                runtime.acknowledge()
            return False

    trace = runtime.run(3.0, until=Hand(), real_time=True)
    assert "acknowledged" in {e.kind for e in trace.events}
    assert np.abs(np.diff(trace.commands[:, 0])).max() > 0.6  # the command is where the arm is
    check_by_time(trace, toy)


def test_groups_are_enabled_one_by_one(athena: Embodiment) -> None:
    config = RuntimeConfig(groups=("torso",), owners={"legs": "policy"})
    trace = run_episode(Puppet(athena), Wave(athena), SafetyFilter(athena), duration=1.0, config=config)
    moved = np.ptp(trace.commands, axis=0) > 0
    np.testing.assert_array_equal(moved, [j.group == "torso" for j in athena.joints])


def test_a_robot_has_one_owner_at_a_time(toy: Embodiment) -> None:
    robot = Puppet(toy)
    second = Runtime(robot, Wave(toy), SafetyFilter(toy))
    refused = []

    def take_over() -> bool:
        with pytest.raises(SafetyError, match="another run") as caught:
            second.run(1.0)
        refused.append(caught)
        return True

    Runtime(robot, Wave(toy), SafetyFilter(toy)).run(1.0, until=take_over)
    assert refused
    second.run(0.1)


def test_another_policy_behind_the_same_address_is_not_taken_over_silently(toy: Embodiment) -> None:
    class Server(Wave):
        policy_id = "aaaa"

        def act(self, observation: Observation) -> ActionChunk:
            self.policy_id = "aaaa" if observation.time < 1.0 else "bbbb"
            return super().act(observation)

    robot = Pressing(toy, {})
    runtime = Runtime(robot, Server(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2))
    robot.calls[4.0] = runtime.acknowledge
    trace = runtime.run(6.0)
    assert "chunk: the policy changed from aaaa to bbbb" in trace.errors
    assert trace.policies == ("aaaa", "bbbb")
    still = (trace.times > 2.0) & (trace.times < 4.0)
    assert np.ptp(trace.commands[still], axis=0).max() == 0
    assert [e.kind for e in trace.events] == ["acknowledged", "reseated", "end"]


def test_in_shadow_nothing_is_commanded(toy: Embodiment) -> None:
    class Driven(Puppet):
        """Somebody else moves it."""

        def observe(self) -> Observation:
            self.q = toy.default + 0.2 * (1 - np.cos(2 * self.time))
            return super().observe()

        def command(self, positions: Array) -> None:
            raise AssertionError("commanded in shadow")

    config = RuntimeConfig(replan_every=2, shadow=True)
    robot = Driven(toy, wall=True)
    trace = Runtime(robot, Steady(toy), SafetyFilter(toy), config).run(1.2, real_time=True)
    assert trace.shadow
    assert not trace.errors
    assert np.ptp(trace.commands[:, 0]) > 0.05
    with pytest.raises(SafetyError, match="shadow"):
        Runtime(robot, Steady(toy), SafetyFilter(toy), config).run(1.0)


def test_a_trace_can_be_kept_short(toy: Embodiment) -> None:
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=3.0, config=RuntimeConfig(keep=0.5))
    assert len(trace.commands) == len(trace.times) == len(trace.levels) == 50
    assert trace.times[-1] > 2.9


def test_a_fall_to_rest_takes_less_than_half_a_second(athena: Embodiment) -> None:
    """From the greatest speed of every joint, by the fallback levels alone."""
    guard = SafetyFilter(athena, fallback=FallbackPolicy())
    guard.reset(athena.lower + 0.3 * (athena.upper - athena.lower), velocity=athena.max_velocity)
    steps = 0
    while not guard.at_rest:
        guard.step(None, steps / athena.command_hz)
        steps += 1
    assert steps / athena.command_hz <= STILL + 1 / athena.command_hz


@pytest.mark.parametrize("rate", [200.0, 1000.0])
def test_two_thousand_commands_by_the_wall_clock(toy: Embodiment, rate: float) -> None:
    """An independent witness at the driver, on whatever machine this is, against a hostile policy and a busy thread."""
    body = replace(toy, command_hz=rate)
    stamps, commands = [], []

    class Witness(Puppet):
        def command(self, positions: Array) -> None:
            stamps.append(time.perf_counter())
            commands.append(positions.copy())
            super().command(positions)
            if len(stamps) % 211 == 0:
                time.sleep(0.015)  # a driver that blocks now and then

    class Wild(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            self.calls += 1
            rows = np.tile(body.upper if self.calls % 2 else body.lower, (16, 1))
            return ActionChunk(rows, body.action_joints, 0.1, observation.time)

    robot = Witness(body, wall=True)
    config = RuntimeConfig(replan_every=2)
    Runtime(robot, Wild(body), SafetyFilter(body), config).run(1000 / rate if rate < 500 else 2.0, real_time=True)
    count = len(stamps)
    assert count >= 1000
    shown = np.array(stamps)
    # What lies between the loop's stamp and the witness's: a call, and the reading of a clock.
    fast = np.diff(np.array(commands), axis=0) / np.diff(shown)[:, None]
    late = 0.01 * body.max_velocity
    beyond = (np.abs(fast) > body.max_velocity + late).any(axis=1)
    assert beyond.mean() <= 2e-3  # the kernel may take the processor away exactly between the two readings
    assert np.diff(shown).min() >= 0.9 / rate or (np.diff(shown) < 0.9 / rate).mean() <= 2e-3
