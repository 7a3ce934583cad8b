"""The graph through rclpy. NOT RUN against a live ROS graph: rclpy cannot be installed where this was written."""

import importlib
from collections.abc import Callable
from typing import Any

from athena_vla.ros2.graph import Answer
from athena_vla.ros2.graph_messages import channel_message, trajectory
from athena_vla.ros2.joint_goals import JointGoals
from athena_vla.ros2.messages import Message


class RclpyGraph:
    """A node of rclpy."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def now(self) -> float:
        return self.node.get_clock().now().nanoseconds * 1e-9

    def subscribe(
        self, kind: str, topic: str, call: Callable[[Any], None], *, best_effort: bool = False, depth: int = 1
    ) -> None:
        self.node.create_subscription(_type(kind), topic, call, _quality(best_effort, depth))

    def publisher(self, kind: str, topic: str, *, best_effort: bool = False) -> Callable[[Message], None]:
        made = self.node.create_publisher(_type(kind), topic, _quality(best_effort, 1))
        name: Any = kind.partition("/")[2]
        if name == "JointTrajectory":
            return lambda fields: made.publish(trajectory(fields))
        return lambda fields: made.publish(channel_message(name, fields))

    def offer(self, name: str, call: Callable[[], Answer]) -> None:
        """A service `~/NAME` of type std_srvs/Trigger."""
        from std_srvs.srv import Trigger

        def serve(request: Any, response: Any) -> Any:
            response.success, response.message = call()
            return response

        self.node.create_service(Trigger, f"~/{name}", serve)

    def goals(self, name: str) -> JointGoals:
        return JointGoals(self.node, name)

    def warn(self, text: str) -> None:
        self.node.get_logger().warning(text, throttle_duration_sec=5.0)

    def inform(self, text: str) -> None:
        self.node.get_logger().info(text, throttle_duration_sec=5.0)


def _type(kind: str) -> Any:
    package, _, name = kind.partition("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def _quality(best_effort: bool, depth: int) -> Any:
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
    return QoSProfile(depth=depth, reliability=reliability)
