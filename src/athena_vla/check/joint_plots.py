"""Joints over time, as places of a drawing: one scale for each kind of joint, crossed limits, a time axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode, Segment
from athena_vla.recordings.limbs import limbs

WIDTH, HEIGHT, AXIS = 520, 90, 16  # [px]; below the curves the seconds stand
LEAST_SPAN = 0.1  # [rad] of a plot: a joint that trembles by a milliradian must not look as if it worked
STILL = 1e-3  # a target that moves by less has no plot
TICKS = 6  # on the time axis, at most
TARGET_COLOUR, STATE_COLOUR = "#2b6cb0", "#d53f8c"
OTHER = "other"

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A segment behind a plot."""

    x: str  # [px]
    width: str  # [px]
    kind: str
    text: str


@dataclass(frozen=True)
class Plot:
    """One joint over an episode; places are those of the drawing, in px."""

    name: str
    low: float
    high: float
    limit: tuple[float, float] | None
    beyond: bool  # values lie beyond a limit
    bands: list[Band]
    marks: list[tuple[str, str]]  # findings: place, width
    limits: list[str]
    lines: list[tuple[str, str]]  # colour, points
    ticks: list[tuple[str, str]]  # place, seconds


@dataclass(frozen=True)
class Kind:
    """Plots that have one scale, such as all joints of arms."""

    name: str
    span: float  # from the bottom to the top of every plot
    unit: str
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class _Curve:
    """What is to be drawn of one column."""

    name: str
    kind: str
    unit: str
    actions: Series
    states: Series | None
    limit: tuple[float, float] | None

    def bounds(self) -> tuple[float, float]:
        """Least and most value, of targets and states."""
        values = self.actions if self.states is None else np.concatenate([self.actions, self.states])
        values = values[np.isfinite(values)]
        return float(values.min()), float(values.max())

    def view(self) -> tuple[float, float]:
        """The same with limits that are crossed, so that these are seen whatever the values are."""
        low, high = self.bounds()
        if self.limit is None:
            return low, high
        crossed = [b for b, out in zip(self.limit, (low < self.limit[0], high > self.limit[1]), strict=True) if out]
        return min([low, *crossed]), max([high, *crossed])


def plots_of(
    episode: Episode, robot: Embodiment | None, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
) -> tuple[list[Kind], list[str]]:
    """Plots of the joints that move, by kind: target and state, limits, segments, findings; and who hardly moves."""
    curves, still = _curves(episode, robot)
    seconds = np.asarray(episode.timestamps, np.float64)
    kinds: list[Kind] = []
    for name, unit in dict.fromkeys((c.kind, c.unit) for c in curves):
        members = [c for c in curves if (c.kind, c.unit) == (name, unit)]
        span = max(LEAST_SPAN, 1.16 * max(high - low for low, high in (c.view() for c in members)))
        kinds.append(Kind(name, span, unit, [_plot(c, span, seconds, segments, spans) for c in members]))
    return kinds, still


def _curves(episode: Episode, robot: Embodiment | None) -> tuple[list[_Curve], list[str]]:
    limits: dict[str, tuple[float, float]] = {}
    units: dict[str, str] = {}
    groups: Mapping[str, str] = {}
    names = episode.joint_names
    if robot is not None:
        ours = robot.command_columns
        plain = [plain_name(n) for n in ours.names]
        limits = dict(zip(plain, zip(ours.lower.tolist(), ours.upper.tolist(), strict=True), strict=True))
        units = dict(zip(plain, ours.units, strict=True))
        groups = {j.name: j.group for j in robot.joints}
        if len(names) == len(ours) and plain_name(names[0]) not in limits:
            names = ours.names
    kinds = {c: part for (part, _), columns in limbs(names, groups).columns.items() for c in columns}
    place = {n: i for i, n in enumerate(episode.state_names)}
    curves, still = [], []
    for column, name in enumerate(names):
        actions = np.asarray(episode.actions[:, column], np.float64)
        if not np.isfinite(actions).any() or np.nanmax(actions) - np.nanmin(actions) < STILL:
            still.append(name)
            continue
        own = place.get(episode.joint_names[column])
        states = np.asarray(episode.states[:, own], np.float64) if own is not None else None
        known = plain_name(name)
        kind = kinds.get(column, OTHER)
        curves.append(_Curve(name, kind, units.get(known, ""), actions, states, limits.get(known)))
    return curves, still


def _plot(
    curve: _Curve, span: float, seconds: Series, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
) -> Plot:
    least, most = curve.bounds()
    low = sum(curve.view()) / 2 - span / 2
    count = max(len(curve.actions) - 1, 1)

    def x(frame: float) -> float:
        return frame / count * WIDTH

    def y(value: float) -> float:
        return HEIGHT - (value - low) / span * HEIGHT

    def points(series: Series) -> str:
        step = max(1, len(series) // WIDTH)
        return " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(series) if t % step == 0 and np.isfinite(v))

    limit = curve.limit
    drawn = ((curve.states, STATE_COLOUR), (curve.actions, TARGET_COLOUR))
    return Plot(
        curve.name,
        least,
        most,
        limit,
        limit is not None and (least < limit[0] or most > limit[1]),
        [Band(f"{x(s.start):.1f}", f"{max(x(s.stop) - x(s.start), 1):.1f}", s.kind, s.text) for s in segments],
        [(f"{x(a):.1f}", f"{max(x(b) - x(a), 2):.1f}") for a, b in spans],
        [f"{y(bound):.1f}" for bound in limit or () if low <= bound <= low + span],
        [(colour, points(series)) for series, colour in drawn if series is not None],
        [(f"{x(frame):.1f}", text) for frame, text in _ticks(seconds)],
    )


def _ticks(seconds: Series) -> list[tuple[float, str]]:
    """(frame, seconds) at round times, as far apart as needed."""
    if len(seconds) < 2 or not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        return []
    passed = seconds - seconds[0]
    rough = passed[-1] / TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * s for s in (1, 2, 5, 10) if power * s >= rough)
    times = np.arange(0.0, passed[-1] + 1e-9, step)
    return [
        (float(f), f"{t:g} s") for f, t in zip(np.interp(times, passed, np.arange(len(passed))), times, strict=True)
    ]
