"""`athena robot import`: a robot's TOML from its published URDF or MJCF, with what is missing or guessed said.

Names and limits are the file's. Neither format says accelerations and jerks, and MJCF no velocities: they are written
as guesses, marked as such, to be replaced by the maker's.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from athena_vla import files
from athena_vla.embodiment import load
from athena_vla.errors import RobotFileError
from athena_vla.robot_import.robot_description import ImportedRobot, read_description

SETTLES = 0.2  # [s] in which a guessed acceleration reaches the velocity limit
SNAPS = 0.05  # [s] in which a guessed jerk reaches the acceleration


@dataclass(frozen=True, kw_only=True)
class RobotImportConfig:
    """Which description becomes a robot, and what it does not say."""

    input: Path
    """A URDF (.urdf) or an MJCF (.xml)."""
    out: Path | None = None
    """The TOML; NAME.toml where you stand, where not given."""
    name: str = ""
    """Name of the robot; the file's own where not given."""
    velocity: float = 2.0
    """Velocity limit of joints for which the file has none [rad/s or m/s]."""
    control_hz: float = 20.0
    """Steps of an action chunk in a second."""
    command_hz: float = 100.0
    """Motor commands in a second, a multiple of the control rate."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class RobotImportResult:
    """The file that was written, and what is a guess in it."""

    path: Path
    robot: str
    joints: int
    groups: Mapping[str, int]
    skipped: Mapping[str, str]
    guessed: tuple[str, ...]
    narrowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        groups = ", ".join(f"{name} {count}" for name, count in self.groups.items())
        lines = [f"{self.path}: '{self.robot}' with {self.joints} joints in guessed groups: {groups}"]
        lines += [f"left out {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"narrowed: {what}" for what in self.narrowed]
        lines += [f"guessed: {what}" for what in self.guessed]
        return "\n".join([*lines, f"Look through the file, then: athena data check RECORDING --robot {self.path}"])


def import_robot(config: RobotImportConfig) -> RobotImportResult:
    """Write the TOML. Raises `RobotFileError` for a description that cannot be one, with the joints at fault."""
    found = read_description(config.input)
    name = config.name or re.sub(r"\W+", "_", found.name).strip("_").lower() or config.input.stem
    out = config.out or Path(f"{name}.toml")
    if out.exists() and not config.overwrite:
        raise RobotFileError(f"'{out}' exists already. Name another file with --out, or replace it with --overwrite.")
    for option, value in (("velocity", config.velocity), ("control-hz", config.control_hz)):
        if not (math.isfinite(value) and value > 0):
            raise RobotFileError(f"--{option} is {value}; it must be a positive number.")
    groups: dict[str, int] = {}
    for joint in found.joints:
        groups[joint.group] = groups.get(joint.group, 0) + 1
    guessed = _guesses(found, groups, config)
    with files.whole_file(out, RobotFileError) as partial:
        partial.write_text(_toml(name, found, config, guessed), encoding="utf-8")
        checked = partial.with_suffix(".toml")
        partial.rename(checked)
        try:
            load(checked)  # what contradicts itself is never put at its name
        finally:
            checked.rename(partial)
    return RobotImportResult(out, name, len(found.joints), groups, found.skipped, guessed, _narrowed(found))


def _narrowed(found: ImportedRobot) -> tuple[str, ...]:
    """Which joints may move less than their own range says, and by what."""
    reasons = dict.fromkeys(j.narrowed for j in found.joints if j.narrowed)
    return tuple(f"{', '.join(j.name for j in found.joints if j.narrowed == r)}, by the {r}" for r in reasons)


def _guesses(found: ImportedRobot, groups: Mapping[str, int], config: RobotImportConfig) -> tuple[str, ...]:
    slow = [j.name for j in found.joints if j.velocity is None]
    endless = [j.name for j in found.joints if j.is_continuous]
    said = ["max_acceleration and max_jerk: neither URDF nor MJCF says them"]
    if slow:
        which = "all joints" if len(slow) == len(found.joints) else ", ".join(slow)
        said.append(f"max_velocity {config.velocity:g} of {which}")
    if endless:
        said.append(f"limits of {', '.join(endless)}, which turn without end: one turn")
    said.append("groups (from names), the camera and the rates")
    if _balances(found):
        said.append('owner = "balance" of the legs: a controller balances them, the policy does not drive them')
    return tuple(said)


def _balances(found: ImportedRobot) -> bool:
    """Whether it stands on legs that somebody must balance: two of them, or one under a base that moves freely."""
    legs = {j.group for j in found.joints if j.group.endswith("leg")}
    return {"left_leg", "right_leg"} <= legs or (found.floats and bool(legs))


def _toml(name: str, found: ImportedRobot, config: RobotImportConfig, guessed: tuple[str, ...]) -> str:
    lines = [f"# Made from {config.input.name} by athena robot import. Not in that file, and so guessed:"]
    lines += [f"#   - {what}" for what in guessed]
    lines += [f"# Limits narrower than the joint's own range: {what}." for what in _narrowed(found)]
    lines += [f"# Left out: {joint} ({why})." for joint, why in found.skipped.items()]
    lines += ["", f"name = {json.dumps(name)}"]
    lines += [f"source = {json.dumps(f'{config.input.name}; accelerations, jerks and what is marked are guesses')}"]
    lines += [f"control_hz = {config.control_hz:g}", f"command_hz = {config.command_hz:g}", ""]
    lines += ["[[camera]]  # guessed", 'name = "front"', "width = 640", "height = 480", "fps = 30", "fov_deg = 60"]
    lines += ['mount = "head"']
    balances = _balances(found)
    for joint in found.joints:
        velocity = joint.velocity or config.velocity
        acceleration = velocity / SETTLES
        lines += ["", "[[joint]]", f"name = {json.dumps(joint.name)}", f'group = "{joint.group}"  # guessed']
        lines += [f"lower = {_exact(joint.lower)}", f"upper = {_exact(joint.upper)}"]
        lines += [f"max_velocity = {_exact(velocity)}" + ("" if joint.velocity else "  # guessed")]
        lines += [f"max_acceleration = {_exact(acceleration)}  # guessed"]
        lines += [f"max_jerk = {_exact(acceleration / SNAPS)}  # guessed"]
        rest = min(max(0.0, joint.lower), joint.upper)
        lines += [f"default = {_exact(rest)}"] if rest else []
        lines += ['unit = "m"'] if joint.unit == "m" else []
        lines += ['owner = "balance"  # guessed'] if balances and joint.group.endswith("leg") else []
    if found.floats:
        lines += ["", "# The base moves freely. A policy that also commands it needs channels such as this one:"]
        lines += [f"# {line}" for line in CHANNEL.splitlines()]
    return "\n".join([*lines, ""])


CHANNEL = """[[channel]]
name = "base_height"
unit = "m"
lower = 0.5
upper = 0.8
max_rate = 0.3
max_rate_derivative = 2.0
default = 0.75
when_nothing = "hold\""""


def _exact(value: float) -> str:
    text = repr(round(value, 12))
    return text if "." in text or "e" in text else f"{text}.0"
