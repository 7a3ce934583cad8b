"""Checks of joint columns: finite, named, in radians, within limits, without jumps; constant and saturated joints."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.findings import Finding, finding, some
from athena_vla.embodiment import Channel, Embodiment
from athena_vla.recordings.column_names import plain_name, unused
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.common import are_placeholders, ask_for_names
from athena_vla.recordings.intervals import intervals_of

OTHER_UNITS = {  # unit of a channel -> factor and name of units that are recorded in its place
    "m": ((1e-3, "millimetres"), (1e-2, "centimetres")),
    "m/s": ((1e-3, "millimetres a second"), (1e-2, "centimetres a second"), (1 / 3.6, "kilometres an hour")),
    "rad": ((np.pi / 180, "degrees"),),
    "rad/s": ((np.pi / 180, "degrees a second"),),
    "1": ((1e-2, "percent"),),
}
SHARE = 0.02  # of a channel's range or rate, beyond which it is outside
SLACK = 0.02  # [rad] beyond a limit that is still rounding
OUTSIDE_RANGE = 0.1  # of a joint's range, beyond its limits,
OUTSIDE_SHARE = 0.5  # in more than this share of the frames: such targets are not those of this robot
STILL = 1e-4  # [rad] travel below which a joint is constant
JUMP_RATIO = 6.0  # one step against the typical step of a joint that moves,
JUMP_TAIL = 3.0  # and against all but its fastest twentieth
JUMP_LEAST = 0.25  # [rad]
SATURATED_SECONDS = 1.0


def check_numbers(episode: Episode) -> Iterator[Finding]:
    """Values that are not finite, and widths that disagree."""
    for kind, names, values in tables(episode):
        bad = ~np.isfinite(values)
        if bad.any():
            rows, columns = np.flatnonzero(bad.any(axis=1)), np.flatnonzero(bad.any(axis=0))
            message = f"{kind} are not numbers in {len(rows)} frames, columns {some([names[int(c)] for c in columns])}."
            yield finding("number.not_finite", message, episode.id, (int(rows[0]), int(rows[-1]) + 1))
    if not episode.joint_names:
        yield finding("action.none", "The recording holds no actions.", episode.id)
    elif len(episode) > 3 and np.isfinite(episode.actions).all() and np.ptp(episode.actions, axis=0).max() == 0:
        yield finding("action.constant", f"All {len(episode)} actions are the same.", episode.id, (0, len(episode)))


def check_names(episode: Episode, robot: Embodiment | None) -> Iterator[Finding]:
    """Whether columns can be matched to the robot; once per recording is enough."""
    if robot is None:
        if are_placeholders(episode.joint_names):
            width = len(episode.joint_names)
            message = f"The {width} action columns have no names; {ask_for_names(width)}."
            yield finding("joint.unnamed", message, episode.id)
    elif are_placeholders(episode.joint_names):
        width = len(episode.joint_names)
        if width not in (robot.action_dim, robot.command_dim):
            lacking = f" {robot.action_columns.wrong_width((width,))}." if robot.channels else ""
            message = (
                f"{width} unnamed action columns, robot '{robot.name}' has {len(robot.action_joints)} "
                f"action joints of {len(robot.joints)}{_and_channels(robot)}.{lacking}"
            )
            yield finding("joint.mismatch", message, episode.id)
    elif episode.joint_names:
        recorded = {plain_name(n) for n in episode.joint_names}
        missing = [j for j in robot.action_names if plain_name(j) not in recorded]
        if missing:
            message = f"No action column for {some(missing)} of robot '{robot.name}'."
            yield finding("joint.mismatch", message, episode.id)
    if robot is not None:
        left = unused(episode, robot, {})
        for kind, code in (("action", "column.unused"), ("state", "column.unused_state")):
            if left[kind]:
                what = f"{len(left[kind])} {kind} columns are no joint or channel of '{robot.name}'"
                yield finding(code, f"{what}: {some(left[kind])}.", episode.id)
    if episode.state_names and episode.joint_names and len(episode.state_names) != len(episode.joint_names):
        message = f"{len(episode.joint_names)} action columns, {len(episode.state_names)} state columns."
        yield finding("joint.width", message, episode.id)


def check_limits(episode: Episode, robot: Embodiment, actions: NDArray[np.float64]) -> Iterator[Finding]:
    """Targets `[T, D]` in the robot's order against the limits of its joints on position and velocity."""
    index = robot.index(robot.action_joints)
    yield from _check_channels(episode, robot, actions[:, len(index) :])
    actions = actions[:, : len(index)]
    is_absolute = np.array([robot.joint(n).mode == "absolute" for n in robot.action_joints])
    low, high = robot.lower[index] - SLACK, robot.upper[index] + SLACK
    outside = ((actions < low) | (actions > high)) & is_absolute
    if outside.any():
        rows = np.flatnonzero(outside.any(axis=1))
        joints = []
        for c in np.flatnonzero(outside.any(axis=0)):
            name, column = robot.action_joints[c], actions[:, c]
            joint = robot.joint(name)
            joints.append(
                f"{name} {column.min():.2f}..{column.max():.2f} (limits {joint.lower:.2f}..{joint.upper:.2f})"
            )
        message = f"Targets leave the limits in {len(rows)} frames: {some(joints, 3)}."
        yield finding("joint.limits", message, episode.id, (int(rows[0]), int(rows[-1]) + 1))
        far = np.maximum(low - actions, actions - high) * is_absolute > OUTSIDE_RANGE * (high - low)
        if len(rows) > 1 and far.any(axis=1).mean() > OUTSIDE_SHARE:
            wrong = [robot.action_joints[c] for c in np.flatnonzero(far.any(axis=0))]
            message = f"Targets are far beyond the limits in {int(far.any(axis=1).sum())} of {len(actions)} frames: "
            yield finding("joint.outside", f"{message}{some(wrong)}.", episode.id)
    if len(actions) > 1 and episode.clock.has_rate:
        speed = np.abs(np.diff(actions, axis=0)) * episode.fps
        fast = (speed > robot.max_velocity[index]) & is_absolute
        if fast.any():
            rows = np.flatnonzero(fast.any(axis=1))
            joints = [
                f"{robot.action_joints[c]} {speed[:, c].max():.1f} rad/s (limit {robot.max_velocity[index][c]:.1f})"
                for c in np.flatnonzero(fast.any(axis=0))
            ]
            message = f"Targets move faster than the joints in {len(rows)} frames: {some(joints, 3)}."
            yield finding("joint.velocity", message, episode.id, (int(rows[0]), int(rows[-1]) + 2))


