"""The node over DDS: real messages on the wire between two processes, and their bytes by a third reading of CDR."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import MissingDependency, SafetyError, UnknownName
from athena_vla.ros2.messages import JointMap, image_message
from athena_vla.ros2.parameters import PARAMETERS, given
from athena_vla.wire.server import PolicyServer, background

cyclonedds = pytest.importorskip("cyclonedds", reason="cyclonedds is not installed (extra dds; no aarch64 wheel)")
TESTS = Path(__file__).parent


@pytest.fixture
def domain(worker_id: str = "") -> int:
    """One that no other test of this run speaks in."""
    return 60 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * 2


def contents(toy: Embodiment) -> dict[str, dict[str, Any]]:
    joints = JointMap(toy, {"base": "j0"})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    rows, times = np.random.default_rng(1).normal(size=(3, 3)), np.array([0.005, 0.25, 1.75])
    twist = {"linear": {"x": 0.25, "y": 0.0, "z": -1.0}, "angular": {"x": 0.0, "y": 1e-9, "z": 3.0}}
    head = {"stamp": {"sec": 12, "nanosec": 345_678_901}, "frame_id": "pelvis"}
    return {
        "sensor_msgs/JointState": joints.joint_state(np.array([0.1, -0.2, 0.3]), 12.5, "odd"),
        "sensor_msgs/Image": image_message(pixels, 99.25, "head"),
        "trajectory_msgs/JointTrajectory": joints.timed_trajectory(toy.joint_names, rows, times, 100.5, "torso"),
        "std_msgs/String": {"data": "wave, please"},
        "std_msgs/Float64": {"data": -0.125},
        "std_msgs/Bool": {"data": True},
        "geometry_msgs/Twist": twist,
        "geometry_msgs/TwistStamped": {"header": head, "twist": twist},
    }


def test_the_bytes_are_those_of_another_implementation(toy: Embodiment) -> None:
    """rosbags writes the same message from ROS's own definitions: the same bytes but for padding at the end."""
    rosbags = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed (extra ros2)")
    from athena_vla.ros2.dds_types import TYPES, made, type_of

    store = rosbags.get_typestore(rosbags.Stores.ROS2_HUMBLE)

    def theirs(name: str, content: dict[str, Any]) -> Any:
        values = {}
        for field, (_, described) in store.fielddefs[name][1]:
            value = content[field]
            if isinstance(value, dict):
                value = theirs(described, value)
            elif isinstance(value, list) and value and isinstance(value[0], dict):
                value = [theirs(described[0][1], v) for v in value]
            elif isinstance(value, bytes):
                value = np.frombuffer(value, np.uint8)
            elif isinstance(value, list) and (not value or isinstance(value[0], float)):
                value = np.array(value, np.float64)
            values[field] = value
        return store.types[name](**values)

    for kind, content in contents(toy).items():
        package, _, name = kind.partition("/")
        full = f"{package}/msg/{name}"
        expected = bytes(store.serialize_cdr(theirs(full, content), full))
        ours = bytes(made(type_of(kind), content).serialize(use_version_2=False))
        assert ours[: len(expected)] == expected, kind
        assert len(ours) - len(expected) < 4, kind
        assert TYPES[kind].__idl_typename__.replace(".", "::") == f"{package}::msg::dds_::{name}_"
    with pytest.raises(UnknownName, match="Did you mean 'sensor_msgs/Image'"):
        type_of("sensor_msgs/Imag")


ROBOT = """
import json, sys, threading, time
import numpy as np
from athena_vla import embodiment
from athena_vla.ros2.dds_graph import DdsGraph
from athena_vla.ros2.messages import JointMap, image_message, seconds
from joint_trajectory_controller import JointTrajectoryController

domain = int(sys.argv[1])
body = embodiment.load("toy")
joints, graph = JointMap(body), DdsGraph(domain=domain)
controller = JointTrajectoryController(list(body.joint_names), body.default)
lock, got = threading.Lock(), []

def arrived(message):
    with lock:
        got.append(len(message.points))
        controller.on_topic(message, time.time())

graph.subscribe("trajectory_msgs/JointTrajectory", PLACE, arrived, depth=10)
state = graph.publisher("sensor_msgs/JointState", "/joint_states")
image = graph.publisher("sensor_msgs/Image", "/camera/front/image_raw")
stop = graph.publisher("std_msgs/Empty", "/athena/stop")
pixels = np.zeros((48, 64, 3), np.uint8)
print("ready", flush=True)
path, begun, k, stopped = [], time.time(), 0, None
while time.time() - begun < 6.0:
    with lock:
        q = controller.update(time.time()).copy()
    path.append((time.time() - begun, *q.tolist()))
    state(joints.joint_state(q, time.time()))
    if k % 4 == 0:
        image(image_message(pixels, time.time()))
    if stopped is None and abs(q - body.default).max() > 0.1 and len(got) > 100:
        stop({"structure_needs_at_least_one_member": 0})
        stopped = time.time() - begun
    k += 1
    time.sleep(0.01)
print(json.dumps({"path": path, "messages": len(got), "refused": controller.refused, "stopped": stopped}))
"""


class Waving:
    """Swings the first joint for ever."""

    def act(self, observation: Observation, /) -> ActionChunk:
        body = embodiment.load("toy")
        t = observation.time + np.arange(1, 9) / body.control_hz
        rows = np.tile(body.default, (8, 1))
        rows[:, 0] += 0.4 * np.sin(2.0 * t)
        return ActionChunk(rows[:, body.action_index], body.action_joints, 1 / body.control_hz, observation.time)


