"""The control loop in simulated and real time: time-true playback, ownership, faults, fallback, recovery."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.control.run.pacing import ON_TIME
from athena_vla.control.runtime import LEVELS, Runtime, RuntimeConfig, resolve_owners, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.trace import Trace
from athena_vla.control.trajectory import monotone_slopes, through
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, ModelError, SafetyError, UnknownName
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.server import PolicyServer, background
from athena_vla.wire.service import ServeConfig
from test_safety import assert_within_limits
from test_safety_by_time import assert_within_limits_by_time

NAN, INF = float("nan"), float("inf")


class Puppet:
    """A robot that is where it was told to be; its clock counts commands, or follows the wall."""

    def __init__(self, body: Embodiment, *, wall: bool = False) -> None:
        self.embodiment, self.q, self.ticks = body, body.default.copy(), 0
        self.wall, self.begun = wall, time.perf_counter()
        self.observations = 0
        self.blind = False

    @property
    def time(self) -> float:
        return time.perf_counter() - self.begun if self.wall else self.ticks / self.embodiment.command_hz

    def observe(self) -> Observation:
        self.observations += 1
        images = {c: np.zeros((4, 6, 3), np.uint8) for c in self.embodiment.camera_names}
        return Observation({} if self.blind else images, self.q.copy(), "wave", self.time)

    def command(self, positions: Array) -> None:
        self.q = positions.copy()
        self.ticks += 1


def wave(body: Embodiment, t: Array) -> Array:
    """A smooth motion inside all limits that starts from rest at the default pose."""
    room = 0.5 * np.minimum(body.upper - body.default, body.default - body.lower)[body.action_index]
    return body.default[body.action_index] + room * (1 - np.cos(1.5 * t))[:, None] * 0.5


class Wave:
    """Knows where to be at any time: its chunks agree with each other, whenever they are asked for."""

    def __init__(self, body: Embodiment, horizon: int = 16) -> None:
        self.body, self.horizon = body, horizon
        self.calls = 0

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        t = observation.time + np.arange(1, self.horizon + 1) / self.body.control_hz
        return ActionChunk(wave(self.body, t), self.body.action_joints, 1 / self.body.control_hz, observation.time)


def check(trace: Trace, body: Embodiment, start: Array) -> None:
    assert trace.commands.shape == trace.targets.shape == (len(trace.times), len(body.joints))
    assert len(trace.levels) == len(trace.times)
    assert_within_limits(trace.commands, start, body)


def check_by_time(trace: Trace, body: Embodiment) -> None:
    """The same in real time, where commands come when they come: by the stamps that the trace gives them."""
    assert len(trace.stamps) == len(trace.commands)
    known = len(trace.stamps) - len(trace.interrupted)
    assert known > 0.9 * len(trace.stamps)
    unknown = trace.interrupted
    assert_within_limits_by_time(trace.stamps, trace.commands, body, resolution=ON_TIME, unknown=unknown)


@pytest.mark.parametrize("latency", [0.0, 0.03, 0.137])
@pytest.mark.parametrize("replan", [1, 4, 8])
def test_chunks_are_played_at_their_own_time(toy: Embodiment, latency: float, replan: int) -> None:
    robot = Puppet(toy)
    guard = SafetyFilter(toy)
    trace = run_episode(
        robot, Wave(toy), guard, duration=3.0, config=RuntimeConfig(replan_every=replan, latency=latency)
    )
    check(trace, toy, toy.default)
    assert trace.braking_from == 300
    times = trace.times[:300]
    settled = times > 0.2 + (replan / toy.control_hz + 2 * latency if latency else 0.3)  # a chunk asked for in motion
    wanted = wave(toy, times[settled] + 1 / toy.command_hz)
    assert np.abs(trace.commands[:300][settled] - wanted).max() < 0.006  # [rad], interpolation between 10 Hz rows
    assert (trace.commands[-1] == trace.commands[-2]).all()  # at rest
    assert trace.deadline_misses == 0
    assert not trace.errors
    np.testing.assert_allclose(trace.delays, np.ceil(latency * 100 - 1e-9) / 100, atol=1e-9)


def test_commands_on_a_row_are_the_row(toy: Embodiment) -> None:
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=1.0, config=RuntimeConfig(replan_every=8))
    for row in range(7):
        # The clock is a sum of periods, so a row is met up to the last bits of its time.
        np.testing.assert_allclose(trace.commands[10 * row + 9], trace.chunks[0].positions[row], rtol=0, atol=1e-14)
    assert not trace.interventions


def test_switching_chunks_is_velocity_continuous(toy: Embodiment) -> None:
    class Fickle(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            chunk = super().act(observation)
            return replace(chunk, positions=chunk.positions + 0.004 * (-1) ** self.calls)

    trace = run_episode(Puppet(toy), Fickle(toy), SafetyFilter(toy), duration=2.0, config=RuntimeConfig(replan_every=2))
    acceleration = np.diff(trace.targets[: trace.braking_from], 2, axis=0) * toy.command_hz**2
    jump = 0.008 * toy.command_hz**2  # what a switch without blending would ask for
    assert np.abs(acceleration).max() < 0.1 * jump


def test_an_end_by_condition_and_by_duration(toy: Embodiment) -> None:
    robot = Puppet(toy)
    trace = run_episode(robot, Wave(toy), SafetyFilter(toy), duration=3.0, until=lambda: robot.time >= 0.95)
    assert trace.ended_by == "until"
    assert trace.braking_from == 100
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=0.255)
    assert trace.ended_by == "duration"
    assert trace.braking_from == 26


def test_owners_come_from_the_robot_and_can_be_changed(athena: Embodiment) -> None:
    legs = athena.index(athena.groups["legs"])
    arms = athena.index(athena.groups["arms"])
    trace = run_episode(Puppet(athena), Wave(athena), SafetyFilter(athena), duration=0.5)
    np.testing.assert_array_equal(trace.commands[:, legs], np.tile(athena.default[legs], (len(trace.times), 1)))
    assert np.ptp(trace.commands[:, arms], axis=0).min() > 0
    config = RuntimeConfig(owners={"legs": "policy", "left_knee": "locked"})
    trace = run_episode(Puppet(athena), Wave(athena), SafetyFilter(athena), duration=0.5, config=config)
    moved = np.ptp(trace.commands, axis=0) > 0
    assert not moved[athena.index(["left_knee"])[0]]
    assert moved.sum() == len(moved) - 1


def test_the_balance_source_drives_its_joints_even_when_the_policy_is_gone(athena: Embodiment) -> None:
    legs = athena.index(athena.groups["legs"])

    def balance(times: Array, state: Array) -> Array:
        assert state.shape == (23,)
        return athena.default + 0.02 * np.sin(5 * times)[:, None]

    class Gone(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            if self.calls:
                raise ModelError("gone")
            return super().act(observation)

    config = RuntimeConfig(raise_errors=False)
    trace = run_episode(
        Puppet(athena), Gone(athena, horizon=4), SafetyFilter(athena), duration=2.0, config=config, balance=balance
    )
    check(trace, athena, athena.default)
    late = trace.times > 1.0
    assert np.ptp(trace.commands[late][:, legs], axis=0).min() > 0.03
    arms = athena.index(athena.groups["arms"])
    assert np.ptp(trace.commands[late][:, arms], axis=0).max() < 1e-12
    assert trace.deadline_misses > 5


def test_a_failing_balance_source_ends_in_the_fallback_policy(athena: Embodiment) -> None:
    def balance(times: Array, state: Array) -> Array:
        raise ZeroDivisionError

    trace = run_episode(Puppet(athena), Wave(athena), SafetyFilter(athena), duration=0.5, balance=balance)
    assert LEVELS[trace.levels[-1]] == "stop"
    assert "balance" in trace.errors[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda c: replace(c, positions=c.positions * np.nan), "not numbers"),
        (lambda c: replace(c, joint_names=("base", "shoulder", "thumb")), "thumb"),
        (lambda c: replace(c, joint_names=("base", "base", "finger")), "twice"),
        (lambda c: replace(c, dt=0.0), "dt"),
        (lambda c: replace(c, dt=float("nan")), "dt"),
        (lambda c: replace(c, positions=c.positions[:0]), "0 rows"),
    ],
)
def test_a_lying_actor_leads_to_the_fallback_policy(toy: Embodiment, fault, words: str) -> None:
    class Liar(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            chunk = super().act(observation)
            return fault(chunk) if self.calls > 1 else chunk

    trace = run_episode(Puppet(toy), Liar(toy), SafetyFilter(toy), duration=4.0, config=RuntimeConfig(replan_every=8))
    check(trace, toy, toy.default)
    assert words in trace.errors[0]
    assert LEVELS[trace.levels[-1]] == "stop"
    assert np.abs(np.diff(trace.commands[-100:], axis=0)).max() == 0


def test_wild_chunks_are_bounded(athena: Embodiment) -> None:
    rng = np.random.default_rng(0)

    class Wild(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            chunk = super().act(observation)
            return replace(chunk, positions=rng.normal(scale=10.0, size=chunk.positions.shape))

    trace = run_episode(
        Puppet(athena),
        Wild(athena),
        SafetyFilter(athena),
        duration=2.0,
        config=RuntimeConfig(owners={"legs": "policy"}),
    )
    check(trace, athena, athena.default)
    assert trace.interventions["position"] > 0
    assert trace.touched_steps > 100


def test_actor_errors_are_raised_in_simulation_unless_asked_otherwise(toy: Embodiment) -> None:
    class Broken:
        def act(self, observation: Observation) -> ActionChunk:
            raise ModelError("no weights")

    with pytest.raises(ModelError):
        run_episode(Puppet(toy), Broken(), SafetyFilter(toy), duration=1.0)
    trace = run_episode(
        Puppet(toy), Broken(), SafetyFilter(toy), duration=1.0, config=RuntimeConfig(raise_errors=False)
    )
    assert "no weights" in trace.errors[0]
    assert np.ptp(trace.commands) == 0


def test_a_chunk_that_is_too_old_is_not_followed(toy: Embodiment) -> None:
    config = RuntimeConfig(replan_every=20, max_age=0.5)
    trace = run_episode(Puppet(toy), Wave(toy, horizon=30), SafetyFilter(toy), duration=1.9, config=config)
    levels = np.array([LEVELS[x] for x in trace.levels])
    assert set(levels[trace.times < 0.5]) == {"follow"}
    assert levels[-1] == "stop"
    assert trace.deadline_misses > 0


def test_a_camera_that_fails_later_is_a_fault_not_an_end(toy: Embodiment) -> None:
    robot = Puppet(toy)

    def fail() -> bool:
        robot.blind = robot.time > 0.4
        return False

    trace = run_episode(robot, Wave(toy), SafetyFilter(toy), duration=4.0, until=fail)
    assert "cameras" in trace.errors[0]
    assert LEVELS[trace.levels[-1]] == "stop"
    robot = Puppet(toy)
    robot.blind = True
    with pytest.raises(InvalidObservation):
        run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.0)


def test_a_first_observation_without_its_camera_moves_nothing(toy: Embodiment) -> None:
    robot = Puppet(toy)
    robot.blind = True
    with pytest.raises(InvalidObservation, match="front"):
        run_episode(robot, Wave(toy), SafetyFilter(toy), duration=1.0)
    assert robot.ticks == 0


@pytest.mark.parametrize("jump", [-1.0, 40.0])
def test_a_robot_clock_that_jumps_leads_to_the_fallback_policy_and_back(toy: Embodiment, jump: float) -> None:
    class Jumping(Puppet):
        @property
        def time(self) -> float:
            return super().time + (jump if self.ticks >= 150 else 0.0)

    trace = run_episode(Jumping(toy), Wave(toy), SafetyFilter(toy), duration=5.0)
    check(trace, toy, toy.default)
    assert trace.interventions.keys() & {"clock", "no_target"}  # of two faults at once the graver is counted
    assert (trace.levels[:150] == 0).all()
    assert trace.levels[trace.braking_from - 1] == 0
    assert [e.kind for e in trace.events] == ["clock", "end"]


def test_what_does_not_fit_together_is_refused_at_construction(toy: Embodiment, athena: Embodiment) -> None:
    for guard, config, error in (
        (SafetyFilter(athena), RuntimeConfig(), SafetyError),
        (SafetyFilter(toy, rate_hz=50.0), RuntimeConfig(), SafetyError),
        (SafetyFilter(toy), RuntimeConfig(owners={"tail": "policy"}), UnknownName),
        (SafetyFilter(toy), RuntimeConfig(owners={"base": "nobody"}), UnknownName),  # pyright: ignore[reportArgumentType]
        (SafetyFilter(toy), RuntimeConfig(groups=("tail",)), UnknownName),
    ):
        with pytest.raises(error):
            Runtime(Puppet(toy), Wave(toy), guard, config)


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in ("blend", "max_age", "heartbeat", "keep") for value in (NAN, INF, 0.0, -1.0, "1")),
        *({name: value} for name in ("timeout", "max_observation_age") for value in (NAN, INF, 0.0, -1.0, None)),
        *({"latency": value} for value in (NAN, INF, -1.0, None)),
        *({"replan_every": value} for value in (0, -1, 2.5, NAN, True, None)),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(SafetyError, match=next(iter(wrong))):
        RuntimeConfig(**wrong)


@pytest.mark.parametrize("duration", [NAN, 0.0, -1.0])
def test_a_run_lasts_a_positive_time(toy: Embodiment, duration: float) -> None:
    robot = Puppet(toy)
    with pytest.raises(SafetyError, match="positive"):
        run_episode(robot, Wave(toy), SafetyFilter(toy), duration=duration)
    assert robot.ticks == 0


def test_a_joint_wins_over_its_group(athena: Embodiment) -> None:
    owners = resolve_owners(athena, {"legs": "policy", "left_knee": "locked"})
    named = dict(zip(athena.joint_names, owners, strict=True))
    assert named["left_knee"] == "locked"
    assert named["right_knee"] == "policy"


def test_images_are_kept_where_asked_for(toy: Embodiment) -> None:
    config = RuntimeConfig(record_images=True, replan_every=8)
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=1.0, config=config)
    assert len(trace.frames) == len(trace.state_times) == 10
    assert trace.frames[3].images["front"].shape == (4, 6, 3)
    assert not run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=1.0).frames


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_curves_pass_their_rows_without_overshoot(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.05, 0.3, 8))
    rows = rng.normal(size=(8, 2))
    q, v = rng.normal(size=2), rng.normal(size=2)
    curve = through(times, rows, 0.0, q, v, 0.01)
    np.testing.assert_array_equal(curve.sample(curve.times[1:]), rows)
    np.testing.assert_array_equal(curve.times[1:-1], times[:-1])  # the last row takes what coming to rest takes
    assert 0 <= curve.times[-1] - times[-1] <= 0.2 * (times[-1] - times[-2])
    np.testing.assert_array_equal(curve.sample(np.array([-1.0, 0.0])), np.stack([q, q]))
    np.testing.assert_array_equal(curve.sample(np.array([99.0])), rows[-1:])
    for k in range(7):
        part = curve.sample(np.linspace(curve.times[k + 1], curve.times[k + 2], 60))
        low, high = np.minimum(rows[k], rows[k + 1]), np.maximum(rows[k], rows[k + 1])
        assert (part >= low - 1e-12).all()
        assert (part <= high + 1e-12).all()
    h = 1e-9
    np.testing.assert_allclose((curve.sample(np.array([h])) - q)[0] / h, v, atol=1e-3)
    assert not monotone_slopes(times, rows)[[0, -1]].any()


@pytest.mark.parametrize("delay", [0.0, 0.12])
def test_real_time_keeps_its_period_while_the_actor_thinks(toy: Embodiment, delay: float) -> None:
    class Slow(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            time.sleep(delay)
            return super().act(observation)

    robot = Puppet(toy, wall=True)
    began = time.perf_counter()
    runtime = Runtime(robot, Slow(toy), SafetyFilter(toy, stale_after=5.0), RuntimeConfig(replan_every=3))
    trace = runtime.run(1.2, real_time=True)
    took = time.perf_counter() - began
    assert 1.1 < took < 4.0  # a busy machine may be late, but never early
    check_by_time(trace, toy)
    assert len(trace.chunks) >= 2
    assert trace.latencies.min() >= delay
    assert trace.braking_from == 120


def test_an_actor_that_hangs_for_ever_is_given_up(toy: Embodiment) -> None:
    release = threading.Event()

    class Hanging(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            if self.calls:
                release.wait(30)
            return super().act(observation)

    robot = Puppet(toy, wall=True)
    runtime = Runtime(
        robot, Hanging(toy, horizon=5), SafetyFilter(toy, stale_after=5.0), RuntimeConfig(replan_every=2, timeout=0.2)
    )
    trace = runtime.run(1.5, real_time=True)
    release.set()
    assert any("no answer within" in e for e in trace.errors)
    assert LEVELS[trace.levels[-1]] in ("stop", "hold")
    check_by_time(trace, toy)


class Flaky:
    """A server that dies and comes back on the same port, at random moments of the robot's time."""

    def __init__(self, body: Embodiment, seed: int) -> None:
        self.body, self.rng = body, np.random.default_rng(seed)
        self.port, self.running = 0, None
        self.start()
        self.next_change = self.rng.uniform(0.3, 1.5)
        self.deaths = 0

    def start(self) -> None:
        self.running = background(
            PolicyServer(Wave(self.body, horizon=6), self.body, ServeConfig(port=self.port, grace=0.05))
        )
        server = self.running.__enter__()
        self.port, self.address = server.port, server.address

    def stop(self) -> None:
        if self.running is not None:
            self.running.__exit__(None, None, None)
            self.running = None

    def maybe_change(self, now: float) -> None:
        if now >= self.next_change:
            if self.running is None:
                self.start()
            else:
                self.stop()
                self.deaths += 1
            self.next_change = now + self.rng.uniform(0.2, 1.2)


