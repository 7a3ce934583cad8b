"""From a recorded episode to the robot's own terms: columns by name, one clock at control_hz, cameras by name.

Every choice that was made is returned as data, so that it is stored with the set. Nothing is guessed: columns without
names take the order the user asserted by naming the robot, and the record says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Channel, Embodiment
from athena_vla.errors import DatasetError, NotFinite
from athena_vla.recordings.column_names import actions_by_name, states_by_name, unused_columns
from athena_vla.recordings.episode import Episode, Frames, Segment
from athena_vla.recordings.marks import Marks
from athena_vla.recordings.notes import Note, texts_of
from athena_vla.recordings.resample import EDGE, Steps, columns_at, control_steps, resampled
from athena_vla.recordings.texts import Texts, at_frames


@dataclass(frozen=True)
class Alignment:
    """How streams are brought onto one clock; stored in the set."""

    camera_offset: int = 0  # [frames] image t is taken from recorded image t + offset
    drop_head: int = 0  # [frames] removed at the start
    drop_tail: int = 0  # [frames] removed at the end
    joint_map: Mapping[str, str] = field(default_factory=dict)  # joint or channel of the robot -> recorded column
    camera_map: Mapping[str, str] = field(default_factory=dict)  # robot camera -> recorded camera
    fps: float | None = None  # [Hz] asserted rate of the recording


@dataclass(frozen=True)
class AlignedEpisode:
    """An episode in the robot's columns at the robot's control rate; `picture[k]` is the recorded frame of step k."""

    episode: Episode
    actions: NDArray[np.float32]  # [K, D], in the order of the robot's action columns
    states: NDArray[np.float32]  # [K, S], in the order of its state columns
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
    actions = actions_by_name(episode, robot, choice.joint_map, notes)
    states = states_by_name(episode, robot, choice.joint_map, actions, notes)
    cameras = _cameras(episode, robot, choice, notes)
    fps = choice.fps or episode.fps
    if not episode.clock.has_rate and choice.fps is None:
        fps = robot.control_hz
        taken = f"no clock recorded: one frame is taken as one control step of {robot.control_hz:g} Hz"
        notes.append(Note("clock.missing", taken))
    length = len(episode)
    first, last = choice.drop_head, length - choice.drop_tail
    for name, stream in cameras.items():
        # An image must exist for every kept step; a stream shorter by its tail shortens the episode, with a note.
        available = len(stream) - choice.camera_offset
        if available < last:
            short = f"camera {name} has {len(stream)} images for {length} steps: the tail is dropped"
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
    actions = _at(actions[first:last], steps, steps.target, robot.commanded_channels)
    states = _at(states[first:last], steps, steps.state, robot.observed_channels)
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
        (*notes, *unused_columns(episode, robot, choice.joint_map)),
    )


def _at(
    rows: NDArray[Any], steps: Steps, places: NDArray[np.float64], channels: tuple[Channel, ...]
) -> NDArray[np.floating[Any]]:
    """Rows `[T, joints + channels]` at the places of the steps: each channel as its description asks."""
    taken = columns_at(rows, places)
    if not channels or steps.rule == "identity":
        return taken
    joints = rows.shape[1] - len(channels)
    ours = [resampled(rows[:, joints + k], places, steps.period, c.resample) for k, c in enumerate(channels)]
    return np.concatenate([taken[:, :joints], np.stack(ours, axis=1)], axis=1)


def _segments(segments: tuple[Segment, ...], kept: NDArray[np.intp]) -> tuple[Segment, ...]:
    moved = []
    for s in segments:
        start, stop = int(np.searchsorted(kept, s.start)), int(np.searchsorted(kept, s.stop))
        if stop > start:
            moved.append(replace(s, start=start, stop=stop))
    return tuple(moved)


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
            has = f"it has {sorted(recorded)}. Say which with --cameras {name}=RECORDED."
            none = "nothing was recorded by any camera, and a policy that sees needs images: record them."
            raise DatasetError(
                f"Episode {episode.id} ({episode.source}) has no camera '{wanted}' for '{name}' of '{robot.name}'; "
                + (has if recorded else none)
            )
        chosen[name] = recorded[wanted]
    return chosen
