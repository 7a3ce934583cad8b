"""Channels in a ROS 2 graph and in bags: where each goes, what is refused, and back again. No live graph was there."""

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Channel, Embodiment, Observation
from athena_vla.errors import InvalidEmbodiment, InvalidObservation, RecordingError, UnknownName
from athena_vla.ros2.bag import Topics, read_bag, write_bag
from athena_vla.ros2.channel_topics import ChannelTopic, ChannelTopics
from athena_vla.ros2.messages import JointMap
from channels import FORCE, GRIP, HEIGHT, YAW_RATE, robot
from test_ros2 import Fields, graph, shaped  # noqa: F401  a fixture

FORWARD = Channel("forward", "m/s", -0.5, 0.5, 1.0, 8.0, when_nothing="zero", resample="hold")
SPEED = Channel("shoulder_velocity", "rad/s", -3.0, 3.0, observed=True)
COMMANDS = ("base_height=/height:Float64", "forward=/cmd_vel:Twist.linear.x", "yaw_rate=/cmd_vel:Twist.angular.z")
STATES = ("base_height=/odom/height:Float64", "shoulder_velocity=/joint_states:JointState.velocity.shoulder")


def walker() -> Embodiment:
    return robot(HEIGHT, FORWARD, YAW_RATE, SPEED)


def test_velocities_share_a_twist_and_a_height_has_its_own_message() -> None:
    topics = ChannelTopics.of(walker(), COMMANDS, STATES)
    sent = topics.command_messages(np.array([0.7, 0.2, -0.1]), {})
    assert sent == [
        ("/height", "Float64", {"data": 0.7}),
        ("/cmd_vel", "Twist", {"linear": {"x": 0.2, "y": 0.0, "z": 0.0}, "angular": {"x": 0.0, "y": 0.0, "z": -0.1}}),
    ]
    stamped = tuple(c.replace("Twist.", "TwistStamped.") for c in COMMANDS)
    head = {"stamp": {"sec": 1, "nanosec": 0}, "frame_id": "base"}
    [_, (_, kind, content)] = ChannelTopics.of(walker(), stamped, STATES).command_messages(
        np.array([0.7, 0.2, -0.1]), head
    )
    assert (kind, content["header"], content["twist"]["linear"]["x"]) == ("TwistStamped", head, 0.2)


