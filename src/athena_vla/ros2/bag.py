"""A deployment as an MCAP bag that ROS 2 tools can play, and back: joint states, images, trajectories, the instruction.

Knows the messages of `ros2` and the MCAP libraries from PyPI (imported on demand); needs no ROS.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from athena_vla import files
from athena_vla.control.trace import Trace
from athena_vla.embodiment import ActionChunk, Array, Observation
from athena_vla.errors import MissingDependency, RecordingError
from athena_vla.ros2.channel_topics import PACKAGES, ChannelTopic, ChannelTopics, by_topic
from athena_vla.ros2.messages import JointMap, header, image, image_message, seconds

STAMP = "int32 sec\nuint32 nanosec"
VECTOR = "float64 x\nfloat64 y\nfloat64 z"
PARTS = {
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "builtin_interfaces/Time": STAMP,
    "builtin_interfaces/Duration": STAMP,
    "trajectory_msgs/JointTrajectoryPoint": (
        "float64[] positions\nfloat64[] velocities\nfloat64[] accelerations\nfloat64[] effort\n"
        "builtin_interfaces/Duration time_from_start"
    ),
    "geometry_msgs/Vector3": VECTOR,
    "geometry_msgs/Twist": "geometry_msgs/Vector3 linear\ngeometry_msgs/Vector3 angular",
}
HEADER = ("std_msgs/Header", "builtin_interfaces/Time")
TYPES = {  # the definitions of ROS 2's common_interfaces, without comments
    "sensor_msgs/msg/JointState": (
        "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort",
        HEADER,
    ),
    "sensor_msgs/msg/Image": (
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
        "uint8[] data",
        HEADER,
    ),
    "trajectory_msgs/msg/JointTrajectory": (
        "std_msgs/Header header\nstring[] joint_names\ntrajectory_msgs/JointTrajectoryPoint[] points",
        (*HEADER, "builtin_interfaces/Duration", "trajectory_msgs/JointTrajectoryPoint"),
    ),
    "std_msgs/msg/String": ("string data", ()),
    "std_msgs/msg/Float64": ("float64 data", ()),
    "geometry_msgs/msg/Twist": (PARTS["geometry_msgs/Twist"], ("geometry_msgs/Vector3",)),
    "geometry_msgs/msg/TwistStamped": (
        "std_msgs/Header header\ngeometry_msgs/Twist twist",
        (*HEADER, "geometry_msgs/Twist", "geometry_msgs/Vector3"),
    ),
}


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
    writer_type, _, _ = _library()
    topics, target = topics or Topics(), Path(path)
    body = joints.robot
    places, measured = topics.channels(joints, channels), topics.channels(joints, None).states
    period = 1.0 / body.command_hz
    with files.whole_file(target, RecordingError) as temporary, temporary.open("wb") as file:
        writer = writer_type(file)
        schemas = {name: writer.register_msgdef(name, _definition(name)) for name in TYPES}

        def put(topic: str, kind: str, message: Mapping[str, Any], time: float) -> None:
            writer.write_message(topic, schemas[kind], message, round(time * 1e9), round(time * 1e9))

        start = float(trace.times[0]) if len(trace.times) else 0.0
        put(topics.task, "std_msgs/msg/String", {"data": trace.instruction}, start)
        for time, state in zip(trace.state_times, trace.states, strict=True):
            put(topics.state, "sensor_msgs/msg/JointState", joints.joint_state(state, time), time)
            for place, value in zip(measured, state[len(body.joints) :], strict=True):
                put(place.topic, "std_msgs/msg/Float64", {"data": float(value)}, time)
        for seen in trace.frames:
            for camera, pixels in seen.images.items():
                where = topics.image.format(camera=camera)
                put(where, "sensor_msgs/msg/Image", image_message(pixels, seen.time, camera), seen.time)
        for chunk in trace.chunks:
            message = joints.chunk_trajectory(chunk)
            put(topics.chunk, "trajectory_msgs/msg/JointTrajectory", message, chunk.time)
        for time, row in zip(trace.times, trace.commands, strict=True):
            angles, rest = row[: len(body.joints)], row[len(body.joints) :]
            message = joints.trajectory(body.joint_names, angles[None], period, time)
            put(topics.command, "trajectory_msgs/msg/JointTrajectory", message, time)
            for topic, kind, content in places.command_messages(rest, header(time, "")):
                put(topic, f"{PACKAGES[kind]}/msg/{kind}", content, time)
        writer.finish()
    return target


@dataclass(frozen=True)
class Bag:
    """What a bag of a deployment holds, in the robot's own terms and in time order."""

    instruction: str
    observations: tuple[Observation, ...]  # with the images whose stamp equals the state's
    chunks: tuple[ActionChunk, ...]
    command_times: tuple[float, ...]  # [s]
    commands: tuple[Array, ...]  # each [C]


def read_bag(
    path: str | Path, joints: JointMap, topics: Topics | None = None, channels: ChannelTopics | None = None
) -> Bag:
    """Inverse of `write_bag`; other topics are passed over.

    Raises `RecordingError` for a file that is no bag, or that lacks channels of the robot.
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
    for topic, stamp, message in _messages(Path(path)):
        if topic == topics.task:
            instruction = message.data
        elif topic == topics.state:
            states.append((seconds(message.header.stamp), joints.state(message)))
        elif topic in cameras:
            images.setdefault(seconds(message.header.stamp), {})[cameras[topic]] = image(message)
        elif topic == topics.chunk:
            chunks.append(joints.chunk(message))
        elif topic == topics.command:
            times.append(seconds(message.header.stamp))
            commands.append(joints.chunk(message).positions[0])
        for place in (*told.get(topic, ()), *measured.get(topic, ())):
            beside[place.topic + place.field, stamp] = place.value(message)

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
    return Bag(instruction, seen, tuple(chunks), tuple(times), tuple(whole_commands))


def _messages(path: Path) -> Iterator[tuple[str, int, Any]]:
    _, make_reader, decoder = _library()
    if not path.is_file():
        raise RecordingError(f"There is no bag at '{path}'.")
    from mcap.exceptions import McapError

    try:
        with path.open("rb") as file:
            for _, channel, raw, message in make_reader(file, decoder_factories=[decoder()]).iter_decoded_messages():
                yield channel.topic, raw.log_time, message
    except (McapError, ValueError, EOFError) as error:
        raise RecordingError(f"'{path}' is not a readable MCAP bag: {error}.") from error


def _definition(name: str) -> str:
    text, needs = TYPES[name]
    rule = "=" * 80
    return "\n".join([text, *(f"{rule}\nMSG: {part}\n{PARTS[part]}" for part in needs)])


def _library() -> tuple[Any, Any, Any]:
    try:
        from mcap.reader import make_reader
        from mcap_ros2.decoder import DecoderFactory
        from mcap_ros2.writer import Writer
    except ImportError as error:
        raise MissingDependency("mcap-ros2-support", "ros2", "to write and read bags") from error
    return Writer, make_reader, DecoderFactory
