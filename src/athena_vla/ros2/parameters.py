"""The node's parameters, and what they make of the control loop and its filter. Nothing of ROS is imported here."""

from collections.abc import Sequence
from typing import Any, get_args

from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.runtime import RuntimeConfig
from athena_vla.control.safety import Guard, SafetyFilter
from athena_vla.embodiment import Embodiment, Owner
from athena_vla.errors import UnknownName

Parameters = dict[str, Any]
PARAMETERS: Parameters = {
    "robot": "athena",
    "server": "ws://127.0.0.1:8000",
    "token": "",  # of the server; empty takes the environment variable ATHENA_TOKEN
    "task": "",  # the instruction until one arrives on `task_topic`
    "state_topic": "/joint_states",
    "image_topic": "/camera/{camera}/image_raw",
    "task_topic": "/athena/task",
    "command_topic": "/joint_trajectory_controller/joint_trajectory",
    "action": "",  # name of a FollowJointTrajectory server; empty publishes on command_topic instead
    "joints": [""],  # joints or groups that the controller has; none named: all
    "command_channels": [""],  # where commanded channels go, as "NAME=TOPIC:Twist.linear.x" or "NAME=TOPIC:Float64"
    "state_channels": [""],  # where observed channels come from, also "NAME=TOPIC:JointState.velocity.JOINT"
    "frame_id": "",  # in the header of every trajectory
    "stamp": "now",  # of every trajectory: now (by this node's clock), or zero (from its arrival on)
    "lead_s": 0.1,  # [s] commands are due so long after they were made (now) or arrived (zero)
    "best_effort": True,  # QoS of the inputs: sensor data
    "depth": 1,  # QoS of the inputs: messages kept; only the latest is ever used
    "command_best_effort": False,  # QoS of the trajectories
    "replan_every": 8,  # control steps
    "stale_s": 0.5,  # [s] age from which a state, image or channel is no observation any more, by its own stamp
    "duration_s": 1e9,  # [s]
    "speed": 1.0,  # share of the velocity limits, from 0.1 to 1
    "groups": [""],  # groups of joints that may move; none named: all
    "owners": [""],  # who drives a joint, a group or a channel where it differs, as "legs=balance"
    "jerk": False,  # keep the limits on jerk too
    "guards": [""],  # of the pose it could come to rest in, on its MJCF: self_collision, support=FOOT+FOOT
    "safe_pose": [""],  # where to go after a fault that lasts, as "JOINT=RADIANS"; joints not named: their default
    "latch": True,  # after a fault that ended at rest, wait for ~/acknowledge
    "heartbeat_s": 0.0,  # come to rest unless ~/beat comes this often; 0: nobody has to be there
    "shadow": False,  # command nothing
    "teleop_topic": "",  # JointTrajectory of a person who can take over; empty: nobody can
    "take_over_topic": "/athena/take_over",  # Bool: whether that person wants control
    "renamed": [""],  # joints as "ours=theirs"
}
STAMPS = ("zero", "now")
GUARDS = ("self_collision", "support")


def given(words: Sequence[str]) -> Parameters:
    """All parameters from `--ros-args -p NAME:=VALUE ...`, values as ROS reads them. Raises `UnknownName`."""
    parameters, left = dict(PARAMETERS), [w for w in words if w != "--ros-args"]
    while left:
        flag = left.pop(0)
        if flag not in ("-p", "--param") or not left:
            raise UnknownName("word", flag, ("--ros-args -p NAME:=VALUE",))
        name, _, value = left.pop(0).partition(":=")
        if name not in PARAMETERS:
            raise UnknownName("parameter", name, PARAMETERS)
        parameters[name] = _value(name, value, PARAMETERS[name])
    return parameters


def _value(name: str, text: str, default: object) -> Any:
    if isinstance(default, list):
        return [w.strip().strip("'\"") for w in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UnknownName(f"value of {name}", text, ("true", "false"))
        return text.lower() == "true"
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError as error:
            raise UnknownName(f"value of {name}", text, ("a number",)) from error
    return text.strip("'\"")


def pairs(words: list[str]) -> dict[str, str]:
    """ "a=b" as a -> b. Raises `UnknownName` for a word without a sign of equality."""
    for word in words:
        if word and "=" not in word:
            raise UnknownName("pair of a parameter", word, ("NAME=VALUE",))
    return dict(word.split("=", 1) for word in words if word)


def named_joints(body: Embodiment, words: list[str]) -> tuple[str, ...]:
    """Joints by their names or their groups', in the robot's order; all where none is named. Raises `UnknownName`."""
    wanted = [w for w in words if w]
    for word in wanted:
        if word not in body.groups and word not in body.joint_names:
            raise UnknownName(f"joint or group of '{body.name}'", word, (*body.groups, *body.joint_names))
    return tuple(j.name for j in body.joints if not wanted or j.name in wanted or j.group in wanted)


def runtime_config(parameters: Parameters) -> RuntimeConfig:
    """What of the parameters is the control loop's. Raises `UnknownName` for an owner that there is not."""
    owners: dict[str, Owner] = {}
    for name, owner in pairs(parameters["owners"]).items():
        if owner not in get_args(Owner):
            raise UnknownName("owner", owner, get_args(Owner))
        owners[name] = owner  # pyright: ignore[reportArgumentType] - it is one of them
    return RuntimeConfig(
        replan_every=parameters["replan_every"],
        max_observation_age=parameters["stale_s"],
        groups=tuple(g for g in parameters["groups"] if g),
        owners=owners,
        latch=parameters["latch"],
        heartbeat=parameters["heartbeat_s"] or None,
        shadow=parameters["shadow"],
        raise_errors=False,
        keep=300.0,
    )


def safety_filter(body: Embodiment, parameters: Parameters) -> SafetyFilter:
    """What of the parameters is the filter's. Raises `UnknownName`, `SafetyError`, `MissingDependency`."""
    pose = pairs(parameters["safe_pose"])
    body.index(pose)
    safe = tuple(float(pose.get(j.name, j.default)) for j in body.joints) if pose else None
    return SafetyFilter(
        body,
        jerk=parameters["jerk"],
        speed=parameters["speed"],
        guards=[_guard(name, body) for name in parameters["guards"] if name],
        fallback=FallbackPolicy(safe_pose=safe),
    )


def _guard(word: str, body: Embodiment) -> Guard:
    name, _, feet = word.partition("=")
    if name not in GUARDS:
        raise UnknownName("guard", name, GUARDS)
    from athena_vla.control.clearance import SelfCollision, Support

    return SelfCollision(body) if name == "self_collision" else Support(body, feet.split("+"))
