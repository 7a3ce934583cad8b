"""Between ROS 2 messages and the robot's own terms, joint by name: pure functions on message-shaped data.

Knows the fields of sensor_msgs, trajectory_msgs and builtin_interfaces; imports no ROS. A message is anything with
those fields as attributes; what is built here are plain dictionaries of the same fields, which the node turns into
messages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import ActionChunk, Array, Embodiment
from athena_vla.errors import InvalidEmbodiment, InvalidObservation

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}  # encodings of sensor_msgs/Image that are read
Message = dict[str, Any]


@dataclass(frozen=True)
class JointMap:
    """The robot's joint names and the names the ROS graph uses; `renamed` lists those that differ."""

    robot: Embodiment
    renamed: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs

    def __post_init__(self) -> None:
        self.robot.index(self.renamed)
        theirs = [*(self.theirs(n) for n in self.robot.joint_names), *(c.name for c in self.robot.commanded_channels)]
        twice = sorted({n for n in theirs if theirs.count(n) > 1})
        if twice:
            raise InvalidEmbodiment(self.robot.name, f"two joints, or a joint and a channel, share the names {twice}.")

    def theirs(self, ours: str) -> str:
        return self.renamed.get(ours, ours)

    def state(self, message: Any) -> Array:
        """[J] rad from a sensor_msgs/JointState; joints of other robots in the same message are passed over.

        Raises `InvalidObservation` where a joint is missing, named twice, or its position is not there or no number.
        """
        names, positions = list(message.name), message.position
        if len(positions) != len(names):
            raise InvalidObservation(f"JointState names {len(names)} joints and has {len(positions)} positions.")
        place: dict[str, int] = {}
        for i, name in enumerate(names):
            if name in place:
                raise InvalidObservation(f"JointState names joint '{name}' twice.")
            place[name] = i
        missing = [n for n in self.robot.joint_names if self.theirs(n) not in place]
        if missing:
            raise InvalidObservation(f"JointState lacks joints {missing} of '{self.robot.name}'; it has {names}.")
        state = np.array([positions[place[self.theirs(n)]] for n in self.robot.joint_names], dtype=np.float64)
        if not np.isfinite(state).all():
            raise InvalidObservation(f"JointState has positions that are not numbers for '{self.robot.name}'.")
        return state

    def joint_state(self, state: Array, time: float, frame: str = "") -> Message:
        """A sensor_msgs/JointState of all joints, the first of a state [S]; inverse of `state`."""
        return {
            "header": header(time, frame),
            "name": [self.theirs(n) for n in self.robot.joint_names],
            "position": [float(x) for x in state[: len(self.robot.joints)]],
            "velocity": [],
            "effort": [],
        }

    def trajectory(self, names: tuple[str, ...], rows: Array, dt: float, time: float, frame: str = "") -> Message:
        """A trajectory_msgs/JointTrajectory: row `i` [n, D] rad is due `(i + 1) dt` after the header's stamp."""
        return self.timed_trajectory(names, rows, np.arange(1, len(rows) + 1, dtype=np.float64) * dt, time, frame)

    def timed_trajectory(
        self, names: Sequence[str], rows: Array, times: Array, time: float, frame: str = ""
    ) -> Message:
        """The same with the rows due `times` [n] [s] after the header's stamp."""
        return {
            "header": header(time, frame),
            "joint_names": [self.theirs(n) for n in names],
            "points": [
                {
                    "positions": [float(x) for x in row],
                    "velocities": [],
                    "accelerations": [],
                    "effort": [],
                    "time_from_start": duration(float(due)),
                }
                for row, due in zip(rows, times, strict=True)
            ],
        }

    def chunk_trajectory(self, chunk: ActionChunk, frame: str = "") -> Message:
        """A whole chunk as a trajectory that begins at its observation; commanded channels stand under their names."""
        return self.trajectory(chunk.joint_names, chunk.positions, chunk.dt, chunk.time, frame)

    def chunk(self, message: Any) -> ActionChunk:
        """Inverse of `chunk_trajectory`. Raises `InvalidObservation` for unknown joints or points that are not even."""
        ours = {self.theirs(n): n for n in self.robot.command_names}
        unknown = [n for n in message.joint_names if n not in ours]
        if unknown or not message.points:
            raise InvalidObservation(f"JointTrajectory has {len(message.points)} points and unknown joints {unknown}.")
        if any(len(p.positions) != len(message.joint_names) for p in message.points):
            raise InvalidObservation("JointTrajectory has points with another number of positions than joints.")
        due = np.array([seconds(p.time_from_start) for p in message.points])
        steps = np.diff(due, prepend=0.0)
        if not (steps > 0).all() or np.ptp(steps) > 1e-6:
            raise InvalidObservation("JointTrajectory has points that are not evenly spaced in time.")
        return ActionChunk(
            positions=np.array([list(p.positions) for p in message.points], dtype=np.float64),
            joint_names=tuple(ours[n] for n in message.joint_names),
            dt=float(due[-1] / len(due)),
            time=seconds(message.header.stamp),
        )


def image(message: Any) -> NDArray[np.uint8]:
    """RGB [height, width, 3] from a sensor_msgs/Image. Raises `InvalidObservation` for encodings that are not read."""
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise InvalidObservation(f"Image encoding '{message.encoding}' is not read; {', '.join(CHANNELS)} are.")
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.frombuffer(bytes(message.data), dtype=np.uint8)
    if min(height, width) < 1 or step < width * channels or len(data) < height * step:
        raise InvalidObservation(
            f"Image of {width} x {height} with rows of {step} bytes cannot have {len(data)} bytes."
        )
    pixels = data[: height * step].reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    if message.encoding.startswith("bgr"):
        pixels = pixels[..., [2, 1, 0]]
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if channels == 1 else pixels[..., :3])


def image_message(pixels: NDArray[np.uint8], time: float, frame: str = "") -> Message:
    """A sensor_msgs/Image in rgb8; inverse of `image`."""
    height, width, _ = pixels.shape
    return {
        "header": header(time, frame),
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "is_bigendian": 0,
        "step": width * 3,
        "data": np.ascontiguousarray(pixels).tobytes(),
    }


def header(time: float, frame: str) -> Message:
    return {"stamp": duration(time), "frame_id": frame}


def duration(time: float) -> Message:
    """builtin_interfaces Time or Duration of seconds; nanoseconds are always in [0, 1e9)."""
    if not math.isfinite(time):
        raise InvalidObservation(f"A time of {time} s has no place in a message.")
    total = round(time * 1e9)
    return {"sec": total // 10**9, "nanosec": total % 10**9}


def seconds(stamp: Any) -> float:
    return int(stamp.sec) + int(stamp.nanosec) * 1e-9
