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
from athena_vla.control.runtime import Runtime, RuntimeConfig
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Array, Embodiment, Observation
from athena_vla.errors import InvalidObservation, MissingDependency, SafetyError
from athena_vla.ros2.messages import JointMap, Message, image
from athena_vla.wire.client import RemotePolicy

PARAMETERS: dict[str, Any] = {
    "robot": "athena",
    "server": "ws://127.0.0.1:8000",
    "token": "",  # of the server; empty takes the environment variable ATHENA_TOKEN
    "task": "",  # the instruction until one arrives on `task_topic`
    "state_topic": "/joint_states",
    "image_topic": "/camera/{camera}/image_raw",
    "task_topic": "/athena/task",
    "command_topic": "/joint_trajectory_controller/joint_trajectory",
    "action": "",  # name of a FollowJointTrajectory server; empty publishes on command_topic instead
    "frame_id": "",  # in the header of every trajectory
    "best_effort": True,  # QoS of the inputs: sensor data
    "depth": 1,  # QoS of the inputs: messages kept; only the latest is ever used
    "command_best_effort": False,  # QoS of the trajectories
    "replan_every": 8,  # control steps
    "stale_s": 0.5,  # [s] age from which a state or image is no observation any more
    "duration_s": 1e9,  # [s]
    "renamed": [""],  # joints as "ours=theirs"
}
LAUNCH_FILE = Path(__file__).parent / "launch" / "athena_vla.launch.py"


class GraphRobot:
    """The robot behind the graph: the latest messages are what it perceives."""

    def __init__(self, node: Any, body: Embodiment, joints: JointMap, parameters: dict[str, Any]) -> None:
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import String
        from trajectory_msgs.msg import JointTrajectory

        self.embodiment, self._joints, self._parameters = body, joints, parameters
        self._node, self._lock = node, threading.Lock()
        self._state: tuple[float, Array] | None = None
        self._images: dict[str, tuple[float, Any]] = {}
        self._task = parameters["task"]

        def quality(best_effort: bool, depth: int) -> Any:
            reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
            return QoSProfile(depth=depth, reliability=reliability)

        latest = quality(parameters["best_effort"], parameters["depth"])
        node.create_subscription(JointState, parameters["state_topic"], self._on_state, latest)
        for camera in body.camera_names:
            topic = parameters["image_topic"].format(camera=camera)
            node.create_subscription(Image, topic, lambda m, c=camera: self._on_image(c, m), latest)
        node.create_subscription(String, parameters["task_topic"], self._on_task, 1)
        commands = quality(parameters["command_best_effort"], 1)
        self._publisher = node.create_publisher(JointTrajectory, parameters["command_topic"], commands)
        self._goals = self._action_client() if parameters["action"] else None
        self._pending: list[Array] = []

    @property
    def time(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9

    def observe(self) -> Observation:
        with self._lock:
            state, images, task = self._state, dict(self._images), self._task
        now, oldest = self.time, self._parameters["stale_s"]
        if state is None or now - state[0] > oldest:
            raise InvalidObservation(f"No JointState on {self._parameters['state_topic']} for {oldest} s.")
        late = [c for c in self.embodiment.camera_names if c not in images or now - images[c][0] > oldest]
        if late:
            raise InvalidObservation(f"No image of cameras {late} for {oldest} s.")
        return Observation({c: image(m) for c, (_, m) in images.items()}, state[1], task, state[0])

    def command(self, positions: Array, /) -> None:
        body, frame = self.embodiment, self._parameters["frame_id"]
        if self._goals is None:
            rows = positions[None]
            message = self._joints.trajectory(body.joint_names, rows, 1.0 / body.command_hz, self.time, frame)
            self._publisher.publish(_trajectory(message))
            return
        # A goal per control step: an action server is no place for goals at the motor rate.
        self._pending.append(positions)
        if len(self._pending) >= round(body.command_hz / body.control_hz):
            from control_msgs.action import FollowJointTrajectory

            rows, self._pending = np.array(self._pending), []
            message = self._joints.trajectory(body.joint_names, rows, 1.0 / body.command_hz, self.time, frame)
            self._goals.send_goal_async(FollowJointTrajectory.Goal(trajectory=_trajectory(message)))

    def _action_client(self) -> Any:
        from control_msgs.action import FollowJointTrajectory
        from rclpy.action import ActionClient

        client = ActionClient(self._node, FollowJointTrajectory, self._parameters["action"])
        if not client.wait_for_server(timeout_sec=5.0):
            raise SafetyError(f"There is no FollowJointTrajectory server '{self._parameters['action']}'.")
        return client

    def _on_state(self, message: Any) -> None:
        try:
            state = self._joints.state(message)
        except InvalidObservation as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        with self._lock:
            self._state = (self.time, state)

    def _on_image(self, camera: str, message: Any) -> None:
        with self._lock:
            self._images[camera] = (self.time, message)

    def _on_task(self, message: Any) -> None:
        with self._lock:
            self._task = message.data


def _trajectory(message: Message) -> Any:
    from builtin_interfaces.msg import Duration, Time
    from std_msgs.msg import Header
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    points = [
        JointTrajectoryPoint(positions=p["positions"], time_from_start=Duration(**p["time_from_start"]))
        for p in message["points"]
    ]
    head = Header(stamp=Time(**message["header"]["stamp"]), frame_id=message["header"]["frame_id"])
    return JointTrajectory(header=head, joint_names=message["joint_names"], points=points)


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
    renamed = dict(pair.split("=", 1) for pair in parameters["renamed"] if pair)
    robot = GraphRobot(node, body, JointMap(body, renamed), parameters)
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
            config = RuntimeConfig(replan_every=parameters["replan_every"])
            Runtime(robot, policy, SafetyFilter(body), config).run(parameters["duration_s"], real_time=True)
    finally:
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
