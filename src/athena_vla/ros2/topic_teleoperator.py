"""A teleoperator behind ROS topics: wished poses as JointTrajectory or JointState, and a Bool that takes over.

Knows a graph and the messages' fields. Over DDS the tests send it real messages; never met a real ROS 2 node.
"""

import threading
import time as clock
from collections.abc import Mapping
from typing import Any

import numpy as np

from athena_vla.control.runtime import Robot
from athena_vla.control.teleoperator import Source, Wish
from athena_vla.embodiment import Array
from athena_vla.errors import InvalidObservation, MissingDependency, UnknownName
from athena_vla.ros2.graph import Graph
from athena_vla.ros2.messages import JointMap

KINDS = {"JointTrajectory": "trajectory_msgs/JointTrajectory", "JointState": "sensor_msgs/JointState"}
TRANSPORTS = ("rclpy", "dds")
LONG_AGO = 1e9  # [s]


class TopicTeleoperator:
    """The latest message is the wish; joints that it does not name stay where they were commanded last.

    Of a trajectory the last point counts. Control is wanted while the last Bool of the switch was true.
    """

    source: Source = "human"

    def __init__(self, graph: Graph, joints: JointMap, topic: str, switch: str, kind: str) -> None:
        if kind not in KINDS:
            raise UnknownName("kind of message with a wished pose", kind, KINDS)
        self._joints, self._kind = joints, kind
        self._graph = graph  # its readers end with it
        self._place = {joints.theirs(n): i for i, n in enumerate(joints.robot.command_names)}
        self._lock = threading.Lock()
        self._wished: dict[int, float] = {}
        self._heard, self._engaged, self._problem = -LONG_AGO, False, ""
        graph.subscribe(KINDS[kind], topic, self._on_pose)
        graph.subscribe("std_msgs/Bool", switch, self._on_switch)

    def read(self, command: Array, time: float, /) -> Wish:
        with self._lock:
            engaged, age, problem = self._engaged, clock.monotonic() - self._heard, self._problem
            places = list(self._wished)
            values = [self._wished[p] for p in places]
        if engaged and problem:
            raise InvalidObservation(problem)
        if not engaged:
            return Wish(False)
        if not places:
            return Wish(True, None, age)
        pose = command.copy()
        pose[places] = values
        return Wish(True, pose, age)

    def _on_switch(self, message: Any) -> None:
        with self._lock:
            self._engaged = bool(message.data)
            if self._engaged and clock.monotonic() - self._heard > 1.0:
                self._wished = {}  # of another time

    def _on_pose(self, message: Any) -> None:
        try:
            names, positions = self._content(message)
            wished = {self._place[n]: float(x) for n, x in zip(names, positions, strict=True) if n in self._place}
            problem = "" if wished else f"A {self._kind} names no joint of '{self._joints.robot.name}': {names}."
            if not np.isfinite(list(wished.values())).all():
                problem = f"A {self._kind} wishes positions that are not numbers."
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            wished, problem = {}, f"A {self._kind} cannot be read: {error}."
        with self._lock:
            self._problem = problem
            if not problem:
                self._wished, self._heard = {**self._wished, **wished}, clock.monotonic()

    def _content(self, message: Any) -> tuple[list[str], list[float]]:
        if self._kind == "JointState":
            return list(message.name), list(message.position)
        return list(message.joint_names), list(message.points[-1].positions)


def subscribed(
    robot: Robot,
    topic: str = "/athena/teleop",
    switch: str = "/athena/take_over",
    kind: str = "JointTrajectory",
    renamed: str = "",
    transport: str = "rclpy",
    network: str = "lo",
) -> TopicTeleoperator:
    """One that listens while the program runs. `renamed` is `ours=theirs`, comma between several.

    `transport` is rclpy or dds, `network` the interface that dds speaks on. Raises `MissingDependency`.
    """
    if transport not in TRANSPORTS:
        raise UnknownName("transport of topics", transport, TRANSPORTS)
    names: Mapping[str, str] = dict(pair.split("=", 1) for pair in renamed.split(",") if pair)
    joints = JointMap(robot.embodiment, names)
    if transport == "dds":
        from athena_vla.ros2.dds_graph import DdsGraph

        return TopicTeleoperator(DdsGraph(network), joints, topic, switch, kind)
    try:
        import rclpy
    except ImportError as error:
        what = "to teleoperate over topics; transport=dds needs none"
        raise MissingDependency("rclpy (part of a ROS 2 installation)", "ros2", what) from error
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    if not rclpy.ok():
        rclpy.init()
    node = rclpy.create_node("athena_vla_teleoperator")
    made = TopicTeleoperator(RclpyGraph(node), joints, topic, switch, kind)
    threading.Thread(target=rclpy.spin, args=(node,), name="teleoperator-topics", daemon=True).start()
    return made
