"""Starts the node with every parameter as a launch argument. Shipped in share/athena_vla/launch; never run by us.

ros2 launch "$(athena-ros2-node --launch-file)" robot:=athena server:=ws://127.0.0.1:8000 frame_id:=pelvis
"""
# `launch` comes with a ROS 2 installation.
# pyright: reportAttributeAccessIssue=false

import json

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction

from athena_vla.ros2.parameters import PARAMETERS


def text(value):
    """As YAML, which is what `-p name:=value` is read as."""
    return json.dumps(value)


def start(context):
    """The node as a process: a package from PyPI has no ament index entry that `launch_ros` could look up."""
    given = context.launch_configurations
    changed = [f"{name}:={given[name]}" for name, default in PARAMETERS.items() if given[name] != text(default)]
    arguments = [word for pair in changed for word in ("-p", pair)]
    return [ExecuteProcess(cmd=["athena-ros2-node", "--ros-args", *arguments], output="screen")]


def generate_launch_description():
    declared = [DeclareLaunchArgument(name, default_value=text(default)) for name, default in PARAMETERS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
