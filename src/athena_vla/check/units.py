"""Units of recorded joints, column by column: degrees, percent of a motor's range, servo ticks in place of radians."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.findings import Finding, finding
from athena_vla.check.joints import channels_of, tables
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode

ANGLE = 2 * np.pi  # [rad] no joint of a robot turns further than this without being continuous
TICKS = 400.0  # values beyond any angle in degrees
PERCENT = 100.5  # LeRobot normalises body motors to -100..100 and grippers to 0..100,
TOUCHES = 99.0  # and clips there: a body whose joints stay below both and never touch them may be either
END_EFFECTOR = re.compile(r"gripper|jaw|finger|thumb|index|middle|ring|pinky|little|hand(?!le)", re.IGNORECASE)
SHOWN = 6  # columns named in a message


def check_units(episode: Episode, robot: Embodiment | None = None) -> Iterator[Finding]:
    """Units other than radians, said per column; velocities among the states, and channels, are left alone."""
    width = len(episode.joint_names)
    for kind, names, values in tables(episode):
        values = values[:, :width] if kind == "states" and width else values
        names = names[: values.shape[1]]
        if not len(values) or is_cartesian(names):
            continue
        found: dict[str, list[str]] = {}
        units = units_of(names, values, _are_joints(names, robot))
        for name, column, unit in zip(names, values.T, units, strict=True):
            low, high = np.nanmin(column), np.nanmax(column)
            found.setdefault(unit, []).append(f"{name} {low:.0f}..{high:.0f}")
        found.pop("", None)
        for unit, columns in found.items():
            more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
            doubt = " They would fit percent of the range (-100..100) as well." if unit == "degrees?" else ""
            code = f"joint.{unit.rstrip('?')}"
            yield finding(code, f"{kind}: {', '.join(columns[:SHOWN])}{more}.{doubt}", episode.id)


def units_of(names: Sequence[str], values: NDArray[np.float64], are_joints: Sequence[bool]) -> list[str]:
    """`""` (radians, or no joint), `degrees`, `degrees?`, `percent` or `ticks` for each column of `values` `[T, D]`."""
    finite = np.where(np.isfinite(values), values, 0.0)
    typical = np.quantile(np.abs(finite), 0.9, axis=0)  # the middle of the values decides, not one glitch
    low, high = finite.min(axis=0), finite.max(axis=0)
    units: list[str] = []
    body: list[int] = []
    for c, name in enumerate(names):
        unit = ""
        if are_joints[c] and typical[c] > TICKS:
            unit = "ticks"
        elif are_joints[c] and typical[c] > ANGLE:
            if END_EFFECTOR.search(name) and low[c] >= -0.5:
                unit = "percent" if high[c] <= PERCENT else "ticks"
            else:
                unit = "degrees"
                body.append(c)
        units.append(unit)
    reach = max((max(-low[c], high[c]) for c in body), default=0.0)
    if reach <= PERCENT:
        for c in body:
            units[c] = "percent" if reach >= TOUCHES else "degrees?"
    return units


def is_cartesian(names: Sequence[str]) -> bool:
    """Whether columns are a pose in space rather than joints."""
    return any(plain_name(n).rsplit("_", 1)[-1] in ("x", "y", "z") and "pos" in n.lower() for n in names)


def _are_joints(names: Sequence[str], robot: Embodiment | None) -> list[bool]:
    """Of a recording that has the robot's joints by name, other columns are none: forces, percent, counters."""
    others = channels_of(robot)
    joints = {plain_name(n) for n in robot.joint_names} if robot is not None else set[str]()
    plain = [plain_name(n) for n in names]
    by_name = bool(joints & set(plain))
    return [n not in others and (not by_name or n in joints) for n in plain]
