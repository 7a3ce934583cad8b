"""Charts that fit any width: bars in percent of their track, lines stretched without stretching strokes or text.

Knows numbers and labels, nothing of what they mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from athena_vla.report.markup import text

SERIES = ("var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)")


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


def bars(rows: Sequence[Bar], *, full: float | None = None, goal: float | None = None, fine: bool = False) -> str:
    """Horizontal bars with whiskers; `full` is the value of a full track, `goal` a dashed mark."""
    extent = full or max((max(r.value, r.high or 0.0) for r in rows), default=1.0) or 1.0
    parts, group = [], ""
    for r in rows:
        if r.group != group:
            parts.append(f'<div class="group">{text(r.group)}</div>')
            group = r.group
        whisker = ""
        if r.low is not None and r.high is not None:
            left, right = _share(r.low, extent), _share(r.high, extent)
            whisker = f'<div class="whisker" style="left:{left:.2f}%;width:{max(right - left, 0.3):.2f}%"></div>'
        mark = f'<div class="goal" style="left:{_share(goal, extent):.2f}%"></div>' if goal is not None else ""
        detail = f"<small>{text(r.detail)}</small>" if r.detail else ""
        aside = f" <small>{text(r.aside)}</small>" if r.aside else ""
        parts.append(
            f'<div class="name">{text(r.name)}{detail}</div>'
            f'<div class="track"><div class="fill {r.kind}" style="width:{_share(r.value, extent):.2f}%"></div>'
            f'{whisker}{mark}</div><div class="value">{text(r.label)}{aside}</div>'
        )
    return f'<div class="bars{" fine" if fine else ""}">{"".join(parts)}</div>'


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    faint: Sequence[tuple[float, float]] = (),
) -> str:
    """Line chart of (x, y) points per name; `faint` is the raw data behind the first, smoothed curve."""
    points = [(x, y) for s in (*series.values(), faint) for x, y in s if math.isfinite(y) and (y > 0 or not log)]
    if not points:
        return '<p class="note">No finite value was logged.</p>'
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    ticks = _log_ticks(low, high) if log else _ticks(min(low, 0.0), high)
    low, high = min(ticks[0], low), max(ticks[-1], high)

    def place(x: float, y: float) -> str:
        across = (x - left) / ((right - left) or 1) * 100
        scaled = (
            (math.log(y) - math.log(low)) / ((math.log(high) - math.log(low)) or 1)
            if log
            else (y - low) / ((high - low) or 1)
        )
        return f"{across:.2f},{100 - 100 * scaled:.2f}"

    rules, labels = [], []
    for t in ticks:
        height = float(place(left, t).split(",")[1])
        rules.append(f'<line x1="0" x2="100" y1="{height:.2f}" y2="{height:.2f}"/>')
        labels.append(f'<span style="bottom:{100 - height:.2f}%">{_short(t)}</span>')

    def drawn(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(place(x, y) for x, y in values if math.isfinite(y) and (y > 0 or not log))

    curves, legend = [], []
    if faint:
        curves.append(f'<polyline class="thin" style="stroke:{SERIES[0]}" points="{drawn(faint)}"/>')
    for number, (name, values) in enumerate(series.items()):
        colour = SERIES[number % len(SERIES)]
        curves.append(f'<polyline style="stroke:{colour}" points="{drawn(values)}"/>')
        legend.append(f'<li><i style="background:{colour}"></i>{text(name)}</li>')
    svg = f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{"".join(rules + curves)}</svg>'
    keys = f'<ul class="legend">{"".join(legend)}</ul>' if len(series) > 1 else ""
    return (
        f'<div class="plot" role="img" aria-label="{text(y_label)} over {text(x_label)}">'
        f'<div class="y">{"".join(labels)}</div>{svg}'
        f'<div class="x"><span>{_short(left)}</span><span>{text(y_label)} ↑ &nbsp; {text(x_label)} →</span>'
        f"<span>{_short(right)}</span></div></div>{keys}"
    )


def stack(parts: Mapping[str, float], unit: str) -> str:
    """One bar cut into parts, with a legend that carries the numbers."""
    total = sum(parts.values()) or 1.0
    pieces, legend = [], []
    for number, (name, value) in enumerate(parts.items()):
        colour = SERIES[number % len(SERIES)]
        pieces.append(f'<i style="width:{100 * value / total:.2f}%;background:{colour}"></i>')
        legend.append(f'<li><i style="background:{colour}"></i>{text(name)} {value:.2f} {text(unit)}</li>')
    return f'<div class="stack">{"".join(pieces)}</div><ul class="legend">{"".join(legend)}</ul>'


def lanes(rows: Mapping[str, Sequence[tuple[float, float, str, int]]], length: float) -> str:
    """A timeline: per row, pieces (start, stop, label, series number) of a span of `length`."""
    parts = []
    for name, pieces in rows.items():
        drawn = "".join(
            f'<i title="{text(label)}" style="left:{_share(start, length):.2f}%;'
            f"width:{_share(stop - start, length):.2f}%;"
            f'background:{SERIES[number % len(SERIES)]}">{text(label)}</i>'
            for start, stop, label, number in pieces
        )
        parts.append(f'<div>{text(name)}</div><div class="lane">{drawn}</div>')
    return f'<div class="lanes">{"".join(parts)}</div>'


def smooth(values: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Running mean over `window` points, shorter at the start."""
    result = []
    for i, (x, _) in enumerate(values):
        part = [y for _, y in values[max(0, i - window + 1) : i + 1]]
        result.append((x, sum(part) / len(part)))
    return result


def _share(value: float, full: float) -> float:
    return min(max(100 * value / full, 0.0), 100.0)


def _ticks(low: float, high: float) -> list[float]:
    """At most six round numbers from `low` to at least `high`."""
    extent = (high - low) or abs(high) or 1.0
    raw = extent / 4
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
