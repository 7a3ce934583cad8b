"""The node's trajectories by the receiver's rules: a controller told again from its documentation plays them.

What reaches the drive is judged by an independent witness: positions of the controller at its own rate.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import InvalidObservation, SafetyError, UnknownName
from athena_vla.ros2.messages import JointMap
from athena_vla.ros2.parameters import PARAMETERS, named_joints, runtime_config, safety_filter
from athena_vla.ros2.trajectory_points import TrajectoryPoints
from joint_trajectory_controller import GOAL_TOLERANCE, INVALID_GOAL, JointTrajectoryController
from test_ros2 import Fields, graph, shaped  # noqa: F401 - graph is a fixture

RATE = 500.0  # [Hz] of the controller
LEAD = 0.1  # [s]
ATHENA = embodiment.load("athena")


def commands(body: Embodiment, seconds: float, jitter: float = 0.0) -> tuple[Array, Array]:
    """Stamps and commands of a filter by time that follows swings near the limits of speed."""
    rng = np.random.default_rng(0)
    period = 1.0 / body.command_hz
    guard = SafetyFilter(body)
    guard.reset(body.default, by_time=True)
    stamps, rows, t = [], [], 0.0
    while t < seconds:
        step = period * (1.0 + jitter * rng.uniform(0.0, 1.0))
        t += step
        room = 0.4 * np.minimum(body.upper - body.default, body.default - body.lower)
        rows.append(guard.step(body.default + room * np.sin(3.0 * t), t, elapsed=step))
        stamps.append(t)
    return np.array(stamps), np.array(rows)


def played(
    body: Embodiment,
    stamped: bool,
    delay: Callable[[int], float],
    *,
    skew: float = 0.0,
    lost: Callable[[int], bool] = lambda i: False,
    jitter: float = 0.0,
    release: str = "humble",
    in_order: bool = True,
) -> tuple[JointTrajectoryController, Array, Array, Array, Array]:
    """Controller, its times (by our clock) and positions, and the stamps and commands that were sent."""
    stamps, rows = commands(body, 2.0, jitter)
    joints, points = JointMap(body), TrajectoryPoints(body, lead=LEAD, stamped=stamped)
    arrivals = []
    for i, (stamp, row) in enumerate(zip(stamps, rows, strict=True)):
        made = points.add(100.0 + stamp, row[None])
        message = joints.timed_trajectory(body.joint_names, made.rows, made.times, made.begin)
        if not lost(i):
            late = stamp + delay(i)  # a topic keeps the order of its messages, unless it is asked to do otherwise
            arrivals.append((max(late, arrivals[-1][0]) if arrivals and in_order else late, shaped(message)))
    arrivals.sort(key=lambda a: a[0])
    controller = JointTrajectoryController(list(body.joint_names), body.default, release)
    times, path = np.arange(0.0, stamps[-1] + 1.0, 1.0 / RATE), []
    for t in times:
        while arrivals and arrivals[0][0] <= t:
            controller.on_topic(arrivals.pop(0)[1], 100.0 + t + skew)
        path.append(controller.update(100.0 + t + skew))
    return controller, times, np.array(path), stamps, rows


def fastest(body: Embodiment, path: Array, every: int = 1) -> float:
    """The greatest speed as a share of its limit, over windows of so many cycles of the controller."""
    return float((np.abs(path[every:] - path[:-every]) * RATE / every / body.max_velocity).max())


@pytest.mark.parametrize("release", ["humble", "jazzy"])
@pytest.mark.parametrize("skew", [-0.02, 0.0, 0.02])
@pytest.mark.parametrize("delay", [0.0, 0.012, 0.05])
def test_with_a_lead_the_motion_is_the_commands_later(delay: float, skew: float, release: str) -> None:
    """Delays of up to 50 ms that differ by message, clocks 20 ms apart: nothing is refused or distorted."""
    rng = np.random.default_rng(1)
    controller, times, path, stamps, rows = played(
        ATHENA, True, lambda i: delay * rng.uniform(0.3, 1.0), skew=skew, jitter=0.4, release=release
    )
    assert controller.refused == []
    due = times - LEAD + skew
    inner = (due > stamps[2]) & (due < stamps[-1])
    expected = np.stack([np.interp(due[inner], stamps, rows[:, j]) for j in range(rows.shape[1])], axis=1)
    assert np.abs(path[inner] - expected).max() < 2e-6  # stamps are whole nanoseconds
    assert fastest(ATHENA, path) <= 1.0 + 1e-3
    np.testing.assert_allclose(path[-1], path[-int(0.3 * RATE)], atol=1e-12)  # it came to rest


@pytest.mark.parametrize("spread", [0.0, 0.002])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05])
def test_from_the_arrival_on_the_motion_is_bounded(delay: float, spread: float) -> None:
    rng = np.random.default_rng(3)
    controller, _, path, _, rows = played(ATHENA, False, lambda i: delay + spread * rng.random(), skew=0.02)
    assert controller.refused == []
    # Each message makes the controller stand still for one of its cycles, here one in 2.5; then it catches up.
    assert fastest(ATHENA, path) <= 2.5 / 1.5 + 0.03
    np.testing.assert_allclose(path[-1], rows[-1], atol=0.2)


@pytest.mark.parametrize("stamped", [False, True])
def test_a_controller_that_hears_nothing_more_comes_to_rest_inside_the_limits(stamped: bool) -> None:
    """All messages after one second are lost, while the joints move fast."""
    body = ATHENA
    controller, times, path, _, _ = played(body, stamped, lambda i: 0.002, lost=lambda i: i >= 200)
    speed = np.diff(path, axis=0) * RATE
    still = np.flatnonzero(np.abs(speed).max(axis=1) > 1e-9)[-1]
    assert np.abs(speed[int(1.0 * RATE) - 5]).max() > 0.5  # [rad/s] there was something to brake
    assert times[still] - 1.0 - LEAD <= float((body.max_velocity / body.max_acceleration).max()) + 0.05
    assert ((path >= body.lower - 1e-9) & (path <= body.upper + 1e-9)).all()
    assert fastest(body, path) <= (1.001 if stamped else 2.5 / 1.5 + 0.03)
    assert controller.refused == []


@pytest.mark.parametrize("name", ["athena", "toy", "unitree_g1_23dof"])
def test_braking_keeps_the_limits_from_wherever_the_filter_is(name: str) -> None:
    """Second divided differences of the two newest commands and all points after them, by an independent count."""
    body = embodiment.load(name)
    rng = np.random.default_rng(4)
    guard, period = SafetyFilter(body), 1.0 / body.command_hz
    points, target, braked = TrajectoryPoints(body, lead=0.1, stamped=False), body.default, 0
    for k in range(600):
        if k % 25 == 0:
            target = rng.uniform(body.lower - 0.5, body.upper + 0.5)
        before = guard.position
        made = points.add(k * period, guard.step(target, k * period)[None])
        assert (np.diff(made.times) > 0).all()
        assert len(made.times) <= 16
        times = np.concatenate([[made.times[0] - period], made.times])
        rows = np.concatenate([before[None], made.rows])
        assert ((rows >= body.lower - 1e-9) & (rows <= body.upper + 1e-9)).all()
        if len(rows) > 2:
            speed = np.diff(rows, axis=0) / np.diff(times)[:, None]
            change = np.diff(speed, axis=0) / (0.5 * (times[2:] - times[:-2]))[:, None]
            assert (np.abs(change) <= body.max_acceleration * (1 + 1e-5)).all()
            left = np.abs(speed[-1]) / body.max_acceleration
            assert (left <= (times[-1] - times[-2]) + period).all()  # in the last stretch it comes to rest
            braked += 1
    assert braked > 300


def test_a_clock_that_is_set_back_leaves_times_that_increase(toy: Embodiment) -> None:
    points = TrajectoryPoints(toy, lead=0.1, stamped=True)
    for now in (10.0, 10.01, 10.02, 5.0, 5.01, 5.01, 9.0):
        made = points.add(now, toy.default[None])
        assert (np.diff(made.times) > 0).all()
        assert abs(made.begin + made.times[-1] - now - 0.1) < 1e-9


def test_a_lead_that_makes_no_sense_is_refused(toy: Embodiment) -> None:
    for lead in (0.0, 0.001, 5.0, float("nan")):
        with pytest.raises(SafetyError, match="lead_s"):
            TrajectoryPoints(toy, lead=lead, stamped=True)


@pytest.mark.parametrize("lost", [0.05, 0.3])
def test_lost_and_late_messages_out_of_order_make_no_jump(lost: float) -> None:
    rng = np.random.default_rng(2)
    gone = rng.random(500) < lost
    controller, _, path, _, _ = played(
        ATHENA, True, lambda i: rng.uniform(0.0, 0.06), lost=lambda i: bool(gone[i]), jitter=0.2, in_order=False
    )
    assert controller.refused == []
    assert fastest(ATHENA, path) <= 1.15


def test_one_point_stamped_with_our_clock_is_what_a_controller_refuses() -> None:
    """The rule that the points are built for: the witness is able to refuse."""
    body = ATHENA
    message = shaped(JointMap(body).trajectory(body.joint_names, body.default[None], 0.005, 100.0))
    controller = JointTrajectoryController(list(body.joint_names), body.default)
    assert controller.on_topic(message, 100.004)
    assert not controller.on_topic(message, 100.006)
    assert "ends in the past" in controller.refused[0]
    arms = [j.name for j in body.joints if j.group == "arms"]
    assert not JointTrajectoryController(arms, np.zeros(len(arms))).on_topic(message, 100.0)


def test_a_controller_of_some_joints_gets_those(toy: Embodiment, graph: SimpleNamespace) -> None:  # noqa: F811
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    robot = GraphRobot(
        RclpyGraph(graph.node), toy, JointMap(toy, {"base": "j0"}), PARAMETERS | {"joints": ["base", "finger"]}
    )
    controller = JointTrajectoryController(["finger", "j0"], toy.default[[2, 0]])
    robot.command(np.array([0.3, 0.2, 0.1]))
    (_, message) = graph.published.pop()
    assert controller.on_topic(message, 10.03), controller.refused
    np.testing.assert_allclose(controller.update(11.0), [0.1, 0.3])
    group = toy.joints[0].group
    assert named_joints(toy, [group]) == tuple(j.name for j in toy.joints if j.group == group)
    with pytest.raises(UnknownName, match="Did you mean 'finger'"):
        named_joints(toy, ["fingr"])


class Future:
    """A future of rclpy that is told its result."""

    def __init__(self) -> None:
        self.calls: list[Callable[[Any], None]] = []
        self.answer: Callable[[], None] = lambda: None

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self.calls.append(call)

    def set(self, value: Any) -> None:
        self.value = value
        for call in self.calls:
            call(self)

    def result(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Server:
    """A FollowJointTrajectory server in front of the controller, with the statuses of action_msgs."""

    def __init__(self, controller: JointTrajectoryController) -> None:
        self.controller, self.now = controller, 10.02
        self.open: list[tuple[Any, Future]] = []

    def send_goal_async(self, goal: Any) -> Future:
        asked = Future()
        found = self.controller.on_goal(goal.trajectory, self.now)
        result = Future()
        if found.accepted:
            self.open.append((found, result))
        asked.answer = lambda: asked.set(Fields(accepted=found.accepted, get_result_async=lambda: result))
        self.asked = asked
        return asked

    def tell(self) -> None:
        """Every goal that ended sends its result."""
        for goal, result in [x for x in self.open if x[0].error_code is not None]:
            self.open.remove((goal, result))
            status = 5 if goal.canceled else 4 if goal.error_code == 0 else 6
            result.set(Fields(status=status, result=Fields(error_code=goal.error_code, error_string=goal.error_string)))


@pytest.fixture
def arm(toy: Embodiment, graph: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:  # noqa: F811
    """A node that sends goals to a controller, and both clocks."""
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    controller = JointTrajectoryController(list(toy.joint_names), toy.default)
    server = Server(controller)
    robot = GraphRobot(RclpyGraph(graph.node), toy, JointMap(toy), PARAMETERS | {"action": "/arm/follow"})
    monkeypatch.setattr(robot._goals, "_client", server)
    return SimpleNamespace(robot=robot, server=server, controller=controller, body=toy, clock=graph)


def goal(arm: SimpleNamespace, to: float) -> None:
    """One control step of commands, which is one goal; the answer of the server arrives."""
    for k in range(round(arm.body.command_hz / arm.body.control_hz)):
        arm.robot.command(arm.body.default + to * k * 1e-3)
    arm.server.asked.answer()
    arm.clock.now += 1.0 / arm.body.control_hz
    arm.server.now = arm.clock.now + 0.02


def refusal(arm: SimpleNamespace) -> str:
    with pytest.raises(InvalidObservation) as error:
        arm.robot.observe()
    return str(error.value)


def test_goals_follow_each_other_and_preemption_is_no_fault(arm: SimpleNamespace) -> None:
    for _ in range(5):
        goal(arm, 1.0)
        arm.server.tell()
        assert "JointState" in refusal(arm)  # nothing but the missing state
    assert arm.controller.refused == []
    assert len(arm.server.open) == 1  # the newest; the four before were canceled
    arm.controller.update(20.0)
    arm.server.tell()
    assert "JointState" in refusal(arm)
    assert not arm.server.open


def test_a_refused_goal_is_a_missing_observation_until_one_is_accepted(arm: SimpleNamespace) -> None:
    arm.controller.joints.append("another")
    goal(arm, 1.0)
    assert refusal(arm) == "Controller '/arm/follow': it refused a goal."
    arm.controller.joints.pop()
    goal(arm, 1.0)
    assert "JointState" in refusal(arm)


def test_a_goal_that_the_controller_gives_up_is_named(arm: SimpleNamespace) -> None:
    arm.controller.tolerance = 0.1
    goal(arm, 1.0)
    arm.controller.update(10.03, disturbance=0.5)
    arm.server.tell()
    assert refusal(arm) == "Controller '/arm/follow': it ended a goal: Aborted due to path tolerance violation."
    goal(arm, 1.0)
    arm.controller.update(20.0, disturbance=0.5)
    assert arm.server.open[0][0].error_code == GOAL_TOLERANCE
    arm.server.tell()
    assert "goal tolerance" in refusal(arm)


def test_answers_that_come_late_or_never_are_no_crash(arm: SimpleNamespace) -> None:
    goal(arm, 1.0)
    first = arm.server.open[0][1]
    goal(arm, 1.0)
    first.set(Fields(status=6, result=Fields(error_code=INVALID_GOAL, error_string="old")))  # of a goal long replaced
    assert "JointState" in refusal(arm)
    for _ in range(round(arm.body.command_hz / arm.body.control_hz)):
        arm.robot.command(arm.body.default)
    arm.server.asked.set(RuntimeError("the server went away"))
    assert refusal(arm) == "Controller '/arm/follow': the goal could not be sent: the server went away."


def test_parameters_reach_the_loop_and_the_filter(toy: Embodiment) -> None:
    changed = {"owners": ["arm=locked"], "safe_pose": ["base=0.5"], "speed": 0.3, "heartbeat_s": 2.0}
    config = runtime_config(PARAMETERS | changed)
    assert (config.owners, config.heartbeat) == ({"arm": "locked"}, 2.0)
    guard = safety_filter(toy, PARAMETERS | changed)
    assert guard.fallback.safe_pose == (0.5, *toy.default[1:])
    assert guard.speed == 0.3
    for name, value, words in (
        ("owners", ["arm=nobody"], "owner 'nobody'"),
        ("owners", ["arm"], "pair of a parameter 'arm'"),
        ("safe_pose", ["bsae=1"], "Did you mean 'base'"),
        ("guards", ["colision"], "guard 'colision'"),
    ):
        make = runtime_config if name == "owners" else lambda p: safety_filter(toy, p)
        with pytest.raises(UnknownName, match=words):
            make(PARAMETERS | {name: value})


def test_the_page_has_every_parameter() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    table = page[page.index("| parameter | default |") :].split("\n\n")[0]
    assert [p for p in PARAMETERS if f"`{p}`" not in table] == []
