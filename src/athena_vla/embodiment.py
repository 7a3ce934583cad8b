"""What the robot is, sees and does: joints, channels, cameras and rates as data, and what crosses its boundary.

Knows nothing of models, datasets or simulators. Joints and channels are found by name, never by position in a list.
Three vectors, each in one order: a state is all joints, then observed channels; a command is all joints, then commanded
channels; an action (one row of a chunk) is the joints that are not locked, then commanded channels.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from athena_vla.channels import Channel, Resample, problem_of_keys
from athena_vla.errors import InvalidEmbodiment, InvalidObservation, UnknownName
from athena_vla.robot_columns import Array, RobotColumns, fixed
from athena_vla.robot_parts import Camera, Joint, Mode, Owner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "ActionChunk",
    "Array",
    "Camera",
    "Channel",
    "Embodiment",
    "Joint",
    "Mode",
    "Observation",
    "Owner",
    "Resample",
    "RobotColumns",
    "known_robots",
    "load",
]

MAX_SIDE = 4096  # [px] of an image; padded to a square and resized it takes 50 MB, whatever its shape
MAX_ASPECT = 8  # longer side over shorter one


@dataclass(frozen=True)
class Embodiment:
    """A joint-controlled robot; valid once constructed, hashable, and stored with every dataset and bundle.

    `control_hz` is the rate of one action-chunk step, `command_hz` the motor rate, an integer multiple of it.
    """

    name: str
    joints: tuple[Joint, ...]
    cameras: tuple[Camera, ...]
    control_hz: float
    command_hz: float
    source: str = ""
    mjcf: str = ""  # file name beside the TOML, "" where the robot has no model
    channels: tuple[Channel, ...] = ()  # commands beside the joints

    def __post_init__(self) -> None:
        def refuse(problem: str) -> None:
            raise InvalidEmbodiment(self.name, problem)

        def refuse_where(problem: str) -> None:
            if problem:
                refuse(problem)

        if not self.joints:
            refuse("it has no joints.")
        for kind, named in (("joint", self.joints), ("camera", self.cameras), ("channel", self.channels)):
            names = [x.name for x in named]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                refuse(f"{kind} names appear twice: {', '.join(twice)}.")
        for part in (*self.joints, *self.channels, *self.cameras):
            refuse_where(part.problem)
        names = {*(j.name for j in self.joints), *(j.group for j in self.joints), *(c.name for c in self.cameras)}
        shared = sorted(names & {c.name for c in self.channels})
        if shared:
            refuse(f"channels {', '.join(shared)} have the name of a joint or camera, or of a group.")
        if not (math.isfinite(self.control_hz) and math.isfinite(self.command_hz) and self.control_hz > 0):
            refuse(f"control_hz {self.control_hz} and command_hz {self.command_hz} must be positive and finite.")
        ratio = self.command_hz / self.control_hz
        if ratio < 1 or abs(ratio - round(ratio)) > 1e-9:
            refuse(f"command_hz {self.command_hz} is not an integer multiple of control_hz {self.control_hz}.")

    # Joints as arrays, all of shape [number of joints], in the robot's order.

    @cached_property
    def joint_names(self) -> tuple[str, ...]:
        return tuple(j.name for j in self.joints)

    @cached_property
    def lower(self) -> Array:
        return self._column("lower")

    @cached_property
    def upper(self) -> Array:
        return self._column("upper")

    @cached_property
    def max_velocity(self) -> Array:
        return self._column("max_velocity")

    @cached_property
    def max_acceleration(self) -> Array:
        return self._column("max_acceleration")

    @cached_property
    def max_jerk(self) -> Array:
        return self._column("max_jerk")

    @cached_property
    def default(self) -> Array:
        return self._column("default")

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Group name -> joint names, in the robot's order."""
        names = dict.fromkeys(j.group for j in self.joints)
        return {g: tuple(j.name for j in self.joints if j.group == g) for g in names}

    @cached_property
    def action_joints(self) -> tuple[str, ...]:
        """Joints that a chunk has a column for: all that are not locked. Who drives them is the runtime's business."""
        return tuple(j.name for j in self.joints if j.owner != "locked")

    @cached_property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.cameras)

    # The three vectors, joints first and channels after them; for a robot without channels they are its joints alone.

    @cached_property
    def commanded_channels(self) -> tuple[Channel, ...]:
        return tuple(c for c in self.channels if c.is_commanded)

    @cached_property
    def observed_channels(self) -> tuple[Channel, ...]:
        return tuple(c for c in self.channels if c.observed)

    @cached_property
    def state_groups(self) -> dict[str, tuple[str, ...]]:
        """Joint groups, then each observed channel as a group of its own -> the state columns in it."""
        return {**self.groups, **{c.name: (c.name,) for c in self.observed_channels}}

    @cached_property
    def action_groups(self) -> dict[str, tuple[str, ...]]:
        """Joint groups with the joints that are not locked, then each commanded channel -> the action columns in it."""
        moving = {g: tuple(n for n in names if n in self.action_joints) for g, names in self.groups.items()}
        return {g: names for g, names in moving.items() if names} | {c.name: (c.name,) for c in self.commanded_channels}

    @cached_property
    def state_columns(self) -> RobotColumns:
        """[S] what is measured: the position of every joint, then the observed channels."""
        return RobotColumns.of(self.joints, self.observed_channels)

    @cached_property
    def command_columns(self) -> RobotColumns:
        """[C] what the robot is told at `command_hz`: the position of every joint, then the commanded channels."""
        return RobotColumns.of(self.joints, self.commanded_channels)

    @cached_property
    def action_columns(self) -> RobotColumns:
        """[D] one row of a chunk: the joints that are not locked, then the commanded channels."""
        return RobotColumns.of((j for j in self.joints if j.owner != "locked"), self.commanded_channels)

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.state_columns.names

    @property
    def command_names(self) -> tuple[str, ...]:
        return self.command_columns.names

    @property
    def action_names(self) -> tuple[str, ...]:
        return self.action_columns.names

    @property
    def state_dim(self) -> int:
        return len(self.joints) + len(self.observed_channels)

    @property
    def command_dim(self) -> int:
        return len(self.joints) + len(self.commanded_channels)

    @property
    def action_dim(self) -> int:
        return len(self.action_joints) + len(self.commanded_channels)

    @cached_property
    def action_index(self) -> NDArray[np.intp]:
        """Positions of the action columns in the command vector."""
        return self.command_columns.places(self.action_names)

    @cached_property
    def action_state_index(self) -> NDArray[np.intp]:
        """Positions of the action columns in the state; -1 for a channel that is not observed."""
        return self.state_columns.places(self.action_names)

    def action_of(self, state: NDArray[Any]) -> NDArray[Any]:
        """[..., D] the action that stays where the state [..., S] is; unobserved channels stand at their default."""
        return self.action_columns.taken(state, self.action_state_index)

    def command_of(self, state: NDArray[Any]) -> NDArray[Any]:
        """[..., C] the command that stays where the state [..., S] is; unobserved channels stand at their default."""
        return self.command_columns.taken(state, self.state_columns.places(self.command_names))

    @property
    def open_channels(self) -> tuple[str, ...]:
        """Channels whose limits are still to be taken from data."""
        return tuple(c.name for c in self.channels if c.is_open)

    @property
    def learned_limits(self) -> tuple[str, ...]:
        """Commanded channels whose limits are what training data showed: bounded, and never to be called safe."""
        return tuple(c.name for c in self.commanded_channels if c.limits == "data")

    @property
    def not_called_safe(self) -> str:
        """What has to be said of channels that are bounded and not safe; "" where there is none."""
        names = self.learned_limits
        if not names:
            return ""
        return (
            f"{', '.join(names)}: limits from the training data. Such values are bounded and not called safe; what the "
            "body does with them is the business of its own controller."
        )

    @cached_property
    def hash(self) -> str:
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def index(self, names: Iterable[str]) -> NDArray[np.intp]:
        """Positions of the named joints. Raises `UnknownName`."""
        place = {name: i for i, name in enumerate(self.joint_names)}
        wanted = list(names)
        for name in wanted:
            if name not in place:
                raise UnknownName(f"joint of robot '{self.name}'", name, self.joint_names)
        return np.array([place[n] for n in wanted], dtype=np.intp)

    def joint(self, name: str) -> Joint:
        return self.joints[int(self.index([name])[0])]

    @cached_property
    def channel_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.channels)

    def channel(self, name: str) -> Channel:
        """The channel of that name. Raises `UnknownName`."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise UnknownName(f"channel of robot '{self.name}'", name, self.channel_names)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a robot without channels has no such key, so that its hash is what it always was."""
        fields = cast(dict[str, Any], json.loads(json.dumps(asdict(self))))
        if not self.channels:
            del fields["channels"]
        return fields

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Embodiment":
        """Inverse of `to_dict`; unknown and missing keys are refused."""
        fields = dict(raw)
        name = str(fields.get("name", "?"))
        joints = fields.pop("joints", [])
        cameras = fields.pop("cameras", [])
        channels = fields.pop("channels", [])
        for channel in channels:
            problem = problem_of_keys(channel)
            if problem:
                raise InvalidEmbodiment(name, problem)
        try:
            return cls(
                joints=tuple(Joint(**j) for j in joints),
                cameras=tuple(Camera(**c) for c in cameras),
                channels=tuple(Channel(**c) for c in channels),
                **fields,
            )
        except TypeError as error:
            raise InvalidEmbodiment(name, f"its description does not fit: {error}.") from error

    def _column(self, attribute: str) -> Array:
        return fixed(getattr(j, attribute) for j in self.joints)


