"""A recorded episode becomes a timeline: columns by name with units and limits, cameras, and what is said of frames."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.findings import Finding
from athena_vla.embodiment import Embodiment, RobotColumns
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode, Segment
from athena_vla.recordings.formats.common import are_placeholders
from athena_vla.recordings.limbs import limbs
from athena_vla.view.timeline import Array, CameraTrack, Column, Curve, Remark, Span, SpanKind, Timeline, span_at

STREAM_COLUMNS = 8  # of one stream; wider ones are tables and no curves
MOST_STREAM_COLUMNS = 48
STREAMS = "streams"
OTHER = "other"


def timeline_of(
    episode: Episode, robot: Embodiment | None, segments: Sequence[Segment], findings: Sequence[Finding]
) -> Timeline:
    """Everything about the episode but poses and predictions; `findings` are those of this episode or of all."""
    times, notes = _times(episode)
    period = 1.0 / episode.fps
    columns = [*_columns(episode, times, robot), *_streams(episode, times, notes)]
    cameras = []
    for name, stream in episode.cameras.items():
        count = min(len(stream), len(episode))
        if len(stream) != len(episode):
            notes.append(f"camera {name} has {len(stream)} images for {len(episode)} frames")
        cameras.append(CameraTrack(name, times[:count], stream))
    spans = _spans(episode, times, period, segments)
    spans += [
        span_at(times, period, "finding", *f.frames, f.code, f.message, f.severity)
        for f in findings
        if f.frames and f.episode == episode.id
    ]
    remarks = [Remark(f.severity, f.code, f.message) for f in findings if not f.frames or f.episode != episode.id]
    return Timeline(
        id=episode.id,
        robot=robot.name if robot else "",
        times=times,
        period=period,
        columns=tuple(columns),
        cameras=tuple(cameras),
        spans=tuple(spans),
        remarks=tuple(remarks),
        success=episode.success,
        notes=tuple(notes),
        instructions=episode.instructions,
    )


def _times(episode: Episode) -> tuple[Array, list[str]]:
    """Seconds since the first frame. Where the clock cannot order the frames, their number stands for it."""
    stamps = np.asarray(episode.timestamps, np.float64)
    notes = []
    if not episode.clock.has_rate:
        notes.append("no rate was recorded: one second stands for one frame; --fps HZ says the rate")
    if np.isfinite(stamps).all() and (np.diff(stamps) > 0).all():
        return stamps - (stamps[0] if len(stamps) else 0.0), notes
    notes.append(f"the recorded clock does not order the frames: they are drawn at {episode.fps:g} Hz")
    return np.arange(len(stamps)) / episode.fps, notes


def recorded_names(names: Sequence[str], known: Sequence[RobotColumns]) -> tuple[str, ...]:
    """Columns under the robot's names where the recording has none of its own and the number of columns fits."""
    if are_placeholders(tuple(names)):
        for columns in known:
            if len(columns) == len(names):
                return columns.names
    return tuple(names)


def _columns(episode: Episode, times: Array, robot: Embodiment | None) -> Iterator[Column]:
    """Action columns with the states of the same name, then the states that nothing commands."""
    targets, states = episode.joint_names, episode.state_names
    if robot is not None:
        targets = recorded_names(targets, (robot.command_columns, robot.action_columns))
        states = recorded_names(states, (robot.state_columns, robot.command_columns))
    about = _about(robot)
    groups = {j.name: j.group for j in robot.joints} if robot else {}
    names = tuple(dict.fromkeys([*targets, *(n for n in states if n not in targets)]))
    parts = {c: part for (part, _), columns in limbs(names, groups).columns.items() for c in columns}
    place = {n: i for i, n in enumerate(targets)}
    where = {n: i for i, n in enumerate(states)}
    for number, name in enumerate(names):
        unit, limits = about.get(plain_name(name), ("", None))
        yield Column(
            name,
            parts.get(number, OTHER),
            unit,
            Curve(times, episode.states[:, where[name]]) if name in where else None,
            Curve(times, episode.actions[:, place[name]]) if name in place else None,
            limits,
        )


def _about(robot: Embodiment | None) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Plain name -> unit and limits; a channel without limits has infinite ones, which are not drawn."""
    found: dict[str, tuple[str, tuple[float, float] | None]] = {}
    for columns in (robot.state_columns, robot.command_columns) if robot else ():
        for name, unit, low, high in zip(columns.names, columns.units, columns.lower, columns.upper, strict=True):
            finite = bool(np.isfinite([low, high]).all())
            found[plain_name(name)] = (unit, (float(low), float(high)) if finite else None)
    return found


def _streams(episode: Episode, times: Array, notes: list[str]) -> Iterator[Column]:
    """Narrow numeric streams, each on its own clock; it is said what is too wide to be a curve."""
    count, left = 0, []
    for name, stream in episode.streams.items():
        values = np.asarray(stream.values)
        flat: NDArray[np.float64] | None = None
        if values.dtype.kind in "biuf" and len(values):
            flat = values.reshape(len(values), -1).astype(np.float64)
        if flat is None or flat.shape[1] > STREAM_COLUMNS or count + flat.shape[1] > MOST_STREAM_COLUMNS:
            left.append(name)
            continue
        clock = times if stream.clock is None else np.asarray(stream.clock.stamps) - episode.timestamps[0]
        count += flat.shape[1]
        for k in range(flat.shape[1]):
            label = name if flat.shape[1] == 1 else f"{name}/{k}"
            yield Column(label, STREAMS, "", Curve(clock, flat[:, k]), None, None)
    if left:
        notes.append(f"streams that are not drawn as curves: {', '.join(sorted(left))}")


def _spans(episode: Episode, times: Array, period: float, segments: Sequence[Segment]) -> list[Span]:
    marks = episode.marks
    said: list[tuple[SpanKind, int, int, str, str]] = [
        *(("text", t.start, t.stop, t.alternatives[0], " | ".join(t.alternatives)) for t in episode.texts),
        *(("segment", s.start, s.stop, s.kind, f"{s.text} ({s.source})") for s in segments),
        *(("mark", m.start, m.stop, m.kind, m.text) for m in marks.spans),
        *(("source", s.start, s.stop, s.source, f"commanded by {s.source}") for s in marks.sources),
    ]
    return [span_at(times, period, kind, a, b, label, text) for kind, a, b, label, text in said]
