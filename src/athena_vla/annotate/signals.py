"""Segments from what a simulator recorded beside the robot: object poses, hand contacts, the moment of success.

While an object moves or a hand touches one, something is being handled; that is known, not inferred from joints. What
lies between keeps the kind that motion rules give it. Nothing here looks at images or knows a simulator.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.annotate.motion import motion_segments
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.episode import Episode, Segment
from athena_vla.recordings.intervals import intervals_of

WINDOW_SECONDS = 0.25  # displacement over this window: a jittering contact cancels
MOVES_ON, MOVES_OFF = 0.04, 0.02  # [m/s] an object that starts to be moved, and one that is let go
PAUSE_SECONDS = 0.5  # an object that rests for less is still in the hand
LEAST_SECONDS = 0.3
CONTACT_FORCE = 1.0  # [N]
STILL = 0.1  # [rad] travel of every joint over a span in which a robot only waits
CONFIDENCE = 0.9

POSE = re.compile(r"(?:^|[./])(?:rigid_object[./](?P<a>[^./]+)[./]root_pose|object_pose[./](?P<b>[^./]+))$")
CONTACT = re.compile(r"contact", re.IGNORECASE)
GROUND = re.compile(r"foot|feet|ankle|ground|leg", re.IGNORECASE)
SUCCESS = re.compile(r"(?:^|[./])success$", re.IGNORECASE)


def signal_segments(episode: Episode, robot: Embodiment | None = None) -> tuple[Segment, ...]:
    """Segments that cover the whole episode; empty where no object moves, nothing is touched, or nothing is said."""
    length = len(episode)
    fps = episode.clock.rate(robot.control_hz if robot else 10.0)
    handled = _handled(episode, fps)
    if not handled:
        return ()
    done = _success(episode, fps)
    found: list[Segment] = []
    at = 0
    for number, (start, stop, name) in enumerate(handled):
        ahead = f"reach for {name}" if number == 0 else f"go on to {name}"
        found += [Segment(at, start, "prepare", ahead, "simulator", CONFIDENCE)] if start > at else []
        found.append(Segment(start, stop, "manipulate", f"handle {name}", "simulator", CONFIDENCE))
        at = stop
    if at < length:
        waits = _waits(episode, at) or (done is not None and done <= at)
        kind, text = ("idle", "stay as you are") if waits else ("prepare", "draw back")
        found.append(Segment(at, length, kind, text, "simulator", CONFIDENCE))
    return _walking(tuple(found), motion_segments(episode, robot))


def _handled(episode: Episode, fps: float) -> list[tuple[int, int, str]]:
    """(start, stop, what) of the spans in which something is moved or touched, in order and apart from each other."""
    length = len(episode)
    least, pause = max(2, round(LEAST_SECONDS * fps)), max(1, round(PAUSE_SECONDS * fps))
    spans: list[tuple[int, int, str]] = []
    for name, places in _objects(episode):
        moves = _hysteresis(_speed(places, fps))
        spans += [(a, b, name) for a, b in _bridged(moves, pause) if b - a >= least]
    touched = np.zeros(length, bool)
    for signal in _contacts(episode):
        touched |= signal
    for a, b in _bridged(touched, pause):
        # A touch is of the object that moves meanwhile; of "the object" where nothing does.
        inside = [s for s in spans if s[0] < b and a < s[1]]
        if inside:
            first, last = min(inside), max(inside, key=lambda s: s[1])
            spans = [s for s in spans if s not in inside]
            spans.append((min(a, first[0]), max(b, last[1]), first[2]))
        elif b - a >= least:
            spans.append((a, b, "the object"))
    apart: list[tuple[int, int, str]] = []
    for a, b, name in sorted(spans):
        if apart and a < apart[-1][1]:
            # Two objects move together, one upon or against the other: what moved first is what is handled.
            apart[-1] = (apart[-1][0], max(b, apart[-1][1]), apart[-1][2])
        else:
            apart.append((a, b, name))
    return apart


def _objects(episode: Episode) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(name, [T, 3] place [m]) of every object whose pose was recorded; one of two records of the same object."""
    seen: set[str] = set()
    for stream, recorded in sorted(_row_streams(episode).items(), reverse=True):  # states before obs
        match = POSE.search(stream)
        array = _numeric(recorded) if match is not None else None
        if match is None or array is None or len(array) != len(episode):
            continue
        name = match["a"] or match["b"]
        if array.ndim == 3 and array.shape[1:] == (4, 4):
            array = array[:, :3, 3]
        if name not in seen and array.ndim == 2 and array.shape[1] >= 3 and np.isfinite(array).all():
            seen.add(name)
            yield f"the {name.replace('_', ' ')}", array[:, :3]
    truth = episode.truth
    array = None if truth is None or truth.object_positions is None else _numeric(truth.object_positions)
    described = truth.objects if truth is not None else ()
    if array is not None and array.ndim == 3 and array.shape[0] == len(episode) and array.shape[2] == 3:
        for index in range(array.shape[1]):
            about: Mapping[str, Any] = described[index] if len(described) == array.shape[1] else {}
            words = [about[k] for k in ("colour", "color", "shape", "name") if isinstance(about.get(k), str)]
            yield f"the {' '.join(words) or 'object'}", array[:, index]


