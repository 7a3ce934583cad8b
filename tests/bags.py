"""ROS 2 bags that tests write, message by message, with the rosbags library."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from lerobot_sets import numbered

STORE = get_typestore(Stores.ROS2_HUMBLE)
JOINTS = ["finger", "base", "shoulder"]  # as a driver may order them; the robot has another order
START = 1_700_000_000.0
ROWS, HZ, CAMERA_HZ = 60, 20, 8


def kind(name: str) -> Any:
    return STORE.types[name]


def header(seconds: float) -> Any:
    whole = int(seconds)
    stamp = kind("builtin_interfaces/msg/Time")(sec=whole, nanosec=round((seconds - whole) * 1e9))
    return kind("std_msgs/msg/Header")(stamp=stamp, frame_id="")


def swing(seconds: np.ndarray) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * np.array([0.2, 0.3, 0.4]) * seconds[:, None]) + np.array([0.3, 0.0, 0.1])


class Bag:
    """A bag that is written message by message; every message is logged a little after its stamp."""

    def __init__(self, path: Path, plugin: StoragePlugin = StoragePlugin.MCAP) -> None:
        self.writer = Writer(path, version=9, storage_plugin=plugin)
        self.writer.open()
        self.topics: dict[str, Any] = {}

    def add(self, topic: str, message: Any, seconds: float, delay: float = 0.004) -> None:
        if topic not in self.topics:
            self.topics[topic] = self.writer.add_connection(topic, message.__msgtype__, typestore=STORE)
        data = STORE.serialize_cdr(message, message.__msgtype__)
        self.writer.write(self.topics[topic], round((seconds + delay) * 1e9), data)

    def close(self) -> None:
        self.writer.close()


def joint_state(seconds: float, names: list[str], position: np.ndarray, velocity: np.ndarray | None = None) -> Any:
    nothing = np.zeros(0)
    return kind("sensor_msgs/msg/JointState")(
        header=header(seconds), name=names, position=np.asarray(position, np.float64),
        velocity=nothing if velocity is None else np.asarray(velocity, np.float64), effort=nothing,
    )  # fmt: skip


def trajectory(names: list[str], position: np.ndarray) -> Any:
    """Stamped zero: it starts at once, as controllers want it."""
    duration = kind("builtin_interfaces/msg/Duration")(sec=0, nanosec=50_000_000)
    nothing = np.zeros(0)
    point = kind("trajectory_msgs/msg/JointTrajectoryPoint")(
        positions=np.asarray(position, np.float64), velocities=nothing, accelerations=nothing, effort=nothing,
        time_from_start=duration,
    )  # fmt: skip
    return kind("trajectory_msgs/msg/JointTrajectory")(header=header(0.0), joint_names=names, points=[point])


def image(seconds: float, pixels: np.ndarray, encoding: str = "rgb8") -> Any:
    height, width = pixels.shape[:2]
    step = pixels.reshape(height, -1).nbytes // height
    return kind("sensor_msgs/msg/Image")(
        header=header(seconds), height=height, width=width, encoding=encoding, is_bigendian=0, step=step,
        data=np.frombuffer(pixels.tobytes(), np.uint8),
    )  # fmt: skip


def compressed(seconds: float, pixels: np.ndarray) -> Any:
    data = io.BytesIO()
    PillowImage.fromarray(pixels).save(data, "PNG")
    return kind("sensor_msgs/msg/CompressedImage")(
        header=header(seconds), format="png", data=np.frombuffer(data.getvalue(), np.uint8)
    )


def text(words: str) -> Any:
    return kind("std_msgs/msg/String")(data=words)


def write(
    path: Path,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    *,
    targets: bool = True,
    raw: bool = False,
    wrench: bool = True,
) -> Path:
    """Three seconds of a swing with commands, a camera, depth, words and success; `wrench` has a clock of its own."""
    bag = Bag(path, plugin)
    seconds = np.arange(ROWS) / HZ
    q = swing(seconds)
    bag.add("/task", text("wave"), START - 0.5)
    for i, t in enumerate(START + seconds):
        bag.add("/joint_states", joint_state(t, JOINTS, q[i], np.gradient(q, 1 / HZ, axis=0)[i]), t)
        if targets:  # commands at their own rate, 10 ms after the state
            bag.add("/arm/joint_trajectory", trajectory(["base", "shoulder"], q[i, 1:] + 0.01), t + 0.01, delay=0.0)
        if wrench:
            bag.add("/wrench", kind("geometry_msgs/msg/Vector3")(x=float(i), y=2.0, z=3.0), t + 0.003, delay=0.0)
    for k in range(int(ROWS / HZ * CAMERA_HZ) + 1):
        t = START - 0.02 + k / CAMERA_HZ
        bag.add("/front/image_raw", image(t, numbered(k)) if raw else compressed(t, numbered(k)), t)
        bag.add("/front/depth", image(t, np.full((4, 4), 900, np.uint16), "16UC1"), t)
    bag.add("/words", kind("std_msgs/msg/Header")(stamp=header(START).stamp, frame_id="x"), START + 1)
    bag.add("/success", kind("std_msgs/msg/Bool")(data=True), START + ROWS / HZ)
    bag.close()
    return path