def episodes_with_a_dying_server(body: Embodiment, count: int) -> Iterator[tuple[Trace, bool]]:
    for seed in range(count):
        server = Flaky(body, seed)
        robot = Puppet(body)
        try:
            with RemotePolicy(server.address, body, timeout=1.0) as remote:

                def kill(server: Flaky = server, robot: Puppet = robot) -> bool:
                    server.maybe_change(robot.time)
                    return False

                config = RuntimeConfig(replan_every=2, latency=0.05, raise_errors=False, latch=False)
                trace = run_episode(robot, remote, SafetyFilter(body), duration=4.0, config=config, until=kill)
        finally:
            server.stop()
        yield trace, server.deaths > 0


def survive(body: Embodiment, count: int) -> None:
    died, stopped, recovered = 0, 0, 0
    for trace, has_died in episodes_with_a_dying_server(body, count):
        check(trace, body, body.default)
        died += has_died
        levels = np.array(trace.levels[: trace.braking_from])
        bad = np.flatnonzero(levels > 0)
        if len(bad):
            stopped += 1
            recovered += bool((levels[bad[-1] :] == 0).any())
            # Each run of faults comes to rest within the fallback policy's time: hold, then braking at half the limit.
            run = np.split(bad, np.flatnonzero(np.diff(bad) > 1) + 1)[0]
            rest = int((0.1 + (body.max_velocity / (0.5 * body.max_acceleration)).max()) * body.command_hz) + 2
            if len(run) > rest + 1:
                assert np.abs(np.diff(trace.commands[run[rest:]], axis=0)).max() < 1e-12
    assert died >= count * 0.9
    assert stopped > 0
    assert recovered > 0


def test_a_server_killed_at_random_moments() -> None:
    survive(embodiment.load("toy"), 6)


@pytest.mark.slow
def test_a_server_killed_at_random_moments_over_a_hundred_episodes() -> None:
    survive(embodiment.load("toy"), 100)