@dataclass(frozen=True)
class Observation:
    """What the robot perceives at one instant."""

    images: dict[str, NDArray[np.uint8]]  # camera name -> [height, width, 3] RGB
    state: NDArray[np.floating[Any]]  # [S] every joint in the robot's order [rad], then every observed channel
    instruction: str
    time: float = 0.0  # [s], the robot's clock when the images were taken
    action_prefix: Array | None = None  # [p, D] first rows of the answer, already decided; see `control.action_prefix`

    def require(self, robot: Embodiment) -> "Observation":
        """The same observation, checked against the robot. Raises `InvalidObservation`."""
        missing = [c for c in robot.camera_names if c not in self.images]
        if missing:
            raise InvalidObservation(
                f"{robot.name} needs cameras {list(robot.camera_names)}, the observation has {sorted(self.images)}."
            )
        for name in robot.camera_names:
            image = self.images[name]
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise InvalidObservation(
                    f"Camera '{name}' must be RGB uint8 [height, width, 3], it is {image.dtype} {list(image.shape)}."
                )
            if max(image.shape[:2]) > min(MAX_SIDE, MAX_ASPECT * min(image.shape[:2])):
                raise InvalidObservation(
                    f"Camera '{name}' sent {image.shape[1]} x {image.shape[0]} pixels; a side has at most {MAX_SIDE}, "
                    f"and at most {MAX_ASPECT} times the other. Crop or scale the image before it is sent."
                )
        if self.state.shape != (robot.state_dim,):
            channels = f" and {len(robot.observed_channels)} observed channels" if robot.observed_channels else ""
            raise InvalidObservation(
                f"{robot.name} has {len(robot.joints)} joints{channels}, the observed state has shape "
                f"{list(self.state.shape)}; {robot.state_columns.wrong_width(self.state.shape)}."
            )
        if not np.isfinite(self.state).all():
            bad = [n for n, x in zip(robot.state_names, self.state, strict=True) if not np.isfinite(x)]
            raise InvalidObservation(f"The observed state is not a number for joints {bad}.")
        rows = self.action_prefix
        if rows is not None and (rows.ndim != 2 or rows.shape[1] != robot.action_dim or not np.isfinite(rows).all()):
            raise InvalidObservation(
                f"An action prefix must be finite numbers [p, {robot.action_dim}] in the order of {robot.name}'s "
                f"action columns ({', '.join(robot.action_names)}); they have shape {list(rows.shape)}."
            )
        return self


