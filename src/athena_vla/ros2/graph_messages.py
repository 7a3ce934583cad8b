"""Messages of a ROS installation, made from plain fields; its packages are imported when a message is made."""

import importlib
from typing import Any

from athena_vla.ros2.channel_topics import PACKAGES, Kind
from athena_vla.ros2.messages import Message


def message_type(kind: Kind) -> Any:
    """The class of a message that carries channels."""
    return getattr(importlib.import_module(f"{PACKAGES[kind]}.msg"), kind)


def channel_message(kind: Kind, content: Message) -> Any:
    """A message of that class, from plain fields."""
    if kind == "Float64":
        return message_type(kind)(**content)
    from geometry_msgs.msg import Twist, Vector3

    twist = content["twist"] if kind == "TwistStamped" else content
    body = Twist(linear=Vector3(**twist["linear"]), angular=Vector3(**twist["angular"]))
    return message_type(kind)(header=_header(content["header"]), twist=body) if kind == "TwistStamped" else body


def _header(head: Message) -> Any:
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    return Header(stamp=Time(**head["stamp"]), frame_id=head["frame_id"])


def trajectory(message: Message) -> Any:
    """A trajectory_msgs/JointTrajectory."""
    from builtin_interfaces.msg import Duration
    from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

    points = [
        JointTrajectoryPoint(positions=p["positions"], time_from_start=Duration(**p["time_from_start"]))
        for p in message["points"]
    ]
    return JointTrajectory(header=_header(message["header"]), joint_names=message["joint_names"], points=points)
