"""The control loop as a ROS 2 node: JointState and Image in, JointTrajectory or FollowJointTrajectory out.

NOT RUN against a live ROS graph: rclpy cannot be installed where this was written. The mapping it relies on (`ros2`) is
tested on message-shaped data; what is here is the thin part that only a ROS installation can execute.

    athena-ros2-node --ros-args -p robot:=athena -p server:=ws://127.0.0.1:8000
    ros2 launch "$(athena-ros2-node --launch-file)" robot:=athena
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import athena_vla.embodiment as embodiment
from athena_vla.control.runtime import Runtime
from athena_vla.embodiment import Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, MissingDependency, UnknownName
from athena_vla.ros2.channel_topics import ChannelTopic, ChannelTopics, by_topic
from athena_vla.ros2.graph_messages import channel_message, message_type, trajectory
from athena_vla.ros2.joint_goals import JointGoals
from athena_vla.ros2.messages import JointMap, header, image, seconds
from athena_vla.ros2.parameters import (
    PARAMETERS,
    STAMPS,
    Parameters,
    named_joints,
    pairs,
    runtime_config,
    safety_filter,
)
from athena_vla.ros2.trajectory_points import TrajectoryPoints
from athena_vla.wire.client import RemotePolicy

LAUNCH_FILE = Path(__file__).parent / "launch" / "athena_vla.launch.py"


class GraphRobot:
    """The robot behind the graph: the latest messages are what it perceives."""

    def __init__(self, node: Any, body: Embodiment, joints: JointMap, parameters: Parameters) -> None:
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        if parameters["stamp"] not in STAMPS:
            raise UnknownName("stamp of trajectories", parameters["stamp"], STAMPS)
        self.embodiment, self._joints, self._parameters = body, joints, parameters
        self._node, self._lock = node, threading.Lock()
        self._channels = ChannelTopics.of(body, parameters["command_channels"], parameters["state_channels"])
        self._state: tuple[float, Array] | None = None
        self._measured: dict[str, tuple[float, float]] = {}
        self._images: dict[str, tuple[float, Any]] = {}
        self._task = parameters["task"]

        def quality(best_effort: bool, depth: int) -> Any:
            reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
            return QoSProfile(depth=depth, reliability=reliability)

        latest = quality(parameters["best_effort"], parameters["depth"])
        measured = by_topic(self._channels.states)
        beside = measured.pop(parameters["state_topic"], [])
        node.create_subscription(JointState, parameters["state_topic"], lambda m: self._on_state(m, beside), latest)
        for topic, places in measured.items():
            kind = message_type(places[0].kind)
            node.create_subscription(kind, topic, lambda m, p=places: self._on_channels(p, m), latest)
        for camera in body.camera_names:
            topic = parameters["image_topic"].format(camera=camera)
            node.create_subscription(Image, topic, lambda m, c=camera: self._on_image(c, m), latest)
        node.create_subscription(String, parameters["task_topic"], self._on_task, 1)
        commands = quality(parameters["command_best_effort"], 1)
        self._publisher = node.create_publisher(JointTrajectory, parameters["command_topic"], commands)
        self._others = {
            topic: node.create_publisher(message_type(places[0].kind), topic, commands)
            for topic, places in by_topic(self._channels.commands).items()
        }
        self._goals = JointGoals(node, parameters["action"]) if parameters["action"] else None
        self._commanded = named_joints(body, parameters["joints"])
        self._columns = body.index(self._commanded)
        # A goal is sent when its control step is over: its first commands are that old already.
        waited = 1.0 / body.control_hz if self._goals is not None else 0.0
        stamped = parameters["stamp"] == "now"
        self._points = TrajectoryPoints(body, lead=parameters["lead_s"] + waited * stamped, stamped=stamped)
        self._pending: list[Array] = []

    @property
    def time(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def observe(self) -> Observation:
        with self._lock:
            state, images, task, measured = self._state, dict(self._images), self._task, dict(self._measured)
        if self._goals is not None and self._goals.refusal:
            raise InvalidObservation(self._goals.refusal)
        now, oldest = self.time, self._parameters["stale_s"]

        def late(stamp: float) -> bool:
            return abs(now - stamp) > oldest

        if state is None or late(state[0]):
            raise InvalidObservation(
                f"No JointState on {self._parameters['state_topic']} for {oldest} s.{_ago(state, now)}"
            )
        channels = [c.name for c in self.embodiment.observed_channels]
        gone = [c for c in channels if c not in measured or late(measured[c][0])]
        if gone:
            raise InvalidObservation(f"No value of the channels {', '.join(gone)} for {oldest} s.")
        blind = [c for c in self.embodiment.camera_names if c not in images or late(images[c][0])]
        if blind:
            raise InvalidObservation(f"No image of cameras {blind} for {oldest} s.")
        whole = np.concatenate([state[1], np.array([measured[c][1] for c in channels])])
        return Observation({c: image(m) for c, (_, m) in images.items()}, whole, task, state[0])

    def command(self, positions: Array, /) -> None:
        body, count = self.embodiment, len(self.embodiment.joints)
        angles, rest = positions[:count], positions[count:]
        head = header(self._stamp(), self._parameters["frame_id"])
        for topic, kind, content in self._channels.command_messages(rest, head):
            self._others[topic].publish(channel_message(kind, content))
        if self._goals is None:
            self._publisher.publish(self._joint_trajectory(angles[None]))
            return
        # A goal per control step: an action server is no place for goals at the motor rate.
        self._pending.append(angles)
        if len(self._pending) >= round(body.command_hz / body.control_hz):
            rows, self._pending = np.array(self._pending), []
            self._goals.send(self._joint_trajectory(rows))

    def _stamp(self) -> float:
        """Zero means to a controller: from now on. A time of ours is in its past by the way here, and by our clocks."""
        return 0.0 if self._parameters["stamp"] == "zero" else self.time

    def _joint_trajectory(self, rows: Array) -> Any:
        points = self._points.add(self.time, rows)
        frame, rows = self._parameters["frame_id"], points.rows[:, self._columns]
        return trajectory(self._joints.timed_trajectory(self._commanded, rows, points.times, points.begin, frame))

    def _on_state(self, message: Any, beside: list[ChannelTopic]) -> None:
        try:
            state = self._joints.state(message)
        except InvalidObservation as error:
            self._warn(error)
            return
        with self._lock:
            self._state = (self._stamp_of(message), state)
        self._on_channels(beside, message)

    def _on_channels(self, places: list[ChannelTopic], message: Any) -> None:
        try:
            values = {p.channel: (self._stamp_of(message), p.value(message)) for p in places}
        except InvalidObservation as error:
            self._warn(error)
            return
        with self._lock:
            self._measured.update(values)

    def _on_image(self, camera: str, message: Any) -> None:
        with self._lock:
            self._images[camera] = (self._stamp_of(message), message)

    def _on_task(self, message: Any) -> None:
        with self._lock:
            self._task = message.data

    def _stamp_of(self, message: Any) -> float:
        """[s] when it was measured; a message without a stamp, or with zero, counts from its arrival."""
        head = getattr(message, "header", None)
        return (seconds(head.stamp) if head is not None else 0.0) or self.time

    def _warn(self, error: InvalidObservation) -> None:
        self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)


def _ago(state: tuple[float, Array] | None, now: float) -> str:
    if state is None:
        return ""
    age = now - state[0]
    return f" The last one is stamped {abs(age):.2f} s {'ago' if age >= 0 else 'ahead of this clock'}."


def offer_stop(node: Any, runtime: Runtime, stop_topic: str = "/athena/stop") -> None:
    """A person's way in: `~/stop`, `~/acknowledge` and `~/beat` as std_srvs/Trigger, and a std_msgs/Empty to stop."""
    from std_msgs.msg import Empty
    from std_srvs.srv import Trigger

    def stop(request: Any, response: Any) -> Any:
        runtime.stop("service ~/stop")
        response.success, response.message = True, "braking; it stays at rest until ~/acknowledge"
        return response

    def acknowledge(request: Any, response: Any) -> Any:
        why = runtime.operator.waiting_for
        response.success = runtime.acknowledge()
        response.message = f"goes on after: {why}" if response.success else "there was nothing to acknowledge"
        return response

    def beat(request: Any, response: Any) -> Any:
        runtime.beat()
        response.success, response.message = True, runtime.operator.waiting_for or "running"
        return response

    for name, call in (("~/stop", stop), ("~/acknowledge", acknowledge), ("~/beat", beat)):
        node.create_service(Trigger, name, call)
    node.create_subscription(Empty, stop_topic, lambda message: runtime.stop(f"topic {stop_topic}"), 1)


