"""Channels of a robot in a ROS 2 graph: which topic, message and field carries each, told by the user and not guessed.

`NAME=TOPIC:MESSAGE.FIELD`, such as `forward=/cmd_vel:Twist.linear.x`, `base_height=/base_height:Float64` or, measured,
`waist_yaw_velocity=/joint_states:JointState.velocity.waist_yaw`. Pure functions on message-shaped data; imports no ROS.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import InvalidEmbodiment, InvalidObservation

Kind = Literal["Float64", "Twist", "TwistStamped", "JointState"]
PACKAGES: dict[Kind, str] = {
    "Float64": "std_msgs",
    "Twist": "geometry_msgs",
    "TwistStamped": "geometry_msgs",
    "JointState": "sensor_msgs",
}
TWIST = tuple(f"{part}.{axis}" for part in ("linear", "angular") for axis in "xyz")
JOINT_STATE = ("position", "velocity", "effort")
EXAMPLE = "NAME=TOPIC:Float64, NAME=TOPIC:Twist.linear.x or NAME=TOPIC:JointState.velocity.JOINT"


@dataclass(frozen=True)
class ChannelTopic:
    """Where one channel is."""

    channel: str
    topic: str
    kind: Kind
    field: str = ""  # "" of a Float64; `linear.x` of a Twist; `velocity.JOINT` of a JointState

    @classmethod
    def parse(cls, text: str) -> "ChannelTopic":
        """Raises `InvalidObservation` for what is no such place."""
        name, equals, place = text.partition("=")
        topic, colon, message = place.rpartition(":")
        word, _, field = message.partition(".")
        kind = next((k for k in get_args(Kind) if k == word), None)
        if not (name and equals and topic and colon) or kind is None or not _field_fits(kind, field):
            raise InvalidObservation(f"'{text}' is no place of a channel; it is written {EXAMPLE}.")
        return cls(name, topic, kind, field)

    def value(self, message: Any) -> float:
        """The channel's value in a message. Raises `InvalidObservation` where it is not there or no number."""
        if self.kind == "JointState":
            part, _, joint = self.field.partition(".")
            names, values = list(message.name), getattr(message, part)
            if joint not in names or len(values) != len(names):
                raise InvalidObservation(f"{self.topic} has no {part} of '{joint}' for channel '{self.channel}'.")
            found = float(values[names.index(joint)])
        elif self.kind == "Float64":
            found = float(message.data)
        else:
            part, _, axis = self.field.partition(".")
            twist = message.twist if self.kind == "TwistStamped" else message
            found = float(getattr(getattr(twist, part), axis))
        if not math.isfinite(found):
            raise InvalidObservation(f"{self.topic} has {found} for channel '{self.channel}'.")
        return found


@dataclass(frozen=True)
class ChannelTopics:
    """Where all channels of a robot are: those it is told, and those it measures."""

    robot: Embodiment
    commands: tuple[ChannelTopic, ...] = ()
    states: tuple[ChannelTopic, ...] = ()

    def __post_init__(self) -> None:
        body = self.robot
        for places, channels, what in (
            (self.commands, body.commanded_channels, "commanded"),
            (self.states, body.observed_channels, "observed"),
        ):
            wanted, given = [c.name for c in channels], [p.channel for p in places]
            unknown = sorted(set(given) - set(wanted))
            if unknown:
                has = ", ".join(wanted) or "none"
                raise InvalidEmbodiment(body.name, f"{unknown[0]} is no {what} channel of it; it has {has}.")
            missing = [n for n in wanted if n not in given]
            if missing:
                raise InvalidEmbodiment(
                    body.name, f"its {what} channels {', '.join(missing)} have no place in the graph: {EXAMPLE}."
                )
            if len(set(given)) != len(given):
                raise InvalidEmbodiment(body.name, f"a channel has two places among {', '.join(given)}.")
        if any(p.kind == "JointState" for p in self.commands):
            raise InvalidEmbodiment(body.name, "a channel cannot be commanded by a JointState; take Float64 or Twist.")
        for topic, places in by_topic(self.commands).items():
            if len({p.kind for p in places}) > 1 or len({p.field for p in places}) < len(places):
                names = ", ".join(p.channel for p in places)
                raise InvalidEmbodiment(body.name, f"the channels {names} cannot share {topic}: {EXAMPLE}.")

    @classmethod
    def of(cls, robot: Embodiment, commands: Iterable[str], states: Iterable[str]) -> "ChannelTopics":
        """From a user's texts. Raises `InvalidObservation`, and `InvalidEmbodiment` where a channel has no place."""
        read = [tuple(ChannelTopic.parse(t) for t in texts if t) for texts in (commands, states)]
        return cls(robot, read[0], read[1])

    def command_messages(self, values: Array, head: Mapping[str, Any]) -> list[tuple[str, Kind, dict[str, Any]]]:
        """(topic, message, its fields) for the commanded channels [C], in the order of the robot; one a topic."""
        value = dict(zip((c.name for c in self.robot.commanded_channels), values, strict=True))
        found = []
        for topic, places in by_topic(self.commands).items():
            kind = places[0].kind
            if kind == "Float64":
                found.append((topic, kind, {"data": float(value[places[0].channel])}))
                continue
            twist = {part: dict.fromkeys("xyz", 0.0) for part in ("linear", "angular")}
            for p in places:
                part, _, axis = p.field.partition(".")
                twist[part][axis] = float(value[p.channel])
            found.append((topic, kind, {"header": dict(head), "twist": twist} if kind == "TwistStamped" else twist))
        return found


def by_topic(places: Iterable[ChannelTopic]) -> dict[str, list[ChannelTopic]]:
    """The places of each topic, in the order given."""
    found: dict[str, list[ChannelTopic]] = {}
    for place in places:
        found.setdefault(place.topic, []).append(place)
    return found


def _field_fits(kind: Kind, field: str) -> bool:
    if kind == "Float64":
        return not field
    if kind == "JointState":
        part, _, joint = field.partition(".")
        return part in JOINT_STATE and bool(joint)
    return field in TWIST
