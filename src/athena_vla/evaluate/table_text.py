"""Cells and columns of a table in a terminal."""

from collections.abc import Sequence

from athena_vla.evaluate.statistics import Interval, Proportion


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns separated by two spaces; the first is left-aligned, the others right."""
    everything = [list(head), *(list(r) for r in rows)]
    widths = [max(len(r[i]) for r in everything) for i in range(len(head))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip()
        for r in everything
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def proportion(p: Proportion) -> str:
    """A share of successes and its interval, in percent."""
    return f"{100 * p.success:.0f}% [{100 * p.low:.0f}, {100 * p.high:.0f}]"


def difference(interval: Interval) -> str:
    """A difference of shares and its interval, in points."""
    return f"{100 * interval.value:+.0f} [{100 * interval.low:+.0f}, {100 * interval.high:+.0f}]"


def p_value(p: float) -> str:
    """Three digits, as papers print it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
