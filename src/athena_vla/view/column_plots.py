"""Columns of a timeline as places of a drawing: states, targets, limits and chunks, each plot on its own scale.

A limit that lies outside the curves is drawn all the same, beyond the edge; `whole` is the transformation that brings
it into sight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.view.timeline import Array, Column, Curve, Timeline

WIDTH, HEIGHT = 520, 90  # [px]
LEAST_SPAN = 0.1  # [rad] of a plot: a joint that trembles must not look as if it worked
STILL = 1e-3  # a column that moves by less is folded away
MARGIN = 0.08  # of the span, above and below
BUCKETS = WIDTH  # a curve of more points keeps the least and the most of each, so that no spike is lost


@dataclass(frozen=True)
class Line:
    """One stroke of a plot."""

    kind: str  # state | target | predicted
    points: str


@dataclass(frozen=True)
class ColumnPlot:
    """One column; places are those of the drawing, in px."""

    name: str
    unit: str
    low: float  # least and most value of state and target
    high: float
    is_folded: bool  # hardly moves, or is measured only, such as a velocity
    limits: tuple[float, float] | None
    limit_places: tuple[str, ...]
    is_beyond: bool  # values lie beyond a limit
    lines: tuple[Line, ...]
    whole: str  # SVG transform under which both limits are seen


@dataclass(frozen=True)
class PlotGroup:
    """Plots of one part of the body."""

    name: str
    plots: tuple[ColumnPlot, ...]


def plot_groups(timeline: Timeline) -> list[PlotGroup]:
    """Plots of all columns, those of one group together."""
    groups = dict.fromkeys(c.group for c in timeline.columns)
    return [PlotGroup(g, tuple(_plots(g, timeline))) for g in groups]


def _plots(group: str, timeline: Timeline) -> Iterator[ColumnPlot]:
    columns = [c for c in timeline.columns if c.group == group]
    is_commanded = any(c.target is not None for c in columns)
    for column in columns:
        yield _plot(column, timeline, is_commanded)


def scale_of(column: Column, timeline: Timeline) -> tuple[float, float]:
    """Bottom and top of a plot: curves and chunks with a margin, and limits that the curves cross."""
    low, high = _range(column)
    seen = _finite([np.array([low, high]), *(c.values for c in _chunks(column, timeline)), _crossed(column)])
    return _view(float(seen.min()), float(seen.max()))


def _range(column: Column) -> tuple[float, float]:
    """Least and most value of state and target; 0 where there is no number."""
    values = _finite([c.values for c in (column.state, column.target) if c is not None])
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)


def _crossed(column: Column) -> Array:
    """Limits beyond which values lie."""
    if column.limits is None:
        return np.zeros(0)
    (low, high), (lower, upper) = _range(column), column.limits
    return np.array([b for b, is_out in ((lower, low < lower), (upper, high > upper)) if is_out], np.float64)


def _plot(column: Column, timeline: Timeline, is_commanded: bool) -> ColumnPlot:
    chunks = list(_chunks(column, timeline))
    low, high = _range(column)
    bottom, top = scale_of(column, timeline)
    limits = column.limits

    def y(value: float) -> float:
        return HEIGHT - (value - bottom) / (top - bottom) * HEIGHT

    drawn = [("state", column.state), ("target", column.target), *(("predicted", c) for c in chunks)]
    lines = [
        Line(kind, points)
        for kind, curve in drawn
        if curve is not None
        for points in _strokes(curve, timeline, bottom, top)
    ]
    whole = ""
    if limits is not None:
        least, most = _view(min(limits[0], bottom), max(limits[1], top))
        scale = (top - bottom) / (most - least)
        whole = f"matrix(1 0 0 {scale:.6f} 0 {HEIGHT * (most - top) / (most - least):.3f})"
    return ColumnPlot(
        name=column.name,
        unit=column.unit,
        low=low,
        high=high,
        is_folded=high - low < STILL or (column.target is None and is_commanded),
        limits=limits,
        limit_places=tuple(f"{y(b):.1f}" for b in limits or ()),
        is_beyond=bool(len(_crossed(column))),
        lines=tuple(lines),
        whole=whole,
    )


def _chunks(column: Column, timeline: Timeline) -> Iterator[Curve]:
    for chunk in timeline.predicted:
        if column.name in chunk.names:
            yield Curve(chunk.times, chunk.positions[:, chunk.names.index(column.name)])


def _view(low: float, high: float) -> tuple[float, float]:
    span = max(high - low, LEAST_SPAN)
    middle = (low + high) / 2
    return middle - span * (0.5 + MARGIN), middle + span * (0.5 + MARGIN)


def _finite(parts: Sequence[NDArray[np.floating]]) -> Array:
    values = np.concatenate([np.asarray(p, np.float64) for p in parts]) if parts else np.zeros(0)
    return values[np.isfinite(values)]


def _strokes(curve: Curve, timeline: Timeline, bottom: float, top: float) -> Iterator[str]:
    """Points of the curve, one stroke for each stretch of numbers; what is no number is a gap."""
    x = np.asarray(curve.times, np.float64) / max(timeline.duration, 1e-9) * WIDTH
    y = HEIGHT - (np.asarray(curve.values, np.float64) - bottom) / (top - bottom) * HEIGHT
    keep = _kept(y)
    x, y = x[keep], y[keep]
    good = np.isfinite(x) & np.isfinite(y)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[start:stop], y[start:stop], strict=True))


def _kept(values: Array) -> NDArray[np.intp]:
    """Which points are drawn: all, or the least and the most of each bucket, and every gap's edge."""
    if len(values) <= 2 * BUCKETS:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    for bucket in np.array_split(np.arange(len(values)), BUCKETS):
        inside = values[bucket]
        good = bucket[np.isfinite(inside)]
        if len(good) < len(bucket):
            chosen.add(int(bucket[~np.isfinite(inside)][0]))
        if len(good):
            chosen |= {int(good[values[good].argmin()]), int(good[values[good].argmax()])}
    return np.array(sorted(chosen), np.intp)