def test_the_node_drives_a_robot_in_another_process(toy: Embodiment, domain: int, tmp_path: Path) -> None:
    """Loopback only, no multicast. The robot plays what arrives by the controller's rules, and then stops the node."""
    script = tmp_path / "robot.py"
    script.write_text(ROBOT.replace("PLACE", repr(PARAMETERS["command_topic"])))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    robot = subprocess.Popen(
        [sys.executable, str(script), str(domain)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert robot.stdout is not None
    with background(PolicyServer(Waving(), toy)) as server:
        command = [sys.executable, "-m", "athena_vla.ros2.node", "--transport", "dds", "--ros-args", "-p", "robot:=toy"]
        command += ["-p", f"server:={server.address}", "-p", "duration_s:=5.0", "-p", "task:=wave"]
        node = subprocess.Popen(command, env={**environment, "ROS_DOMAIN_ID": str(domain)}, stderr=subprocess.PIPE)
        try:
            said = robot.communicate(timeout=60)[0]
            problems = node.communicate(timeout=60)[1].decode()
        finally:
            robot.kill()
            node.kill()
    found = json.loads(said.splitlines()[-1])
    assert found["messages"] > 200, problems
    assert not found["refused"], found["refused"][:3]
    path = np.array(found["path"])
    assert np.ptp(path[:, 1]) > 0.05  # it moved
    assert found["stopped"] is not None
    late = path[path[:, 0] > found["stopped"] + 1.5]
    assert len(late) > 10
    np.testing.assert_allclose(late[:, 1], late[0, 1], atol=1e-6)  # the stop arrived, and it stays at rest
    speed = np.abs(np.diff(path[:, 1:], axis=0)) / np.diff(path[:, 0])[:, None]
    assert (np.percentile(speed, 99, axis=0) <= toy.max_velocity * 1.1).all()


def test_what_dds_does_not_have_is_said(domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from athena_vla.ros2.dds_graph import DdsGraph, configuration

    graph = DdsGraph(domain=domain)
    with pytest.raises(SafetyError, match="no actions, so '/arm/follow'"):
        graph.goals("/arm/follow")
    assert 'name="eth&amp;0"' in configuration("eth&0")
    assert "<AllowMulticast>false" in configuration("lo")
    with pytest.raises(SafetyError, match="network 'nowhere0'"):
        DdsGraph("nowhere0", domain=domain + 1)
    monkeypatch.setitem(sys.modules, "cyclonedds.core", None)
    with pytest.raises(MissingDependency, match="cyclonedds"):
        DdsGraph(domain=domain)


def test_a_graph_carries_what_is_sent_and_offers_calls(domain: int) -> None:
    from athena_vla.ros2.dds_graph import DdsGraph

    graph, heard, called = DdsGraph(domain=domain), [], threading.Event()
    graph.subscribe("std_msgs/String", "/words", lambda m: heard.append(m.data), depth=10)
    graph.offer("stop", lambda: (called.set() or True, "braking"))
    say, stop = graph.publisher("std_msgs/String", "/words"), graph.publisher("std_msgs/Empty", "/athena_vla/stop")
    until = time.monotonic() + 10
    while len(heard) < 3 and time.monotonic() < until:
        say({"data": "hello"})
        time.sleep(0.02)
    assert heard[:3] == ["hello"] * 3
    stop({"structure_needs_at_least_one_member": 0})
    assert called.wait(10)


def test_a_person_takes_over_by_messages_on_the_wire(toy: Embodiment, domain: int) -> None:
    from athena_vla.ros2.dds_graph import DdsGraph
    from athena_vla.ros2.topic_teleoperator import TopicTeleoperator

    graph = DdsGraph(domain=domain)
    joints = JointMap(toy, {"base": "j0"})
    made = TopicTeleoperator(graph, joints, "/wish", "/take_over", "JointTrajectory")
    say = graph.publisher("trajectory_msgs/JointTrajectory", "/wish")
    switch = graph.publisher("std_msgs/Bool", "/take_over")
    rows, command = np.array([[9.0, 9.0], [0.4, -0.5]]), np.array([0.1, 0.2, 0.3])
    wish, end = made.read(command, 0.0), time.monotonic() + 20.0
    assert not wish.engaged
    while not (wish.engaged and wish.positions is not None) and time.monotonic() < end:
        say(joints.timed_trajectory(("base", "finger"), rows, np.array([0.1, 0.2]), 0.0, ""))
        switch({"data": True})
        time.sleep(0.05)
        wish = made.read(command, 0.0)
    assert wish.positions is not None
    np.testing.assert_array_equal(wish.positions, [0.4, 0.2, -0.5])
    assert wish.age < 1.0
    while wish.engaged and time.monotonic() < end:
        switch({"data": False})
        time.sleep(0.05)
        wish = made.read(command, 0.1)
    assert not wish.engaged


def test_parameters_are_read_as_ros_reads_them() -> None:
    words = (
        "--ros-args -p robot:=toy -p speed:=0.5 -p latch:=false -p depth:=3 -p joints:=[arms,legs] -p task:='hi you'"
    )
    found = given([*words.split(" -p task")[0].split(), "-p", "task:=hi you"])
    assert (found["robot"], found["speed"], found["latch"], found["depth"]) == ("toy", 0.5, False, 3)
    assert (found["joints"], found["task"], found["stale_s"]) == (["arms", "legs"], "hi you", 0.5)
    for bad, words in (("sped:=1", "Did you mean 'speed'"), ("speed:=fast", "a number"), ("latch:=maybe", "true")):
        with pytest.raises(UnknownName, match=words):
            given(["-p", bad])
    with pytest.raises(UnknownName, match="--ros-args -p"):
        given(["--speed", "1"])
