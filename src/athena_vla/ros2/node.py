"""The control loop as a ROS 2 node: JointState and Image in, JointTrajectory or FollowJointTrajectory out.

NOT RUN against a live ROS graph: rclpy cannot be installed where this was written. With `--transport dds` the same node
speaks DDS alone, without a ROS installation; that was run between two processes of ours, never with a ROS 2 node.

    athena-ros2-node --ros-args -p robot:=athena -p server:=ws://127.0.0.1:8000
    athena-ros2-node --transport dds --network lo --ros-args -p robot:=athena
    ros2 launch "$(athena-ros2-node --launch-file)" robot:=athena
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import athena_vla.embodiment as embodiment
from athena_vla.control.runtime import Runtime
from athena_vla.errors import AthenaError, InvalidObservation, MissingDependency
from athena_vla.ros2.graph import Graph
from athena_vla.ros2.graph_robot import GraphRobot
from athena_vla.ros2.messages import JointMap
from athena_vla.ros2.parameters import PARAMETERS, Parameters, given, pairs, runtime_config, safety_filter
from athena_vla.ros2.topic_teleoperator import TopicTeleoperator
from athena_vla.wire.client import RemotePolicy

LAUNCH_FILE = Path(__file__).parent / "launch" / "athena_vla.launch.py"


def offer_stop(graph: Graph, runtime: Runtime, stop_topic: str = "/athena/stop") -> None:
    """A person's way in: `stop`, `acknowledge` and `beat` by name, and a std_msgs/Empty to stop."""

    def stop() -> tuple[bool, str]:
        runtime.stop("service ~/stop")
        return True, "braking; it stays at rest until ~/acknowledge"

    def acknowledge() -> tuple[bool, str]:
        why = runtime.operator.waiting_for
        done = runtime.acknowledge()
        return done, f"goes on after: {why}" if done else "there was nothing to acknowledge"

    def beat() -> tuple[bool, str]:
        runtime.beat()
        return True, runtime.operator.waiting_for or "running"

    for name, call in (("stop", stop), ("acknowledge", acknowledge), ("beat", beat)):
        graph.offer(name, call)
    graph.subscribe("std_msgs/Empty", stop_topic, lambda message: runtime.stop(f"topic {stop_topic}"))


def drive(graph: Graph, parameters: Parameters) -> None:
    """Wait for the robot, then run until the duration is over or the node is interrupted."""
    body = embodiment.load(parameters["robot"])
    guard, config = safety_filter(body, parameters), runtime_config(parameters)
    joints = JointMap(body, pairs(parameters["renamed"]))
    robot = GraphRobot(graph, body, joints, parameters)
    topic, person = parameters["teleop_topic"], None
    if topic:
        person = TopicTeleoperator(graph, joints, topic, parameters["take_over_topic"], "JointTrajectory")
    while True:  # nothing moves before the first whole observation
        try:
            robot.observe()
            break
        except InvalidObservation as error:
            graph.inform(f"waiting: {error}")
            time.sleep(0.1)
    with RemotePolicy(parameters["server"], body, token=parameters["token"] or None) as policy:
        runtime = Runtime(robot, policy, guard, config, teleoperator=person)
        offer_stop(graph, runtime)
        runtime.run(parameters["duration_s"], real_time=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Spin until the duration is over or the node is interrupted; `--launch-file` prints where the launch file is."""
    parser = argparse.ArgumentParser(prog="athena-ros2-node", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--launch-file", action="store_true", help="print where the launch file is")
    parser.add_argument("--transport", choices=("rclpy", "dds"), default="rclpy")
    parser.add_argument("--network", default="lo", help="dds: the interface to speak on, such as eth0")
    words, rest = parser.parse_known_args(arguments)
    if words.launch_file:
        print(LAUNCH_FILE)
        return
    try:
        if words.transport == "dds":
            from athena_vla.ros2.dds_graph import DdsGraph

            drive(DdsGraph(words.network), given(rest))
        else:
            _through_rclpy()
    except (AthenaError, KeyboardInterrupt) as error:
        sys.exit(f"athena-ros2-node: {error}" if isinstance(error, AthenaError) else 130)


def _through_rclpy() -> None:
    try:
        import rclpy
    except ImportError as error:
        raise MissingDependency(
            "rclpy (part of a ROS 2 installation)", "ros2", "to run the node; --transport dds needs none"
        ) from error
    from athena_vla.ros2.rclpy_graph import RclpyGraph

    rclpy.init()
    node = rclpy.create_node("athena_vla")
    for name, default in PARAMETERS.items():
        node.declare_parameter(name, default)
    spinner = threading.Thread(target=rclpy.spin, args=(node,), daemon=True)
    spinner.start()
    try:
        drive(RclpyGraph(node), {name: node.get_parameter(name).value for name in PARAMETERS})
    finally:
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
