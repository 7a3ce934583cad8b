"""From a recorded episode to the robot's own terms: columns by name, one clock at control_hz, cameras by name.

Every choice that was made is returned as data, so that it is stored with the set. Nothing is guessed: columns without
names take the order the user asserted by naming the robot, and the record says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError, JointMismatch, NotFinite
from athena_vla.recordings.episode import Episode, Frames, Segment
from athena_vla.recordings.formats.common import are_placeholders, ask_for_names
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note, texts_of
from athena_vla.recordings.resample import EDGE, columns_at, control_steps
from athena_vla.recordings.texts import Texts, at_frames

POSITION_LIKENESS = 0.15  # [rad] median distance between next state and target below which columns are joint positions


@dataclass(frozen=True)
class Alignment:
    """How streams are brought onto one clock; stored in the set."""

    camera_offset: int = 0  # [frames] picture t is taken from recorded picture t + offset
    drop_head: int = 0  # [frames] removed at the start
    drop_tail: int = 0  # [frames] removed at the end
    joint_map: Mapping[str, str] = field(default_factory=dict)  # robot joint -> recorded column
    camera_map: Mapping[str, str] = field(default_factory=dict)  # robot camera -> recorded camera
    fps: float | None = None  # [Hz] asserted rate of the recording


@dataclass(frozen=True)
class AlignedEpisode:
    """An episode in the robot's joints at the robot's control rate; `picture[k]` is the recorded frame of step k."""

    episode: Episode
    actions: NDArray[np.float32]  # [K, D] [rad]
    states: NDArray[np.float32]  # [K, S] [rad]
    picture: NDArray[np.intp]  # [K]
    cameras: Mapping[str, Frames]  # robot camera -> recorded stream
    texts: Texts  # what may be said at each step
    marks: Marks
    segments: tuple[Segment, ...]
    record: dict[str, Any]
    notes: tuple[Note, ...] = ()


def align(episode: Episode, robot: Embodiment, choice: Alignment) -> AlignedEpisode:
    """Raises `DatasetError` where joints or cameras of the robot cannot be found in the recording."""
    notes: list[Note] = []
    actions = _actions(episode, robot, choice, notes)
    states = _states(episode, robot, choice, actions, notes)
    cameras = _cameras(episode, robot, choice, notes)
    fps = choice.fps or episode.fps
    if not episode.clock.has_rate and choice.fps is None:
        fps = robot.control_hz
        taken = f"no clock recorded: one frame is taken as one control step of {robot.control_hz:g} Hz"
        notes.append(Note("clock.missing", taken))
    length = len(episode)
    first, last = choice.drop_head, length - choice.drop_tail
    for name, stream in cameras.items():
        # A picture must exist for every kept step; a stream shorter by its tail shortens the episode, with a note.
        available = len(stream) - choice.camera_offset
        if available < last:
            short = f"camera {name} has {len(stream)} pictures for {length} steps: the tail is dropped"
            notes.append(Note("camera.short", short, (name,)))
            last = available
        first = max(first, -choice.camera_offset)
    if last - first < 1:
        raise DatasetError(f"Episode {episode.id}: nothing is left after dropping head and tail ({length} frames).")
    steps = control_steps(last - first, fps, robot.control_hz)
    if not len(steps.state):
        raise DatasetError(
            f"Episode {episode.id}: {last - first} frames at {fps:g} Hz are shorter than one control period of "
            f"{1e3 / robot.control_hz:g} ms."
        )
    actions = columns_at(actions[first:last], steps.target)
    states = columns_at(states[first:last], steps.state)
    held = np.floor(steps.state + EDGE).astype(np.intp)
    segments = _segments(episode.segments, held + first)
    bad = [name for name, a in (("actions", actions), ("states", states)) if not np.isfinite(a).all()]
    if bad:
        raise NotFinite(f"Episode {episode.id}: {' and '.join(bad)} hold values that are not finite.")
    record = {
        "leads": "state",
        "camera_offset": choice.camera_offset,
        "first": int(first),
        "stop": int(last),
        "recorded_fps": float(fps),
        "control_hz": robot.control_hz,
        "resampling": steps.rule,
        "cameras": {name: next(k for k, v in episode.cameras.items() if v is s) for name, s in cameras.items()},
        "clock": episode.clock.source,
        "notes": texts_of(notes),
    }
    return AlignedEpisode(
        episode,
        actions.astype(np.float32),
        states.astype(np.float32),
        held + first + choice.camera_offset,
        cameras,
        at_frames(episode.texts, held + first),
        episode.marks.at_frames(held + first),
        segments,
        record,
        tuple(notes),
    )


def _segments(segments: tuple[Segment, ...], kept: NDArray[np.intp]) -> tuple[Segment, ...]:
    moved = []
    for s in segments:
        start, stop = int(np.searchsorted(kept, s.start)), int(np.searchsorted(kept, s.stop))
        if stop > start:
            moved.append(replace(s, start=start, stop=stop))
    return tuple(moved)


def plain_name(name: str) -> str:
    """A joint name without the suffix and case that only differ by convention: `left_knee_joint` is `left_knee`."""
    return name.lower().removesuffix("_joint")


def _find(names: tuple[str, ...], wanted: tuple[str, ...], mapping: Mapping[str, str]) -> list[int | None]:
    exact = {n: i for i, n in enumerate(names)}
    loose = {plain_name(n): i for i, n in enumerate(names)}
    loose = loose if len(loose) == len(names) else {}
    return [exact.get(mapping.get(w, w), loose.get(plain_name(mapping.get(w, w)))) for w in wanted]


def _actions(episode: Episode, robot: Embodiment, choice: Alignment, notes: list[Note]) -> NDArray[Any]:
    width = episode.actions.shape[1]
    found = _find(episode.joint_names, robot.action_joints, choice.joint_map)
    if None not in found:
        return episode.actions[:, [i for i in found if i is not None]]
    if are_placeholders(episode.joint_names):
        if width == len(robot.joints):
            taken = f"action columns are unnamed: taken as the {width} joints of '{robot.name}' in its order"
            notes.append(Note("column.unnamed", taken))
            return episode.actions[:, robot.action_index]
        if width == robot.action_dim:
            taken = f"action columns are unnamed: taken as the {width} action joints of '{robot.name}'"
            notes.append(Note("column.unnamed", taken))
            return episode.actions
        raise JointMismatch(
            f"Episode {episode.id} ({episode.source}) has {width} unnamed action columns, robot '{robot.name}' has "
            f"{len(robot.joints)} joints ({robot.action_dim} with actions). Choose the robot that was recorded, or "
            f"{ask_for_names(width)}."
        )
    missing = [w for w, i in zip(robot.action_joints, found, strict=True) if i is None]
    raise JointMismatch(
        f"Episode {episode.id} ({episode.source}) has no action column for joints {missing} of '{robot.name}'. "
        f"Its columns are {list(episode.joint_names)}. Say which is which with --joint-map FILE."
    )


def _states(
    episode: Episode, robot: Embodiment, choice: Alignment, actions: NDArray[Any], notes: list[Note]
) -> NDArray[Any]:
    width = episode.states.shape[1]
    found = _find(episode.state_names, robot.joint_names, choice.joint_map)
    if width and None not in found:
        return episode.states[:, [i for i in found if i is not None]]
    is_unnamed = are_placeholders(episode.state_names)
    if is_unnamed and width >= len(robot.joints) and episode.states.any():
        positions = episode.states[:, : len(robot.joints)]
        distance = (
            float(np.median(np.abs(positions[1:, robot.action_index] - actions[:-1]))) if len(actions) > 1 else 0.0
        )
        if width == len(robot.joints) or distance < POSITION_LIKENESS:
            taken = (
                f"state columns are unnamed: the first {len(robot.joints)} of {width} are taken as joint positions "
                f"(median distance to the previous target {distance:.4f} rad)"
            )
            notes.append(Note("column.unnamed", taken))
            return positions
        raise JointMismatch(
            f"Episode {episode.id} ({episode.source}) has {width} unnamed state columns, and the first "
            f"{len(robot.joints)} do not follow the targets (median distance {distance:.3f} rad). Name them with "
            "state_names in metadata.json."
        )
    if width and episode.states.any() and not is_unnamed:
        missing = [w for w, i in zip(robot.joint_names, found, strict=True) if i is None]
        if set(missing) & set(robot.action_joints):
            raise JointMismatch(
                f"Episode {episode.id} ({episode.source}) has no state column for joints {missing} of '{robot.name}'. "
                f"Its columns are {list(episode.state_names)}. Say which is which with --joint-map FILE."
            )
        locked = f"no state recorded for the locked joints {missing}: they stand at their default"
        notes.append(Note("state.locked", locked, tuple(missing)))
        states = np.tile(robot.default, (len(actions), 1))
        for column, place in enumerate(found):
            if place is not None:
                states[:, column] = episode.states[:, place]
        return states
    if width and episode.states.any() and is_unnamed:
        raise JointMismatch(
            f"Episode {episode.id} ({episode.source}) has {width} unnamed state columns, robot '{robot.name}' has "
            f"{len(robot.joints)} joints. Name them with state_names in metadata.json."
        )
    stands = "no joint positions recorded: the previous target stands for the state, resting pose where there is none"
    notes.append(Note("state.missing", stands))
    states = np.tile(robot.default, (len(actions), 1))
    states[:, robot.action_index] = np.concatenate([actions[:1], actions[:-1]])
    return states


def _cameras(episode: Episode, robot: Embodiment, choice: Alignment, notes: list[Note]) -> dict[str, Frames]:
    recorded = dict(episode.cameras)
    chosen: dict[str, Frames] = {}
    for name in robot.camera_names:
        wanted = choice.camera_map.get(name, name)
        if wanted not in recorded and len(recorded) == 1 and len(robot.cameras) == 1 and name not in choice.camera_map:
            only = next(iter(recorded))
            notes.append(Note("camera.only", f"the only recorded camera '{only}' is taken as '{name}'", (only,)))
            wanted = only
        if wanted not in recorded:
            raise DatasetError(
                f"Episode {episode.id} ({episode.source}) has no camera '{wanted}' for '{name}' of '{robot.name}'; it "
                f"has {sorted(recorded) or 'none'}. Say which with --cameras {name}=RECORDED."
            )
        chosen[name] = recorded[wanted]
    return chosen