def _check_channels(episode: Episode, robot: Embodiment, values: NDArray[np.float64]) -> Iterator[Finding]:
    """Commands `[T, commanded channels]` against their limits on value and rate."""
    has_rate = len(values) > 1 and episode.clock.has_rate
    rates = np.abs(np.diff(values, axis=0)) * episode.fps if has_rate else np.zeros((1, values.shape[1]))
    for column, channel in enumerate(robot.commanded_channels):
        low, high = float(values[:, column].min()), float(values[:, column].max())
        slack, unit = SHARE * (channel.upper - channel.lower), channel.unit
        if channel.limits == "robot" and (low < channel.lower - slack or high > channel.upper + slack):
            said = f"{channel.name} {low:.3g}..{high:.3g} (limits {channel.lower:g}..{channel.upper:g} {unit})"
            other = next((u for f, u in OTHER_UNITS.get(unit, ()) if _fits(channel, low * f, high * f, slack)), "")
            if other:
                yield finding("channel.unit", f"{said}: in {other} it would fit.", episode.id)
            else:
                yield finding("channel.limits", f"{said}.", episode.id)
        fastest = float(rates[:, column].max())
        if channel.limits == "robot" and fastest > channel.max_rate * (1.0 + SHARE):
            message = f"{channel.name} changes by {fastest:.3g} {unit} a second (limit {channel.max_rate:g})."
            yield finding("channel.rate", message, episode.id)


