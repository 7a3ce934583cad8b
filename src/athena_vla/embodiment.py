"""What the robot is, sees and does: joints, cameras and rates as data, and the two things that cross its boundary.

Knows nothing of models, datasets or simulators. Joints are found by name, never by position in a list.
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
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import InvalidEmbodiment, InvalidObservation, UnknownName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Array = NDArray[np.float64]
Owner = Literal["policy", "balance", "locked"]
Mode = Literal["absolute", "delta"]
ChannelUnit = Literal["m", "m/s", "rad", "rad/s", "1"]
WhenNothing = Literal["hold", "zero", "default"]
Resample = Literal["interpolate", "hold", "mean"]
MAX_SIDE = 4096  # [px] of an image; padded to a square and resized it takes 50 MB, whatever its shape
MAX_ASPECT = 8  # longer side over shorter one


@dataclass(frozen=True)
class Joint:
    """One actuated joint. Angles in [rad] (or [m] for a prismatic joint, see `unit`)."""

    name: str
    group: str
    lower: float  # [rad]
    upper: float  # [rad]
    max_velocity: float  # [rad/s]
    max_acceleration: float  # [rad/s^2]
    max_jerk: float  # [rad/s^3]
    default: float = 0.0  # [rad], the pose the robot rests in
    owner: Owner = "policy"
    mode: Mode = "absolute"
    unit: Literal["rad", "m"] = "rad"


@dataclass(frozen=True)
class Channel:
    """One commanded quantity that is no joint: base height, planar velocity, gripper opening, a latent token.

    Values are in `unit`; rates are in `unit` per second and its derivative in `unit` per second squared.
    """

    name: str
    unit: ChannelUnit
    lower: float  # [unit]
    upper: float  # [unit]
    max_rate: float  # [unit/s]
    max_rate_derivative: float  # [unit/s^2]
    default: float = 0.0  # [unit]
    when_nothing: WhenNothing = "hold"  # what it does while there is no command to trust
    owner: Owner = "policy"
    observed: bool = False  # True where its present value is part of the state
    resample: Resample = "interpolate"  # how it is brought from the recorded rate to the control rate


@dataclass(frozen=True)
class Camera:
    """One camera stream in the order the model sees it."""

    name: str
    width: int  # [px]
    height: int  # [px]
    fps: float  # [Hz]
    fov_deg: float  # vertical field of view
    mount: str = ""  # body of the robot, or "world"


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
        for joint in self.joints:
            refuse_where(_problem_of_joint(joint))
        for channel in self.channels:
            refuse_where(_problem_of_channel(channel))
        names = {*(j.name for j in self.joints), *(c.name for c in self.cameras)}
        shared = sorted(names & {c.name for c in self.channels})
        if shared:
            refuse(f"channels {', '.join(shared)} have the name of a joint or camera.")
        for camera in self.cameras:
            if min(camera.width, camera.height) <= 0 or not 0 < camera.fov_deg < 180 or camera.fps <= 0:
                refuse(
                    f"camera '{camera.name}' needs a positive size and rate and a field of view in (0, 180) degrees."
                )
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
    def action_index(self) -> NDArray[np.intp]:
        """Positions of `action_joints` in the full joint vector."""
        return self.index(self.action_joints)

    @cached_property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.cameras)

    @property
    def state_dim(self) -> int:
        """The state is the position of every joint."""
        return len(self.joints)

    @property
    def action_dim(self) -> int:
        return len(self.action_joints)

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
        column = np.array([getattr(j, attribute) for j in self.joints], dtype=np.float64)
        column.setflags(write=False)
        return column


def _problem_of_joint(j: Joint) -> str:
    """What contradicts itself in a joint's description; "" where nothing does."""
    numbers = (j.lower, j.upper, j.max_velocity, j.max_acceleration, j.max_jerk, j.default)
    if not all(math.isfinite(x) for x in numbers):
        return f"joint '{j.name}' has a limit that is not a finite number."
    if j.lower >= j.upper:
        return f"joint '{j.name}' has lower {j.lower} not below upper {j.upper}."
    if min(j.max_velocity, j.max_acceleration, j.max_jerk) <= 0:
        return f"joint '{j.name}' needs positive max_velocity, max_acceleration and max_jerk."
    if not j.lower <= j.default <= j.upper:
        return f"joint '{j.name}' rests at {j.default}, outside [{j.lower}, {j.upper}]."
    if j.owner not in get_args(Owner) or j.mode not in get_args(Mode):
        return f"joint '{j.name}' has owner '{j.owner}' / mode '{j.mode}'; owners are {get_args(Owner)}."
    return ""


def _problem_of_channel(c: Channel) -> str:
    """What contradicts itself in a channel's description; "" where nothing does."""
    numbers = {k: getattr(c, k) for k in ("lower", "upper", "max_rate", "max_rate_derivative", "default")}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"channel '{c.name}' has {key} = {value!r}, which is not a finite number."
    if c.lower >= c.upper:
        return f"channel '{c.name}' has lower {c.lower} not below upper {c.upper}."
    if min(c.max_rate, c.max_rate_derivative) <= 0:
        return f"channel '{c.name}' needs a positive max_rate and max_rate_derivative."
    if not c.lower <= c.default <= c.upper:
        return f"channel '{c.name}' has the default {c.default}, outside [{c.lower}, {c.upper}]."
    if c.when_nothing == "zero" and not c.lower <= 0.0 <= c.upper:
        return f"channel '{c.name}' goes to zero when there is nothing to trust, but 0 is outside its limits."
    for key, known in (("unit", ChannelUnit), ("when_nothing", WhenNothing), ("owner", Owner), ("resample", Resample)):
        if getattr(c, key) not in get_args(known):
            return f"channel '{c.name}' has {key} '{getattr(c, key)}'; known are {', '.join(get_args(known))}."
    return (
        "" if isinstance(c.observed, bool) else f"channel '{c.name}' has observed = {c.observed!r}, not true or false."
    )


@dataclass(frozen=True)
class Observation:
    """What the robot perceives at one instant."""

    images: dict[str, NDArray[np.uint8]]  # camera name -> [height, width, 3] RGB
    state: NDArray[np.floating[Any]]  # [rad], every joint in the robot's order
    instruction: str
    time: float = 0.0  # [s], the robot's clock when the images were taken
    committed: Array | None = None  # [p, D] [rad], first rows of the answer, already decided; see `control.prefix`

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
            raise InvalidObservation(
                f"{robot.name} has {robot.state_dim} joints, the observed state has shape {list(self.state.shape)}."
            )
        if not np.isfinite(self.state).all():
            bad = [n for n, x in zip(robot.joint_names, self.state, strict=True) if not np.isfinite(x)]
            raise InvalidObservation(f"The observed state is not a number for joints {bad}.")
        rows = self.committed
        if rows is not None and (rows.ndim != 2 or rows.shape[1] != robot.action_dim or not np.isfinite(rows).all()):
            raise InvalidObservation(
                f"Committed rows must be finite radians [p, {robot.action_dim}] in the order of {robot.name}'s action "
                f"joints; they have shape {list(rows.shape)}."
            )
        return self


@dataclass(frozen=True)
class ActionChunk:
    """Joint position targets for the next `H` control steps; row `i` is meant for `time + (i + 1) * dt`."""

    positions: Array  # [H, D] [rad]
    joint_names: tuple[str, ...]  # D names
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
