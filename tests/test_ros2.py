"""ROS 2 messages, by name and both ways, and deployments as MCAP bags; on message-shaped data, without ROS."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Embodiment
from athena_vla.errors import InvalidEmbodiment, InvalidObservation, RecordingError, UnknownName
from athena_vla.ros2.bag import read_bag, write_bag
from athena_vla.ros2.messages import JointMap, duration, image, image_message, seconds


def shaped(value: Any) -> Any:
    """A dictionary as the message it stands for: fields as attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{k: shaped(v) for k, v in value.items()})
    return [shaped(v) for v in value] if isinstance(value, list) else value


def test_joints_are_found_by_name_in_any_order(toy: Embodiment) -> None:
    joints = JointMap(toy, {"base": "j0"})
    message = shaped({"name": ["finger", "other", "j0", "shoulder"], "position": [3.0, 9.0, 1.0, 2.0]})
    np.testing.assert_array_equal(joints.state(message), [1.0, 2.0, 3.0])
    state = np.array([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(joints.state(shaped(joints.joint_state(state, 1.5))), state)


@pytest.mark.parametrize(
    ("names", "positions", "fault"),
    [
        (["base", "shoulder"], [0.0, 0.0], "finger"),
        (["base", "base", "shoulder", "finger"], [0.0] * 4, "twice"),
        (["base", "shoulder", "finger"], [0.0, 0.0], "2 positions"),
        (["base", "shoulder", "finger"], [0.0, float("nan"), 0.0], "not numbers"),
    ],
)
def test_a_joint_state_that_does_not_fit_is_refused(toy: Embodiment, names: Any, positions: Any, fault: str) -> None:
    with pytest.raises(InvalidObservation, match=fault):
        JointMap(toy).state(shaped({"name": names, "position": positions}))


def test_maps_are_checked_at_construction(toy: Embodiment) -> None:
    with pytest.raises(UnknownName):
        JointMap(toy, {"thumb": "x"})
    with pytest.raises(InvalidEmbodiment, match="share"):
        JointMap(toy, {"base": "finger"})


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_images_in_every_encoding(encoding: str, padding: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    if encoding == "mono8":
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
        raw = rgb[..., :1]
    else:
        raw = rgb[..., ::-1] if encoding.startswith("bgr") else rgb
        if encoding.endswith("a8"):
            raw = np.concatenate([raw, np.full((4, 6, 1), 7, np.uint8)], axis=2)
    rows = np.pad(raw.reshape(4, -1), ((0, 0), (0, padding)))
    message = {"encoding": encoding, "height": 4, "width": 6, "step": rows.shape[1], "data": rows.tobytes()}
    np.testing.assert_array_equal(image(shaped(message)), rgb)
    np.testing.assert_array_equal(image(shaped(image_message(rgb, 1.0))), rgb)


@pytest.mark.parametrize("change", [{"encoding": "16UC1"}, {"step": 3}, {"data": b"12"}, {"height": 0}])
def test_images_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    message = image_message(np.zeros((4, 6, 3), np.uint8), 0.0) | change
    with pytest.raises(InvalidObservation, match="Image"):
        image(shaped(message))


@pytest.mark.parametrize("time", [0.0, 1.25, 1e9 + 0.123456789, 0.9999999999, -0.25])
def test_times_go_both_ways(time: float) -> None:
    stamp = duration(time)
    assert 0 <= stamp["nanosec"] < 10**9
    assert abs(seconds(shaped(stamp)) - time) < 2e-7
    with pytest.raises(InvalidObservation):
        duration(float("nan"))


def test_a_chunk_is_a_trajectory_and_back(toy: Embodiment) -> None:
    joints = JointMap(toy, {"shoulder": "j1"})
    chunk = ActionChunk(np.random.default_rng(0).normal(size=(5, 2)), ("finger", "shoulder"), 0.1, 2.5)
    message = joints.chunk_trajectory(chunk)
    assert message["joint_names"] == ["finger", "j1"]
    assert message["points"][4]["time_from_start"] == {"sec": 0, "nanosec": 500_000_000}
    back = joints.chunk(shaped(message))
    np.testing.assert_array_equal(back.positions, chunk.positions)
    assert (back.joint_names, back.time) == (chunk.joint_names, chunk.time)
    assert abs(back.dt - chunk.dt) < 1e-12
    for change in ({"joint_names": ["thumb", "j1"]}, {"points": []}, {"points": message["points"][::-1]}):
        with pytest.raises(InvalidObservation, match="JointTrajectory"):
            joints.chunk(shaped(message | change))


def test_a_deployment_becomes_a_bag_and_comes_back(toy: Embodiment, tmp_path) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from test_runtime import Puppet, Wave

    config = RuntimeConfig(record_images=True, replan_every=4)
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=1.0, config=config)
    joints = JointMap(toy, {"base": "arm_base"})
    bag = read_bag(write_bag(tmp_path / "run.mcap", trace, joints), joints)
    assert bag.instruction == trace.instruction
    np.testing.assert_array_equal(np.array(bag.commands), trace.commands)
    np.testing.assert_allclose(bag.command_times, trace.times, atol=1e-9)
    np.testing.assert_array_equal(np.array([o.state for o in bag.observations]), trace.states)
    assert len(bag.chunks) == len(trace.chunks)
    for ours, theirs in zip(trace.chunks, bag.chunks, strict=True):
        np.testing.assert_array_equal(ours.positions, theirs.positions)
    for ours, theirs in zip(trace.frames, bag.observations, strict=True):
        np.testing.assert_array_equal(ours.images["front"], theirs.images["front"])
    assert not list(tmp_path.glob("*.part"))
    again = SafetyFilter(toy)  # replayed without ROS: what was commanded passes a filter unchanged
    again.reset(bag.observations[0].state)
    for time, command in zip(bag.command_times, bag.commands, strict=True):
        np.testing.assert_array_equal(again.step(command, time), command)
    assert not again.interventions
    (tmp_path / "broken.mcap").write_bytes(b"not a bag at all")
    for name in ("broken.mcap", "absent.mcap"):
        with pytest.raises(RecordingError, match="bag"):
            read_bag(tmp_path / name, joints)


def test_the_node_says_what_is_missing() -> None:
    """The node itself was never run: here is no ROS. Importing it needs none, running it says so."""
    pytest.importorskip("msgpack")
    code = "from athena_vla.ros2 import node; node.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependency" in done.stderr or "rclpy" in done.stderr


class Fields(SimpleNamespace):
    """A ROS message, goal or profile: whatever fields it is made with."""


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for rclpy and the message packages that record what the node does with them."""
    seen = SimpleNamespace(now=10.0, subscribed={}, published=[], goals=[], server=True)
    names = {
        "rclpy.qos": {"QoSProfile": Fields, "ReliabilityPolicy": Fields(BEST_EFFORT="best", RELIABLE="reliable")},
        "sensor_msgs.msg": dict.fromkeys(("Image", "JointState"), Fields),
        "std_msgs.msg": dict.fromkeys(("String", "Header"), Fields),
        "trajectory_msgs.msg": dict.fromkeys(("JointTrajectory", "JointTrajectoryPoint"), Fields),
        "builtin_interfaces.msg": dict.fromkeys(("Duration", "Time"), Fields),
        "control_msgs.action": {"FollowJointTrajectory": Fields(Goal=Fields)},
    }

    class Client:
        def __init__(self, node: Any, kind: Any, name: str) -> None:
            seen.action = name

        def wait_for_server(self, timeout_sec: float) -> bool:
            return seen.server

        def send_goal_async(self, goal: Any) -> Any:
            seen.goals.append(goal)
            return Fields(add_done_callback=lambda call: None)

    names["rclpy.action"] = {"ActionClient": Client}
    for module, content in names.items():
        for package in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, package, Fields(__path__=[]))
        monkeypatch.setitem(sys.modules, module, Fields(**content))

    def publisher(kind: Any, topic: str, quality: Any) -> Any:
        seen.command_quality = quality
        return Fields(publish=lambda message: seen.published.append((topic, message)))

    seen.node = Fields(
        get_clock=lambda: Fields(now=lambda: Fields(nanoseconds=seen.now * 1e9)),
        create_subscription=lambda kind, topic, call, quality: seen.subscribed.update({topic: (call, quality)}),
        create_publisher=publisher,
        get_logger=lambda: Fields(warning=lambda *a, **k: seen.published.append(("warning", a[0]))),
    )
    return seen


def test_the_node_perceives_and_commands(toy: Embodiment, graph: SimpleNamespace) -> None:
    """The node's own code against stand-ins; a live ROS graph was never there."""
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.parameters import PARAMETERS
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    changed = {"frame_id": "torso", "task": "wave", "depth": 3, "command_best_effort": True}
    joints = JointMap(toy, {"base": "j0"})
    robot = GraphRobot(RclpyGraph(graph.node), toy, joints, PARAMETERS | changed)
    with pytest.raises(InvalidObservation, match="JointState"):
        robot.observe()
    on_state, quality = graph.subscribed["/joint_states"]
    assert (quality.depth, quality.reliability) == (3, "best")
    assert graph.command_quality.reliability == "best"
    state = np.array([0.1, 0.2, 0.3])
    on_state(shaped(joints.joint_state(state, 10.0)))
    with pytest.raises(InvalidObservation, match="cameras \\['front'\\]"):
        robot.observe()
    camera = toy.cameras[0]
    pixels = np.random.default_rng(0).integers(0, 256, (camera.height, camera.width, 3)).astype(np.uint8)
    graph.subscribed["/camera/front/image_raw"][0](shaped(image_message(pixels, 10.0)))
    seen = robot.observe().require(toy)
    np.testing.assert_array_equal(seen.state, state)
    np.testing.assert_array_equal(seen.images["front"], pixels)
    assert (seen.instruction, seen.time) == ("wave", 10.0)
    graph.subscribed["/athena/task"][0](Fields(data="point"))
    on_state(shaped({"name": ["j0"], "position": [1.0]}))  # does not fit: told, and nothing taken over
    assert graph.published.pop()[0] == "warning"
    assert robot.observe().instruction == "point"
    robot.command(state)
    topic, message = graph.published.pop()
    assert topic == PARAMETERS["command_topic"]
    assert (message.header.frame_id, message.joint_names) == ("torso", ["j0", "shoulder", "finger"])
    np.testing.assert_array_equal(joints.chunk(message).positions, state[None])
    graph.now += 1.0
    with pytest.raises(InvalidObservation, match="JointState"):
        robot.observe()


def test_the_node_sends_goals_once_per_control_step(toy: Embodiment, graph: SimpleNamespace) -> None:
    from athena_vla.errors import SafetyError
    from athena_vla.ros2.graph_robot import GraphRobot
    from athena_vla.ros2.parameters import PARAMETERS
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    joints = JointMap(toy)
    goals = {"action": "/arm/follow_joint_trajectory", "stamp": "zero"}
    robot = GraphRobot(RclpyGraph(graph.node), toy, joints, PARAMETERS | goals)
    assert graph.action == "/arm/follow_joint_trajectory"
    each = round(toy.command_hz / toy.control_hz)
    rows = np.linspace(0.0, 0.1, 2 * each)[:, None] + np.zeros(3)
    for row in rows:
        robot.command(row)
    assert len(graph.goals) == 2
    assert not graph.published
    sent = [[p.positions for p in goal.trajectory.points[:each]] for goal in graph.goals]
    np.testing.assert_array_equal(np.concatenate(sent), rows)
    graph.server = False
    with pytest.raises(SafetyError, match="FollowJointTrajectory"):
        GraphRobot(RclpyGraph(graph.node), toy, joints, PARAMETERS | {"action": "/nobody"})


def test_the_launch_file_passes_what_differs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import runpy

    from athena_vla.ros2 import node as ros2_node

    monkeypatch.setattr(sys, "argv", ["athena-ros2-node", "--launch-file"])
    ros2_node.main()
    path = capsys.readouterr().out.strip()
    actions = Fields(
        DeclareLaunchArgument=lambda name, default_value: (name, default_value),
        ExecuteProcess=Fields,
        OpaqueFunction=lambda function: function,
    )
    monkeypatch.setitem(sys.modules, "launch", Fields(LaunchDescription=list))
    monkeypatch.setitem(sys.modules, "launch.actions", actions)
    *declared, start = runpy.run_path(path)["generate_launch_description"]()
    assert [name for name, _ in declared] == list(ros2_node.PARAMETERS)
    given = dict(declared) | {"robot": "toy", "best_effort": "false", "renamed": "[base=j0]"}
    [process] = start(Fields(launch_configurations=given))
    expected = ["-p", "robot:=toy", "-p", "best_effort:=false", "-p", "renamed:=[base=j0]"]
    assert process.cmd == ["athena-ros2-node", "--ros-args", *expected]


def test_a_deployment_becomes_the_next_lerobot_dataset(toy: Embodiment, tmp_path) -> None:
    """Trace -> folder layout -> LeRobot v3.0, through the ordinary conversion."""
    from athena_vla.recordings.convert import ConvertConfig, convert
    from athena_vla.recordings.formats import open_recording
    from athena_vla.recordings.formats.isaac_folder import write_episode
    from athena_vla.sim.deployed_episodes import trace_to_episode
    from test_runtime import Puppet, Wave

    config = RuntimeConfig(record_images=True, replan_every=4)
    traces = [run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=d, config=config) for d in (1.0, 2.0)]
    written = [trace_to_episode(t, toy, id=f"episode_{i:04d}", success=True) for i, t in enumerate(traces)]
    for episode in written:
        write_episode(tmp_path / "deployment", episode)
    convert(ConvertConfig(input=tmp_path / "deployment", out=tmp_path / "set", to="lerobot_v3"))
    back = open_recording(tmp_path / "set")
    episodes = [back.read(i) for i in back.ids()]
    for episode, found in zip(written, episodes, strict=True):
        np.testing.assert_allclose(found.actions, episode.actions, rtol=0, atol=1e-7)
        np.testing.assert_allclose(found.states, episode.states, rtol=0, atol=1e-7)
        assert found.instructions[0] == episode.instructions[0]
    assert episodes[1].joint_names == toy.joint_names
    assert list(episodes[1].cameras) == ["front"]


def test_a_deployment_becomes_a_recording_in_the_folder_layout(toy: Embodiment, tmp_path) -> None:
    from athena_vla.recordings.formats import open_recording
    from athena_vla.recordings.formats.isaac_folder import write_episode
    from athena_vla.sim.deployed_episodes import trace_to_episode
    from test_runtime import Puppet, Wave

    config = RuntimeConfig(record_images=True, replan_every=4)
    trace = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=1.0, config=config)
    episode = trace_to_episode(trace, toy, id="run_0", success=True)
    np.testing.assert_array_equal(episode.actions, trace.commands[: trace.braking_from][9::10])
    write_episode(tmp_path, episode)
    back = open_recording(tmp_path).read("run_0")
    np.testing.assert_array_equal(back.actions, episode.actions)
    np.testing.assert_array_equal(back.states, episode.states)
    assert back.instructions[0] == trace.instruction
    assert back.success is True
    no_images = run_episode(Puppet(toy), Wave(toy), SafetyFilter(toy), duration=0.5)
    with pytest.raises(RecordingError, match="record_images"):
        trace_to_episode(no_images, toy, id="x")
