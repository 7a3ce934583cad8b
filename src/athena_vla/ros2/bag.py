"""A deployment as an MCAP bag that ROS 2 tools can play, and back: joint states, images, trajectories, the instruction.

Knows the messages of `ros2`, written and read by `bags`; needs no ROS.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla.bags.mcap_file import McapFile, McapWriter
from athena_vla.control.trace import Trace
from athena_vla.embodiment import ActionChunk, Array, Observation
from athena_vla.errors import InvalidObservation, RecordingError
from athena_vla.ros2.channel_topics import PACKAGES, ChannelTopic, ChannelTopics, by_topic
from athena_vla.ros2.messages import JointMap, header, image, image_message, seconds

TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


@dataclass(frozen=True)
class Topics:
    """Where things are in the graph."""

    state: str = "/joint_states"
    image: str = "/camera/{camera}/image_raw"
    command: str = "/joint_trajectory_controller/joint_trajectory"
    chunk: str = "/athena/chunk"
    task: str = "/athena/task"
    channel_command: str = "/athena/command/{channel}"  # of channels without a place of their own
    channel_state: str = "/athena/state/{channel}"

    def channels(self, joints: JointMap, places: ChannelTopics | None) -> ChannelTopics:
        """Where the robot's channels are: as told, else each on a Float64 topic of its own."""
        if places is not None:
            return places
        body = joints.robot
        return ChannelTopics(
            body,
            tuple(
                ChannelTopic(c.name, self.channel_command.format(channel=c.name), "Float64")
                for c in body.commanded_channels
            ),
            tuple(
                ChannelTopic(c.name, self.channel_state.format(channel=c.name), "Float64")
                for c in body.observed_channels
            ),
        )


def write_bag(
    path: str | Path,
    trace: Trace,
    joints: JointMap,
    topics: Topics | None = None,
    channels: ChannelTopics | None = None,
) -> Path:
    """The executed episode as MCAP; images only where the trace kept them.

    Channels lie where `channels` says, else each as Float64 on a topic of its own. Measured channels are written as
    Float64 in either case, since the message that they came in is not kept.
    """
    topics, target = topics or Topics(), Path(path)
    body = joints.robot
    places, measured = topics.channels(joints, channels), topics.channels(joints, None).states
    period = 1.0 / body.command_hz
    with McapWriter(target) as bag:
        start = float(trace.times[0]) if len(trace.times) else 0.0
        bag.put(topics.task, "std_msgs/msg/String", {"data": trace.instruction}, start)
        for time, state in zip(trace.state_times, trace.states, strict=True):
            bag.put(topics.state, "sensor_msgs/msg/JointState", joints.joint_state(state, time), time)
            for place, value in zip(measured, state[len(body.joints) :], strict=True):
                bag.put(place.topic, "std_msgs/msg/Float64", {"data": float(value)}, time)
        for seen in trace.frames:
            for camera, pixels in seen.images.items():
                where = topics.image.format(camera=camera)
                bag.put(where, "sensor_msgs/msg/Image", image_message(pixels, seen.time, camera), seen.time)
        for chunk in trace.chunks:
            bag.put(topics.chunk, TRAJECTORY, joints.chunk_trajectory(chunk), chunk.time)
        for time, row in zip(trace.times, trace.commands, strict=True):
            angles, rest = row[: len(body.joints)], row[len(body.joints) :]
            bag.put(topics.command, TRAJECTORY, joints.trajectory(body.joint_names, angles[None], period, time), time)
            for topic, kind, content in places.command_messages(rest, header(time, "")):
                bag.put(topic, f"{PACKAGES[kind]}/msg/{kind}", content, time)
    return target


@dataclass(frozen=True)
class Bag:
    """What a bag of a deployment holds, in the robot's own terms and in time order."""

    instruction: str
    observations: tuple[Observation, ...]  # with the images whose stamp equals the state's
    chunks: tuple[ActionChunk, ...]
    command_times: tuple[float, ...]  # [s]
    commands: tuple[Array, ...]  # each [C]; what a message does not name stays as told before, NaN where never told
    cut: str = ""  # where the file ends too early; what lies before is whole


def read_bag(
    path: str | Path, joints: JointMap, topics: Topics | None = None, channels: ChannelTopics | None = None
) -> Bag:
    """Inverse of `write_bag`, joint by name; other topics are passed over.

    Raises `RecordingError` for a file that is no bag, is damaged, has messages that cannot be of this robot, or lacks
    channels of it.
    """
    topics = topics or Topics()
    body = joints.robot
    places = topics.channels(joints, channels)
    told, measured = by_topic(places.commands), by_topic(topics.channels(joints, None).states)
    cameras = {topics.image.format(camera=c): c for c in body.camera_names}
    instruction, images = "", {}
    states: list[tuple[float, Array]] = []
    chunks, times, commands = [], [], []
    beside: dict[tuple[str, int], float] = {}  # (channel, nanoseconds) -> value
    now = np.full(len(body.joints), np.nan)
    column = {n: i for i, n in enumerate(body.joint_names)}

    def take(topic: str, stamp: int, message: Any) -> None:
        nonlocal instruction
        if topic == topics.task:
            instruction = str(message.data)
        elif topic == topics.state:
            states.append((seconds(message.header.stamp), joints.state(message)))
        elif topic in cameras:
            images.setdefault(seconds(message.header.stamp), {})[cameras[topic]] = image(message)
        elif topic == topics.chunk:
            chunks.append(joints.chunk(message))
        elif topic == topics.command:
            told_now = joints.chunk(message)
            times.append(seconds(message.header.stamp))
            for name, value in zip(told_now.joint_names, told_now.positions[0], strict=True):
                if name in column:
                    now[column[name]] = value
            commands.append(now.copy())
        for place in (*told.get(topic, ()), *measured.get(topic, ())):
            beside[place.topic + place.field, stamp] = place.value(message)

    with McapFile(path) as file:
        for logged in file.messages():
            try:
                take(logged.topic, logged.time, logged.message)
            except (InvalidObservation, AttributeError, TypeError, ValueError) as error:
                where = f"a message of '{logged.topic}' at {logged.time * 1e-9:.3f} s"
                raise RecordingError(f"'{path}': {where} cannot be of '{body.name}': {error}") from error
        cut = file.cut

    def whole(joint_values: Array, time: float, wanted: tuple[ChannelTopic, ...]) -> Array:
        values = [beside.get((p.topic + p.field, round(time * 1e9))) for p in wanted]
        missing = [p.channel for p, v in zip(wanted, values, strict=True) if v is None]
        if missing:
            raise RecordingError(f"'{path}' has no value of the channels {', '.join(missing)} at {time:.3f} s.")
        return np.concatenate([joint_values, np.array(values, dtype=np.float64)])

    state_places = topics.channels(joints, None).states
    whole_states = [(t, whole(s, t, state_places)) for t, s in states]
    whole_commands = [whole(c, t, places.commands) for t, c in zip(times, commands, strict=True)]
    seen = tuple(Observation(images.get(t, {}), state, instruction, t) for t, state in whole_states)
    return Bag(instruction, seen, tuple(chunks), tuple(times), tuple(whole_commands), cut)