def main() -> None:
    """Spin until the duration is over or the node is interrupted; `--launch-file` prints where the launch file is."""
    if "--launch-file" in sys.argv[1:]:
        print(LAUNCH_FILE)
        return
    try:
        import rclpy
    except ImportError as error:
        raise MissingDependency("rclpy (part of a ROS 2 installation)", "ros2", "to run the node") from error
    rclpy.init()
    node = rclpy.create_node("athena_vla")
    for name, default in PARAMETERS.items():
        node.declare_parameter(name, default)
    parameters = {name: node.get_parameter(name).value for name in PARAMETERS}
    body = embodiment.load(parameters["robot"])
    guard, config = safety_filter(body, parameters), runtime_config(parameters)
    robot = GraphRobot(node, body, JointMap(body, pairs(parameters["renamed"])), parameters)
    spinner = threading.Thread(target=rclpy.spin, args=(node,), daemon=True)
    spinner.start()
    try:
        while True:  # nothing moves before the first whole observation
            try:
                robot.observe()
                break
            except InvalidObservation as error:
                node.get_logger().info(f"waiting: {error}", throttle_duration_sec=5.0)
                time.sleep(0.1)
        with RemotePolicy(parameters["server"], body, token=parameters["token"] or None) as policy:
            runtime = Runtime(robot, policy, guard, config)
            offer_stop(node, runtime)
            runtime.run(parameters["duration_s"], real_time=True)
    finally:
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