BAD = {
    "no message": ("yaw_rate=/cmd_vel", "is no place of a channel"),
    "an unknown message": ("yaw_rate=/cmd_vel:Pose.x", "is no place of a channel"),
    "an axis that is none": ("yaw_rate=/cmd_vel:Twist.angular.w", "is no place of a channel"),
    "a field of a number": ("yaw_rate=/yaw:Float64.data", "is no place of a channel"),
    "a joint state without a joint": ("shoulder_velocity=/js:JointState.velocity", "is no place of a channel"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_place_that_is_none_is_refused(name: str) -> None:
    text, words = BAD[name]
    with pytest.raises(InvalidObservation, match=words):
        ChannelTopic.parse(text)


def test_a_robot_is_refused_while_a_channel_has_no_place() -> None:
    body = walker()
    with pytest.raises(InvalidEmbodiment, match="commanded channels forward, yaw_rate have no place"):
        ChannelTopics.of(body, COMMANDS[:1], STATES)
    with pytest.raises(InvalidEmbodiment, match="observed channels shoulder_velocity have no place"):
        ChannelTopics.of(body, COMMANDS, STATES[:1])
    with pytest.raises(InvalidEmbodiment, match="waist is no commanded channel of it; it has base_height, forward"):
        ChannelTopics.of(body, (*COMMANDS, "waist=/w:Float64"), STATES)
    with pytest.raises(InvalidEmbodiment, match="cannot share /cmd_vel"):
        ChannelTopics.of(body, (*COMMANDS[:2], "yaw_rate=/cmd_vel:Twist.linear.x"), STATES)
    with pytest.raises(InvalidEmbodiment, match="cannot be commanded by a JointState"):
        ChannelTopics.of(body, ("base_height=/js:JointState.position.h", *COMMANDS[1:]), STATES)
    with pytest.raises(InvalidEmbodiment, match="a joint and a channel, share the names"):
        JointMap(body, {"shoulder": "forward"})


class Body:
    """A robot that is where it was told to be; its speed is a number of its own."""

    def __init__(self, body: Embodiment) -> None:
        self.embodiment, self.ticks = body, 0
        self.told = body.command_columns.default.copy()

    @property
    def time(self) -> float:
        return self.ticks / self.embodiment.command_hz

    def observe(self) -> Observation:
        image = np.zeros((48, 64, 3), np.uint8)
        return Observation({"front": image}, np.append(self.told[:4], 0.25 + self.time), "walk", self.time)

    def command(self, positions: np.ndarray, /) -> None:
        self.told, self.ticks = positions.copy(), self.ticks + 1


class Walker:
    def act(self, observation: Observation, /) -> ActionChunk:
        rows = np.tile([0.3, 0.6, 0.4, -0.3], (16, 1))
        return ActionChunk(rows, ("base", "base_height", "forward", "yaw_rate"), 0.1, observation.time)


@pytest.mark.parametrize("told", [False, True])
def test_a_deployment_with_channels_becomes_a_bag_and_comes_back(tmp_path, told: bool) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("mcap_ros2", reason="mcap-ros2-support is not installed")
    body = walker()
    trace = run_episode(Body(body), Walker(), SafetyFilter(body), duration=1.0, config=RuntimeConfig(replan_every=4))
    joints, places = JointMap(body, {"base": "arm_base"}), ChannelTopics.of(body, COMMANDS, STATES) if told else None
    path = write_bag(tmp_path / "run.mcap", trace, joints, None, places)
    bag = read_bag(path, joints, None, places)
    np.testing.assert_array_equal(np.array(bag.commands), trace.commands)
    np.testing.assert_array_equal(np.array([o.state for o in bag.observations]), trace.states)
    assert trace.commands[:, 4].max() > 0.3  # it did walk
    for ours, theirs in zip(trace.chunks, bag.chunks, strict=True):
        assert ours.joint_names == theirs.joint_names
        np.testing.assert_array_equal(ours.positions, theirs.positions)

    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory  # another reading of the same bytes

    topic, kind = ("/cmd_vel", "Twist") if told else ("/athena/command/forward", "Float64")
    with path.open("rb") as file:
        read = [
            message
            for schema, channel, _, message in make_reader(
                file, decoder_factories=[DecoderFactory()]
            ).iter_decoded_messages()
            if channel.topic == topic and schema is not None and schema.name.endswith(f"/{kind}")
        ]
    found: list[Any] = list(read)
    np.testing.assert_array_equal([m.linear.x if told else m.data for m in found], trace.commands[:, 4])
    if told:
        np.testing.assert_array_equal([m.angular.z for m in found], trace.commands[:, 5])


def test_a_bag_that_lacks_a_channel_names_it(tmp_path) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    body = walker()
    trace = run_episode(Body(body), Walker(), SafetyFilter(body), duration=0.3)
    path = write_bag(tmp_path / "run.mcap", trace, JointMap(body))
    with pytest.raises(RecordingError, match="no value of the channels forward, yaw_rate at 0.000 s"):
        read_bag(
            path,
            JointMap(body),
            Topics(),
            ChannelTopics.of(body, ("base_height=/athena/command/base_height:Float64", *COMMANDS[1:]), STATES),
        )


@pytest.fixture
def messages(graph: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:  # noqa: F811
    """The stand-ins, with the messages of channels and of a person's stop."""
    types = {"Float64": Fields, "String": Fields, "Header": Fields, "Empty": Fields}
    monkeypatch.setitem(sys.modules, "std_msgs.msg", Fields(**types))
    for module, content in {
        "geometry_msgs.msg": dict.fromkeys(("Twist", "TwistStamped", "Vector3"), Fields),
        "std_srvs.srv": {"Trigger": Fields},
    }.items():
        for package in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, package, Fields(__path__=[]))
        monkeypatch.setitem(sys.modules, module, Fields(**content))
    graph.services = {}
    graph.node.create_service = lambda kind, name, call: graph.services.update({name: call})
    return graph


def parameters(**changed: Any) -> dict[str, Any]:
    from athena_vla.ros2.parameters import PARAMETERS

    return PARAMETERS | {"command_channels": list(COMMANDS), "state_channels": list(STATES)} | changed


def test_the_node_carries_channels_both_ways(messages: SimpleNamespace) -> None:
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    body = dataclasses.replace(walker(), cameras=())
    joints = JointMap(body)
    node = GraphRobot(RclpyGraph(messages.node), body, joints, parameters())
    state = shaped(joints.joint_state(np.array([0.1, 0.2, 0.3]), 10.0))
    state.velocity = [0.0, 1.25, 0.0]
    messages.subscribed["/joint_states"][0](state)
    with pytest.raises(InvalidObservation, match="No value of the channels base_height"):
        node.observe()
    messages.subscribed["/odom/height"][0](Fields(data=0.66))
    np.testing.assert_array_equal(node.observe().state, [0.1, 0.2, 0.3, 0.66, 1.25])
    messages.subscribed["/odom/height"][0](Fields(data=float("nan")))
    assert messages.published.pop()[0] == "warning"
    assert node.observe().state[3] == 0.66
    node.command(np.array([0.1, 0.2, 0.3, 0.5, 0.25, -0.5]))
    sent = dict(messages.published)
    assert sent["/height"].data == 0.5
    assert (sent["/cmd_vel"].linear.x, sent["/cmd_vel"].angular.z) == (0.25, -0.5)
    assert sent["/joint_trajectory_controller/joint_trajectory"].joint_names == ["base", "shoulder", "finger"]
    with pytest.raises(InvalidEmbodiment, match="have no place in the graph"):
        GraphRobot(RclpyGraph(messages.node), body, joints, parameters(command_channels=[""]))


def test_freshness_is_judged_by_the_stamp_of_the_message(messages: SimpleNamespace) -> None:
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    body = dataclasses.replace(robot(GRIP), cameras=())
    joints = JointMap(body)
    changed = {"command_channels": ["grip=/grip:Float64"], "state_channels": [""]}
    node = GraphRobot(RclpyGraph(messages.node), body, joints, parameters(**changed))
    call = messages.subscribed["/joint_states"][0]
    call(shaped(joints.joint_state(np.zeros(3), 9.9)))
    assert node.observe().time == 9.9  # not 10.0, when it arrived
    call(shaped(joints.joint_state(np.zeros(3), 9.0)))  # arrives now, and is a second old
    with pytest.raises(InvalidObservation, match="1.00 s ago"):
        node.observe()
    call(shaped(joints.joint_state(np.zeros(3), 12.0)))
    with pytest.raises(InvalidObservation, match="2.00 s ahead of this clock"):
        node.observe()
    call(shaped(joints.joint_state(np.zeros(3), 0.0)))  # no stamp: from its arrival
    assert node.observe().time == 10.0


def test_trajectories_are_stamped_with_the_lead_unless_asked_otherwise(messages: SimpleNamespace) -> None:
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    body = dataclasses.replace(robot(GRIP), cameras=())
    changed = {"command_channels": ["grip=/grip:Float64"], "state_channels": [""]}
    for stamp, expected in (("zero", (0, 0)), ("now", (10, 90_000_000))):  # the point is due one period later
        node = GraphRobot(RclpyGraph(messages.node), body, JointMap(body), parameters(**changed, stamp=stamp))
        node.command(np.zeros(4))
        head = dict(messages.published)["/joint_trajectory_controller/joint_trajectory"].header
        assert (head.stamp.sec, head.stamp.nanosec) == expected
    with pytest.raises(UnknownName, match="'later'"):
        GraphRobot(RclpyGraph(messages.node), body, JointMap(body), parameters(**changed, stamp="later"))


def test_a_person_stops_and_acknowledges_through_services_and_a_topic(messages: SimpleNamespace) -> None:
    from athena_vla.control.runtime import Runtime
    from athena_vla.ros2.node import offer_stop
    from athena_vla.ros2.parameters import runtime_config
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    body = robot()
    config = runtime_config(parameters(latch=False, heartbeat_s=0.0, groups=["arm"], shadow=True))
    assert (config.latch, config.heartbeat, config.groups, config.shadow) == (False, None, ("arm",), True)

    class Shown:
        embodiment, time = body, 0.0

    runtime = Runtime(Shown(), Walker(), SafetyFilter(body), RuntimeConfig())  # type: ignore[arg-type]
    offer_stop(RclpyGraph(messages.node), runtime)

    def ask(name: str) -> tuple[bool, str]:
        response = messages.services[name](None, Fields(success=None, message=""))
        return response.success, response.message

    assert ask("~/acknowledge") == (False, "there was nothing to acknowledge")
    assert ask("~/stop")[0]
    assert ask("~/beat") == (True, "service ~/stop")
    assert ask("~/acknowledge") == (True, "goes on after: service ~/stop")
    messages.subscribed["/athena/stop"][0](Fields())
    assert ask("~/beat") == (True, "topic /athena/stop")


def test_a_measured_force_alone_needs_only_its_own_place() -> None:
    topics = ChannelTopics.of(robot(FORCE), [""], ["wrist_force=/wrench:Float64"])
    assert topics.command_messages(np.zeros(0), {}) == []
    assert topics.states[0].value(Fields(data=3.5)) == 3.5
