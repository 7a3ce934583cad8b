"""Messages of ROS 2 as DDS carries them: its own type names, its field order, plain CDR. Needs `cyclonedds`.

Field names do not travel; they are those of ROS so that the node reads both alike.
"""
# The library reads annotations at class creation and has no types of its own.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# pyright: reportMissingImports=false

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.annotations import final
from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32

from athena_vla.errors import UnknownName
from athena_vla.ros2.messages import Message


@dataclass
@final
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
@final
class Duration(IdlStruct, typename="builtin_interfaces::msg::dds_::Duration_"):
    sec: int32
    nanosec: uint32


@dataclass
@final
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
@final
class String(IdlStruct, typename="std_msgs::msg::dds_::String_"):
    data: str


@dataclass
@final
class Float64(IdlStruct, typename="std_msgs::msg::dds_::Float64_"):
    data: float64


@dataclass
@final
class Bool(IdlStruct, typename="std_msgs::msg::dds_::Bool_"):
    data: bool


@dataclass
@final
class Empty(IdlStruct, typename="std_msgs::msg::dds_::Empty_"):
    structure_needs_at_least_one_member: uint8


@dataclass
@final
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
@final
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
@final
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclass
@final
class JointTrajectory(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


@dataclass
@final
class Vector3(IdlStruct, typename="geometry_msgs::msg::dds_::Vector3_"):
    x: float64
    y: float64
    z: float64


@dataclass
@final
class Twist(IdlStruct, typename="geometry_msgs::msg::dds_::Twist_"):
    linear: Vector3
    angular: Vector3


@dataclass
@final
class TwistStamped(IdlStruct, typename="geometry_msgs::msg::dds_::TwistStamped_"):
    header: Header
    twist: Twist


KINDS: dict[str, Any] = {
    "builtin_interfaces": (Time, Duration),
    "std_msgs": (Header, String, Float64, Bool, Empty),
    "sensor_msgs": (JointState, Image),
    "trajectory_msgs": (JointTrajectory, JointTrajectoryPoint),
    "geometry_msgs": (Vector3, Twist, TwistStamped),
}
TYPES: dict[str, Any] = {f"{package}/{t.__name__}": t for package, found in KINDS.items() for t in found}
NESTED = {"points": JointTrajectoryPoint}  # sequences of messages


def type_of(kind: str) -> Any:
    """Raises `UnknownName`."""
    if kind not in TYPES:
        raise UnknownName("kind of message", kind, TYPES)
    return TYPES[kind]


@cache
def _kinds(kind: Any) -> dict[str, Any]:
    """Field -> its type; asked for every message at the motor rate, and every point in it."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def made(kind: Any, content: Message) -> Any:
    """A message from plain fields, nested ones too."""
    values = {}
    for name, inner in _kinds(kind).items():
        value = content[name]
        if name in NESTED:
            value = [made(NESTED[name], x) for x in value]
        elif isinstance(value, dict):
            value = made(inner, value)
        values[name] = value
    return kind(**values)