def _contacts(episode: Episode) -> Iterator[NDArray[np.bool_]]:
    """[T] per recorded contact of something other than the feet."""
    named = _row_streams(episode)
    named |= dict(episode.truth.contacts) if episode.truth is not None else {}
    for name, values in named.items():
        array = _numeric(values) if CONTACT.search(name) and not GROUND.search(name) else None
        if array is None or len(array) != len(episode) or not np.isfinite(array).all():
            continue
        is_flag = np.asarray(values).dtype == bool or set(np.unique(array)) <= {0.0, 1.0}
        size = np.abs(array).reshape(len(array), -1).max(axis=1)
        yield size > (0.0 if is_flag else CONTACT_FORCE)


def _success(episode: Episode, fps: float) -> int | None:
    """The frame from which the task is done, where the recording says so."""
    for name, values in _row_streams(episode).items():
        array = _numeric(values) if SUCCESS.search(name) else None
        if array is not None and len(array) == len(episode) and array.any():
            return int(np.argmax(array.reshape(len(array), -1).any(axis=1)))
    time = episode.truth.success_time if episode.truth is not None else None
    return round(time * fps) if time is not None and np.isfinite(time) else None


def _row_streams(episode: Episode) -> dict[str, NDArray[Any]]:
    """Streams with one row for each row of the episode; those with clocks of their own are not looked at."""
    return {k: s.values for k, s in episode.streams.items() if s.clock is None}


def _waits(episode: Episode, start: int) -> bool:
    values = episode.states if episode.states.shape[1] else episode.actions
    part = np.asarray(values[start:, : max(len(episode.joint_names), 1)], np.float64)
    return not part.size or bool(np.ptp(np.nan_to_num(part), axis=0).max() < STILL)


def _walking(segments: tuple[Segment, ...], rules: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same segments, cut where legs step: handling becomes coordinating, the rest walking."""
    found: list[Segment] = []
    steps = [(r.start, r.stop) for r in rules if r.kind in ("walk", "coordinate")]
    for s in segments:
        at = s.start
        for a, b in steps:
            a, b = max(a, at), min(b, s.stop)
            if a >= b:
                continue
            found += [replace(s, start=at, stop=a)] if a > at else []
            kind, text = ("coordinate", f"walk and {s.text}") if s.kind == "manipulate" else ("walk", "walk on")
            found.append(replace(s, start=a, stop=b, kind=kind, text=text))
            at = b
        found += [replace(s, start=at)] if at < s.stop else []
    return tuple(found)


def _speed(places: NDArray[np.float64], fps: float) -> NDArray[np.float64]:
    """[T] [m/s] over a window around each frame."""
    half = max(1, round(WINDOW_SECONDS * fps / 2))
    frames = np.arange(len(places))
    before, after = np.maximum(frames - half, 0), np.minimum(frames + half, len(places) - 1)
    travel = np.linalg.norm(places[after] - places[before], axis=1)
    return travel * fps / np.maximum(after - before, 1)


def _hysteresis(speed: NDArray[np.float64]) -> NDArray[np.bool_]:
    moving = np.zeros(len(speed), bool)
    for start, stop in intervals_of(speed > MOVES_OFF):
        moving[start:stop] = bool((speed[start:stop] > MOVES_ON).any())
    return moving


def _bridged(signal: NDArray[np.bool_], pause: int) -> list[tuple[int, int]]:
    """Intervals of a signal, joined over gaps of at most `pause` frames."""
    joined: list[tuple[int, int]] = []
    for start, stop in intervals_of(signal):
        if joined and start - joined[-1][1] <= pause:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _numeric(values: Any) -> NDArray[np.float64] | None:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.ndim and array.size else None