@dataclass(frozen=True)
class ActionChunk:
    """Targets for the next `H` control steps; row `i` is meant for `time + (i + 1) * dt`."""

    positions: Array  # [H, D] [rad] for joints, else in the channel's unit
    joint_names: tuple[str, ...]  # D names, of joints and commanded channels
    dt: float  # [s]
    time: float = 0.0  # [s], the clock of the observation it answers
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.positions.shape[1] != len(self.joint_names):
            raise InvalidObservation(
                f"A chunk of {len(self.joint_names)} joints has positions of shape {list(self.positions.shape)}."
            )


def known_robots() -> tuple[str, ...]:
    """Names of the robots that ship with the package."""
    folder = resources.files("athena_vla") / "robots"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load(robot: str | Path) -> Embodiment:
    """Load a shipped robot by name, or any robot from the path of its TOML file.

    Raises `UnknownName` for a name that does not ship, `InvalidEmbodiment` for a file that contradicts itself.
    """
    path = Path(robot)
    if path.suffix == ".toml":
        if not path.is_file():
            raise InvalidEmbodiment(str(robot), f"there is no file '{path}'. Shipped: {', '.join(known_robots())}.")
        text = path.read_text()
    elif str(robot) in known_robots():
        text = (resources.files("athena_vla") / "robots" / f"{robot}.toml").read_text()
    else:
        raise UnknownName("robot", robot, (*known_robots(), "or a path to a .toml file"))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidEmbodiment(str(robot), f"the file is not valid TOML: {error}.") from error
    # TOML reads better in the singular: [[joint]], [[camera]], [[channel]].
    raw["joints"] = raw.pop("joint", [])
    raw["cameras"] = raw.pop("camera", [])
    raw["channels"] = raw.pop("channel", [])
    return Embodiment.from_dict(raw)
