"""Recorded columns and those of a robot, matched by name: which is which joint or channel, and which is nobody's.

Knows nothing of rates or images. Columns without names take the order that the user asserted by naming the robot.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment, RobotColumns
from athena_vla.errors import JointMismatch, UnknownName
from athena_vla.recordings.column_order import follow_in_order
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.common import are_placeholders, ask_for_names
from athena_vla.recordings.notes import Note


def plain_name(name: str) -> str:
    """A joint name without the suffix and case that only differ by convention: `left_knee_joint` is `left_knee`."""
    return name.lower().removesuffix("_joint")


def actions_by_name(
    episode: Episode, robot: Embodiment, names: Mapping[str, str], notes: list[Note]
) -> NDArray[np.floating[Any]]:
    """`[T, D]` in the order of the robot's action columns; `names` maps its joints and channels to recorded columns.

    Raises `JointMismatch` for a joint or channel that was not recorded, `UnknownName` for one that the robot lacks.
    """
    known = {*robot.state_names, *robot.command_names}
    for name in names:
        if name not in known:
            raise UnknownName(f"joint or channel of robot '{robot.name}'", name, sorted(known))
    width = episode.actions.shape[1]
    found = _find(episode.joint_names, robot.action_names, names)
    if None not in found:
        return episode.actions[:, [i for i in found if i is not None]]
    if are_placeholders(episode.joint_names):
        return _in_order(episode, robot, width, notes)
    missing = [w for w, i in zip(robot.action_names, found, strict=True) if i is None]
    raise JointMismatch(
        f"Episode {episode.id} ({episode.source}) has no action column for {_kinds(robot, missing)} of '{robot.name}'. "
        f"Its columns are {list(episode.joint_names)}. Say which is which with --joint-map FILE."
    )


def _in_order(episode: Episode, robot: Embodiment, width: int, notes: list[Note]) -> NDArray[np.floating[Any]]:
    channels, joints = robot.commanded_channels, len(robot.joints)
    more = f", then the channels {', '.join(c.name for c in channels)}" if channels else ""
    if width == robot.command_dim:
        taken = f"action columns are unnamed: taken as the {joints} joints of '{robot.name}' in its order{more}"
        notes.append(Note("column.unnamed", taken))
        return episode.actions[:, robot.action_index]
    if width == robot.action_dim:
        count = len(robot.action_joints)
        taken = f"action columns are unnamed: taken as the {count} action joints of '{robot.name}'{more}"
        notes.append(Note("column.unnamed", taken))
        return episode.actions
    said = f"; {robot.action_columns.wrong_width((width,))}" if channels else ""
    raise JointMismatch(
        f"Episode {episode.id} ({episode.source}) has {width} unnamed action columns, robot '{robot.name}' has "
        f"{joints} joints ({robot.action_dim} with actions){said}. Choose the robot that was recorded, or "
        f"{ask_for_names(width)}."
    )


def states_by_name(
    episode: Episode,
    robot: Embodiment,
    names: Mapping[str, str],
    actions: NDArray[np.floating[Any]],
    notes: list[Note],
) -> NDArray[np.floating[Any]]:
    """`[T, S]` in the order of the robot's state columns; `actions` are those of `actions_by_name`.

    Locked joints that were not recorded stand at their default; nothing else is filled in where states are recorded.
    Raises `JointMismatch`.
    """
    width = episode.states.shape[1]
    columns = robot.state_columns
    found = _find(episode.state_names, columns.names, names)
    if width and None not in found:
        return episode.states[:, [i for i in found if i is not None]]
    recorded = bool(width and episode.states.any())
    if recorded and are_placeholders(episode.state_names):
        return _unnamed_states(episode, robot, actions, notes)
    if recorded:
        missing = [w for w, i in zip(columns.names, found, strict=True) if i is None]
        if set(missing) - {j.name for j in robot.joints if j.owner == "locked"}:
            raise JointMismatch(
                f"Episode {episode.id} ({episode.source}) has no state column for {_kinds(robot, missing)} of "
                f"'{robot.name}'. Its columns are {list(episode.state_names)}. Say which is which with "
                "--joint-map FILE."
            )
        locked = f"no state recorded for the locked joints {missing}: they stand at their default"
        notes.append(Note("state.locked", locked, tuple(missing)))
        place = np.array([-1 if i is None else i for i in found], dtype=np.intp)
        return columns.taken(episode.states.astype(np.float64), place)
    if robot.observed_channels:
        raise JointMismatch(
            f"Episode {episode.id} ({episode.source}) holds no states, and nothing can stand for the observed channels "
            f"{[c.name for c in robot.observed_channels]} of '{robot.name}'. Record them, or take them out of the "
            "robot's description."
        )
    several = next((n for n in episode.notes if n.code == "articulation.several"), None)
    if several is not None:  # no state may be called unrecorded while several were found and none was chosen
        raise JointMismatch(f"Episode {episode.id} ({episode.source}): {several.text}.")
    looked = f" (recorded beside the actions: {', '.join(sorted(episode.streams))})" if episode.streams else ""
    stands = "no joint positions recorded: the previous target stands for the state, resting pose where there is none"
    notes.append(Note("state.missing", stands + looked))
    states = np.tile(robot.default, (len(actions), 1))
    joints = len(robot.action_joints)
    states[:, robot.action_index[:joints]] = np.concatenate([actions[:1], actions[:-1]])[:, :joints]
    return states


def _unnamed_states(
    episode: Episode, robot: Embodiment, actions: NDArray[np.floating[Any]], notes: list[Note]
) -> NDArray[np.floating[Any]]:
    width, joints, columns = episode.states.shape[1], len(robot.joints), robot.state_columns
    driven = len(robot.action_joints)
    if robot.observed_channels:
        if width != len(columns):
            raise JointMismatch(
                f"Episode {episode.id} ({episode.source}) has {width} unnamed state columns, the state of "
                f"'{robot.name}' has {len(columns)}; {columns.wrong_width((width,))}. Name them with state_names in "
                "metadata.json."
            )
        channels = ", ".join(c.name for c in robot.observed_channels)
        taken = (
            f"state columns are unnamed: taken as the {joints} joints of '{robot.name}' in its order, then the "
            f"channels {channels}"
        )
        notes.append(Note("column.unnamed", taken))
        return episode.states
    positions = episode.states[:, :joints]
    if width == joints:
        taken = f"state columns are unnamed: taken as the {width} joints of '{robot.name}' in its order"
        notes.append(Note("column.unnamed", taken))
        return positions
    if width > joints and driven == joints and follow_in_order(episode.states, actions[:, :driven]):
        distance = float(np.median(np.abs(positions[1:] - actions[:-1, :driven])))
        taken = (
            f"state columns are unnamed: the first {joints} of {width} follow the targets column for column and are "
            f"taken as joint positions (median distance to the previous target {distance:.4f} rad)"
        )
        notes.append(Note("column.unnamed", taken))
        return positions
    raise JointMismatch(
        f"Episode {episode.id} ({episode.source}) has {width} unnamed state columns "
        f"({episode.state_names[0]} to {episode.state_names[-1]}); robot '{robot.name}' has {joints} joints "
        f"({', '.join(robot.joint_names)}). Their motion does not say which is which: name them with --state-joints "
        "FILE, or with state_names in metadata.json."
    )


def unused(episode: Episode, robot: Embodiment, names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """`action` and `state` -> recorded columns that no joint or channel of the robot takes."""
    return {
        kind: _nobodys(recorded, columns, names)
        for kind, recorded, columns in (
            ("action", episode.joint_names, robot.command_columns),
            ("state", episode.state_names if episode.states.any() else (), robot.state_columns),
        )
    }


def unused_columns(episode: Episode, robot: Embodiment, names: Mapping[str, str]) -> list[Note]:
    """What to say of recorded columns that do not become part of a set."""
    streams = tuple(sorted(episode.streams))
    said = f"{len(streams)} recorded streams are no part of the set: {', '.join(streams)}"
    return [
        Note(
            "column.unused",
            f"{len(columns)} recorded {kind} columns are no joint or channel of '{robot.name}' and are left out: "
            f"{', '.join(columns)}",
            columns,
        )
        for kind, columns in unused(episode, robot, names).items()
        if columns
    ] + ([Note("stream.unused", said, streams)] if streams else [])


def _nobodys(recorded: tuple[str, ...], columns: RobotColumns, names: Mapping[str, str]) -> tuple[str, ...]:
    if are_placeholders(recorded):
        return recorded[len(columns) :]
    taken = {i for i in _find(recorded, columns.names, names) if i is not None}
    return tuple(n for i, n in enumerate(recorded) if i not in taken)


def _kinds(robot: Embodiment, missing: list[str]) -> str:
    """The missing names, as joints and as channels."""
    joints = [n for n in missing if n in robot.joint_names]
    channels = [n for n in missing if n in robot.channel_names]
    said = [f"{kind} {these}" for kind, these in (("joints", joints), ("channels", channels)) if these]
    return " and ".join(said)


def _find(names: tuple[str, ...], wanted: tuple[str, ...], mapping: Mapping[str, str]) -> list[int | None]:
    exact = {n: i for i, n in enumerate(names)}
    loose = {plain_name(n): i for i, n in enumerate(names)}
    loose = loose if len(loose) == len(names) else {}
    return [exact.get(mapping.get(w, w), loose.get(plain_name(mapping.get(w, w)))) for w in wanted]
