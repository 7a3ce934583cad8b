"""Taking over from a policy and handing back: as smooth as between chunks, refused in a sentence, never a jump."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.control.black_box import BlackBox
from athena_vla.control.black_box_reader import read_box
from athena_vla.control.runtime import Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.control.teleoperator import SOURCES, Source, Wish
from athena_vla.control.trace import Trace
from athena_vla.embodiment import ActionChunk, Array, Embodiment, Observation
from athena_vla.errors import SafetyError
from test_runtime import Puppet, Wave, check, check_by_time

POLICY, HUMAN, SCRIPT = range(3)


class Person:
    """Wants control between two instants, and wishes what a function of time and of the last command says."""

    def __init__(
        self, wish: Callable[[float, Array], Array], begin: float, end: float, source: Source = "human"
    ) -> None:
        self._wish, self.begin, self.end, self.age = wish, begin, end, 0.0
        self._source: Source = source

    @property
    def source(self) -> Source:
        return self._source

    def read(self, command: Array, time: float, /) -> Wish:
        if not self.begin <= time < self.end:
            return Wish(False)
        return Wish(True, self._wish(time, command), self.age)


class Going:
    """Goes from where the robot is to a pose, at 0.3 rad/s at most, as a policy does that looks at the robot."""

    def __init__(self, body: Embodiment, goal: Array) -> None:
        self._body, self._goal = body, goal

    def act(self, observation: Observation) -> ActionChunk:
        body, step = self._body, 0.3 / self._body.control_hz
        way = np.clip(self._goal - observation.state, -16 * step, 16 * step)
        share = np.minimum(step * np.arange(1, 17) / max(float(np.abs(way).max()), 1e-9), 1.0)
        rows = observation.state + share[:, None] * way
        return ActionChunk(rows, body.action_joints, 1 / body.control_hz, observation.time)


def drive(
    body: Embodiment,
    person: Person,
    seconds: float = 6.0,
    *,
    speed: float = 1.0,
    config: RuntimeConfig | None = None,
    actor: object | None = None,
    box: BlackBox | None = None,
) -> Trace:
    runtime = Runtime(
        Puppet(body),
        actor or Wave(body),  # type: ignore[arg-type]
        SafetyFilter(body, speed=speed),
        config or RuntimeConfig(replan_every=2),
        teleoperator=person,
        recorder=box,
    )
    return runtime.run(seconds)


def speeds(trace: Trace, body: Embodiment) -> Array:
    """[n, J] between consecutive commands; [rad/s]."""
    return np.diff(np.concatenate([body.default[None], trace.commands]), axis=0) * body.command_hz


def who(trace: Trace) -> list[str]:
    """Who commanded, one word a stretch."""
    edges = np.flatnonzero(np.diff(trace.sources, prepend=-1))
    return [SOURCES[trace.sources[i]] for i in edges]


def test_the_robot_follows_the_person_and_then_the_policy_again(toy: Embodiment) -> None:
    def wish(time: float, command: Array) -> Array:
        return toy.default + 0.2 * np.sin(0.8 * time) * np.array([1.0, -0.5, 0.3])

    trace = drive(toy, Person(wish, 2.0, 6.0), 9.0, actor=Going(toy, toy.default + 0.3))
    check(trace, toy, toy.default)
    assert who(trace) == ["policy", "human", "policy"]
    np.testing.assert_allclose(trace.commands[-1], toy.default + 0.3, atol=0.02)  # the policy's goal
    assert trace.interventions == {}  # nothing for the filter to do: no jump, no stop
    settled = (trace.times > 4.0) & (trace.times < 6.0)
    # The average lags by (count - 1) / 2 steps, the row by one more.
    late = (1.0 + 1.0) / toy.control_hz
    seen = trace.times[settled] + 1.0 / toy.command_hz
    expected = np.array([wish(t - late, toy.default) for t in seen])
    assert np.abs(trace.commands[settled] - expected).max() < 0.01
    events = [e.kind for e in trace.events]
    assert events == ["control", "handed back", "control", "end"]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("speed", [1.0, 0.4])
def test_no_command_is_faster_than_policy_and_person_are(toy: Embodiment, seed: int, speed: float) -> None:
    """The executed peak stays within 1.2 of the greatest planned speed, whenever and wherever the person takes over."""
    rng = np.random.default_rng(seed)
    begin, end = float(rng.uniform(0.3, 3.0)), float(rng.uniform(3.3, 5.5))
    rate, size = rng.uniform(0.2, 0.7, 3), rng.uniform(0.05, 0.25, 3)
    far = rng.uniform(-0.3, 0.3, 3) * (seed % 2)

    def wish(time: float, command: Array) -> Array:
        return toy.default + far + size * np.sin(2 * np.pi * rate * time)

    trace = drive(toy, Person(wish, begin, end), 8.0, speed=speed, actor=Going(toy, toy.default + 0.5))
    check(trace, toy, toy.default)
    assert who(trace) == ["policy", "human", "policy"]
    policy = np.full(3, 0.3 * speed)
    approach = 0.2 * speed * toy.max_velocity * (seed % 2 or 1)
    planned = np.maximum.reduce([policy, size * 2 * np.pi * rate, approach])
    assert (np.abs(speeds(trace, toy)).max(axis=0) <= 1.2 * planned + 1e-9).all()


def test_a_person_who_begins_to_move_from_rest_is_not_overshot(toy: Embodiment) -> None:
    """Jogging is the hardest wish: it jumps from rest to a speed and back."""

    def wish(time: float, command: Array) -> Array:
        return toy.default + np.array([0.3, 0.0, 0.0]) * np.clip(time - 1.0, 0.0, 1.0)

    trace = drive(toy, Person(wish, 0.5, 4.0), 8.0, actor=Going(toy, toy.default))
    moving = speeds(trace, toy)[:, 0]
    assert np.abs(moving).max() <= 1.2 * 0.3
    assert trace.commands[:, 0].max() <= toy.default[0] + 0.3 + 1e-3
    assert trace.interventions == {}
    np.testing.assert_allclose(trace.commands[-1], toy.default, atol=0.02)  # the policy's pose again


def test_a_wish_far_away_is_approached_slowly_and_a_jump_is_no_motion(toy: Embodiment) -> None:
    def wish(time: float, command: Array) -> Array:
        return toy.default + (0.4 if time < 3.0 else -0.4)

    trace = drive(toy, Person(wish, 1.0, 6.0), 6.0, config=RuntimeConfig(replan_every=2))
    human = trace.sources == HUMAN
    fastest = np.abs(speeds(trace, toy)[human & (trace.times > 1.5)]).max(axis=0)
    assert (fastest <= 1.2 * 0.2 * toy.max_velocity).all()
    assert np.abs(trace.commands[trace.times < 2.95][-1] - (toy.default + 0.4)).max() < 0.02


def test_the_pose_at_the_hand_back_is_kept_until_the_policy_answers(toy: Embodiment) -> None:
    class Slow(Wave):
        def act(self, observation: Observation) -> ActionChunk:
            if observation.time > 2.9:
                raise RuntimeError("gone")
            return super().act(observation)

    def wish(time: float, command: Array) -> Array:
        return toy.default + 0.1

    config = RuntimeConfig(replan_every=2, raise_errors=False)
    trace = drive(toy, Person(wish, 1.0, 3.0), 6.0, actor=Slow(toy), config=config)
    assert who(trace) == ["policy", "human"]  # nobody else has commanded since
    assert trace.levels[: trace.braking_from].max() == 0
    np.testing.assert_allclose(trace.commands[-1], toy.default + 0.1, atol=1e-6)
    assert any("gone" in e for e in trace.errors)


def test_a_base_that_was_driven_stops_when_it_is_handed_back() -> None:
    """A wished speed must not go on while the policy, which may be dead, has not answered."""
    rail = embodiment.load("athena_rail")
    rate = rail.command_names.index("yaw_rate")

    class Dead:
        def act(self, observation: Observation) -> ActionChunk:
            raise RuntimeError("gone")

    class Base(Puppet):
        def __init__(self) -> None:
            super().__init__(rail)
            self.q = rail.command_columns.default.copy()

        def observe(self) -> Observation:
            images = {c: np.zeros((4, 6, 3), np.uint8) for c in rail.camera_names}
            state = rail.state_columns.default.copy()
            return Observation(images, state, "turn", self.time)

    def wish(time: float, command: Array) -> Array:
        wished = rail.command_columns.default.copy()
        wished[rate] = 0.4
        return wished

    config = RuntimeConfig(raise_errors=False)
    runtime = Runtime(Base(), Dead(), SafetyFilter(rail), config, teleoperator=Person(wish, 0.5, 2.5))
    trace = runtime.run(4.0)
    assert trace.commands[(trace.times > 1.5) & (trace.times < 2.4), rate].min() > 0.35
    assert np.abs(trace.commands[(trace.times > 3.2) & (trace.times < 4.0), rate]).max() == 0.0
    assert trace.levels[: trace.braking_from].max() == 0  # it was handed back, and is no fault


@pytest.mark.parametrize("latency", [0.05, 0.3])
def test_an_answer_that_was_open_at_the_take_over_is_not_followed(toy: Embodiment, latency: float) -> None:
    def wish(time: float, command: Array) -> Array:
        return toy.default - 0.15

    config = RuntimeConfig(replan_every=2, latency=latency)
    trace = drive(toy, Person(wish, 1.0, 3.0), 5.0, config=config, actor=Going(toy, toy.default + 0.5))
    check(trace, toy, toy.default)
    assert who(trace) == ["policy", "human", "policy"]
    human = (trace.times > 2.8) & (trace.times < 3.0)
    np.testing.assert_allclose(trace.commands[human], np.tile(toy.default - 0.15, (human.sum(), 1)), atol=0.02)
    assert trace.interventions == {}


def test_a_short_press_of_the_button_is_a_take_over_too(toy: Embodiment) -> None:
    trace = drive(toy, Person(lambda time, command: command, 2.0, 2.05), 5.0, actor=Going(toy, toy.default + 0.5))
    check(trace, toy, toy.default)
    assert who(trace) == ["policy", "human", "policy"]
    np.testing.assert_allclose(trace.commands[-1], toy.default + 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "wishes no number for base"),
        ("raises", "raised OSError: unplugged"),
        ("silent", "was not heard for 0.5 s"),
        ("short", r"shape \[2\]"),
        ("none", "wishes no pose"),
    ],
)
@pytest.mark.parametrize("while_driving", [True, False])
def test_a_teleoperator_that_fails_is_a_sentence(toy: Embodiment, fault: str, words: str, while_driving: bool) -> None:
    class Failing(Person):
        def read(self, command: Array, time: float, /) -> Wish:
            wish = super().read(command, time)
            broken = wish.engaged and time > (2.0 if while_driving else 0.0)
            if not broken:
                return wish
            if fault == "raises":
                raise OSError("unplugged")
            wrong: dict[str, Wish] = {
                "nan": Wish(True, np.array([np.nan, 0.0, 0.0])),
                "silent": Wish(True, toy.default, 0.5),
                "short": Wish(True, np.zeros(2)),
                "none": Wish(True, None),
            }
            return wrong[fault]

    def wish(time: float, command: Array) -> Array:
        return toy.default + 0.2 * np.sin(time)

    trace = drive(toy, Failing(wish, 1.0, 9.0), 4.0)
    check(trace, toy, toy.default)
    said = [e.words for e in trace.events if e.kind == "refused"]
    assert said
    assert np.count_nonzero([re.search(words, s) is not None for s in said]) == 1
    if while_driving:
        assert "latched" in [e.kind for e in trace.events] or "comes to rest" in said[0]
        np.testing.assert_array_equal(trace.commands[-1], trace.commands[-20])  # at rest
        assert trace.levels[-1] > 0
    else:
        assert who(trace) == ["policy"]  # the policy keeps control
        assert trace.levels[: trace.braking_from].max() == 0


def test_a_take_over_waits_while_the_robot_is_stopped_and_while_it_brakes(toy: Embodiment) -> None:
    def wish(time: float, command: Array) -> Array:
        if time < 2.0:
            return command
        return toy.default + 0.1

    robot = Puppet(toy)
    person = Person(wish, 1.5, 9.0)
    runtime = Runtime(
        robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2, record_images=True), teleoperator=person
    )

    def act_as_operator() -> bool:
        if 1.0 <= robot.time < 1.0 + 1.5 / toy.control_hz:
            runtime.stop("a test")
        if 3.0 <= robot.time < 3.0 + 1.5 / toy.control_hz:
            runtime.acknowledge()
        return False

    trace = runtime.run(5.0, until=act_as_operator)
    check(trace, toy, toy.default)
    refused = [e for e in trace.events if e.kind == "refused"]
    assert [round(e.time, 6) for e in refused][:1] == [1.5]
    assert "waits" in refused[0].words
    assert "a test" in refused[0].words
    taken = next(e for e in trace.events if e.kind == "control")
    assert taken.time >= 3.0
    still = (trace.times > 2.0) & (trace.times < 3.0)
    assert np.ptp(trace.commands[still], axis=0).max() == 0.0
    assert np.abs(trace.commands[-1] - (toy.default + 0.1)).max() < 1e-6


def test_an_emergency_stop_takes_control_from_the_person(toy: Embodiment) -> None:
    robot, said = Puppet(toy), []
    person = Person(lambda time, command: toy.default + 0.2 * np.sin(time), 0.5, 9.0)
    runtime = Runtime(
        robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2, record_images=True), teleoperator=person
    )

    def act_as_operator() -> bool:
        if robot.time >= 2.0 and not said:
            said.append(robot.time)
            runtime.stop("a test")
        return False

    trace = runtime.run(4.0, until=act_as_operator)
    check(trace, toy, toy.default)
    assert any("Control was taken from the human" in e.words for e in trace.events)
    np.testing.assert_array_equal(trace.commands[-1], trace.commands[trace.times > 3.0][0])


def test_in_real_time_the_limits_hold_between_the_stamps(toy: Embodiment) -> None:
    person = Person(lambda time, command: toy.default + 0.2 * np.sin(2.0 * time), 0.5, 1.5)
    robot = Puppet(toy, wall=True)
    runtime = Runtime(robot, Wave(toy), SafetyFilter(toy), RuntimeConfig(replan_every=2), teleoperator=person)
    trace = runtime.run(2.5, real_time=True)
    check_by_time(trace, toy)
    assert who(trace) == ["policy", "human", "policy"]
    human = trace.sources == HUMAN
    assert np.abs(np.diff(trace.commands[human], axis=0)).max() < 1.0 * 2.0 / toy.command_hz  # no jump


def test_what_makes_no_sense_is_refused_at_construction(toy: Embodiment) -> None:
    person = Person(lambda time, command: command, 0.0, 1.0)
    with pytest.raises(SafetyError, match="shadow"):
        Runtime(Puppet(toy), Wave(toy), SafetyFilter(toy), RuntimeConfig(shadow=True), teleoperator=person)
    with pytest.raises(SafetyError, match="'human' or 'script'"):
        drive(toy, Person(lambda time, command: command, 0.0, 1.0, "policy"))


def test_a_black_box_keeps_who_commanded(toy: Embodiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file in which the person took over is gone."""
    person = Person(lambda time, command: toy.default + 0.1 * np.sin(time), 1.0, 3.0, "script")
    monkeypatch.setattr("athena_vla.control.black_box.SEGMENT", 0.02)  # [s] of the wall clock: many files
    with BlackBox(tmp_path / "box", toy, most_bytes=2_000_000) as box:
        trace = drive(toy, person, 4.0, box=box)
    assert who(trace) == ["policy", "script", "policy"]
    kept = read_box(tmp_path / "box").trace
    np.testing.assert_array_equal(kept.sources, trace.sources)
    files = sorted((tmp_path / "box").glob("*.box"))
    for file in files:
        part = read_box(file).trace
        whole = {round(float(t), 9): s for t, s in zip(trace.times, trace.sources, strict=True)}
        assert [whole[round(float(t), 9)] for t in part.times] == part.sources.tolist()
