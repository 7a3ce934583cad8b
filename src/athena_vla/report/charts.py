"""Charts that fit any width, as data for the templates: bars in percent of their track, lines in percent of a plot.

Knows numbers and labels, nothing of what they mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SERIES = ("var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """One row: a value with optional bounds, all in the unit of the chart."""

    name: str
    value: float
    label: str  # shown at the right
    low: float | None = None
    high: float | None = None
    detail: str = ""  # small, under the name
    aside: str = ""  # small, after the label
    kind: str = ""  # accent | warn | predicted
    group: str = ""  # a heading is put where it changes


@dataclass(frozen=True)
class Heat:
    """A table cell with a tint of strength 0..1."""

    label: str
    strength: float


@dataclass(frozen=True)
class Tick:
    """A horizontal rule of a plot."""

    label: str
    height: float  # [% of the plot]


@dataclass(frozen=True)
class Curve:
    """One line of a plot; `points` as SVG wants them, in percent of the plot."""

    name: str
    colour: str
    points: str
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A line chart."""

    x_label: str
    y_label: str
    ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    first: str
    last: str

    @property
    def named(self) -> list[Curve]:
        return [c for c in self.curves if not c.faint]


def extent(rows: Sequence[Bar], full: float | None = None) -> float:
    """The value of a full track."""
    return full or max((max(r.value, r.high or 0.0) for r in rows), default=1.0) or 1.0


def share(value: float, full: float) -> str:
    """Of a track [%]."""
    return f"{min(max(100 * value / full, 0.0), 100.0):.2f}"


def width(bounds: tuple[float, float], full: float) -> str:
    """Of an interval on a track [%], at least wide enough to be seen."""
    return f"{max(float(share(bounds[1], full)) - float(share(bounds[0], full)), 0.3):.2f}"


def series(number: int) -> str:
    return SERIES[number % len(SERIES)]


def line_chart(
    named: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    colours: Mapping[str, str],
    log: bool = False,
    faint: Points = (),
) -> Chart | None:
    """Points (x, y) per name; `faint` is the raw data behind the first curve. None where no value is finite."""
    points = [(x, y) for s in (*named.values(), faint) for x, y in s if math.isfinite(y) and (y > 0 or not log)]
    if not points:
        return None
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    ticks = _log_ticks(low, high) if log else _ticks(min(low, 0.0), high)
    low, high = min(ticks[0], low), max(ticks[-1], high)

    def height(y: float) -> float:
        if log:
            return 100 * (math.log(y) - math.log(low)) / ((math.log(high) - math.log(low)) or 1)
        return 100 * (y - low) / ((high - low) or 1)

    def drawn(values: Points) -> str:
        across = 100 / ((right - left) or 1)
        kept = ((x, y) for x, y in values if math.isfinite(y) and (y > 0 or not log))
        return " ".join(f"{(x - left) * across:.2f},{100 - height(y):.2f}" for x, y in kept)

    curves = [Curve("", colours[next(iter(named))], drawn(faint), faint=True)] if faint else []
    curves += [Curve(name, colours[name], drawn(values)) for name, values in named.items()]
    rules = tuple(Tick(_short(t), height(t)) for t in ticks)
    return Chart(x_label, y_label, rules, tuple(curves), _short(left), _short(right))


def smooth(values: Points, window: int) -> list[tuple[float, float]]:
    """Running mean over `window` points, shorter at the start."""
    result = []
    for i, (x, _) in enumerate(values):
        part = [y for _, y in values[max(0, i - window + 1) : i + 1]]
        result.append((x, sum(part) / len(part)))
    return result


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers from `low` to at least `high`."""
    reach = (high - low) or abs(high) or 1.0
    raw = reach / 4
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers 1, 2, 5 x 10^n around the range, thinned to at most seven."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = [t for t in every if low * 0.999 <= t <= high * 1.001]
    below = [t for t in every if t < low * 0.999][-1:]
    above = [t for t in every if t > high * 1.001][:1]
    ticks = below + inside + above
    return ticks if len(ticks) <= 7 else [10.0**e for e in range(first, last + 1)]


def _short(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}"