def check_motion(episode: Episode, robot: Embodiment | None = None) -> Iterator[Finding]:
    """Jumps and saturation of the targets; a channel may jump to its next value and stay there."""
    others = channels_of(robot)
    actions = np.asarray(episode.actions, np.float64)
    if len(actions) < 8 or not actions.shape[1] or not np.isfinite(actions).all():
        return
    if (episode.state_names and len(episode.state_names) < len(episode.joint_names)) or _are_commands(episode):
        return  # end-effector commands may jump; joint targets may not
    steps = np.abs(np.diff(actions, axis=0))
    typical = np.array([np.median(c[c > STILL]) if (c > STILL).any() else np.inf for c in steps.T])
    tail = np.quantile(steps, 0.95, axis=0)
    jumps = (steps > JUMP_RATIO * typical) & (steps > JUMP_TAIL * tail) & (steps > JUMP_LEAST)
    # A gripper that snaps open and shut jumps by nature: it has two values and hardly any between.
    for c in range(actions.shape[1]):
        if _is_binary(actions[:, c]) or plain_name(episode.joint_names[c]) in others:
            jumps[:, c] = False
    if jumps.any():
        rows = np.flatnonzero(jumps.any(axis=1))
        names = [episode.joint_names[c] for c in np.flatnonzero(jumps.any(axis=0))]
        number = "1 jump" if len(rows) == 1 else f"{len(rows)} jumps"
        message = f"{number} of up to {steps[jumps].max():.2f} rad in one frame ({some(names)})."
        yield finding("joint.jump", message, episode.id, (int(rows[0]) + 1, int(rows[-1]) + 2))
    least = max(5, round(SATURATED_SECONDS * episode.fps)) if episode.clock.has_rate else 15
    saturated: list[str] = []
    for c, name in enumerate(episode.joint_names):
        column = actions[:, c]
        span = np.ptp(column)
        if span < 0.05 or _is_binary(column) or plain_name(name) in others:
            continue
        for extreme in (column.min(), column.max()):
            held = max((b - a for a, b in intervals_of(np.abs(column - extreme) < 1e-6)), default=0)
            # Resting at an extreme at the start or end is a pose; clipping holds it in the middle of a motion.
            inner = [
                (a, b)
                for a, b in intervals_of(np.abs(column - extreme) < 1e-6)
                if a > 0 and b < len(column) and b - a >= least
            ]
            if held >= least and inner:
                saturated.append(f"{name} at {extreme:.2f}")
    if saturated:
        message = f"Targets stay at their extreme: {some(saturated)}."
        yield finding("joint.saturated", message, episode.id)


def constant_joints(low: NDArray[np.float64], high: NDArray[np.float64], names: Sequence[str]) -> Iterator[Finding]:
    """Joints that never moved in the whole recording, from the extremes over all episodes."""
    still = [n for n, a, b in zip(names, low, high, strict=True) if b - a < STILL]
    if still and len(still) < len(names):
        yield finding("joint.constant", f"{len(still)} of {len(names)} joints never move: {some(still)}.")


def _fits(channel: Channel, low: float, high: float, slack: float) -> bool:
    return channel.lower - slack <= low <= high <= channel.upper + slack


def channels_of(robot: Embodiment | None) -> set[str]:
    return {plain_name(c.name) for c in robot.channels} if robot is not None else set()


def _and_channels(robot: Embodiment) -> str:
    return f" and {len(robot.commanded_channels)} commanded channels" if robot.commanded_channels else ""


def _are_commands(episode: Episode) -> bool:
    """True where states are recorded and the actions are not one target per joint of them."""
    width, states = len(episode.joint_names), len(episode.state_names)
    return 0 < states != width and are_placeholders(episode.joint_names) and states < 2 * width


def _is_binary(column: NDArray[np.float64]) -> bool:
    low, high = float(column.min()), float(column.max())
    if high - low < STILL:
        return False
    between = (column > low + 0.1 * (high - low)) & (column < high - 0.1 * (high - low))
    return float(between.mean()) < 0.02


def tables(episode: Episode) -> Iterator[tuple[str, Sequence[str], NDArray[np.float64]]]:
    if episode.actions.shape[1]:
        yield "actions", episode.joint_names, np.asarray(episode.actions, np.float64)
    if episode.states.shape[1]:
        yield "states", episode.state_names, np.asarray(episode.states, np.float64)
