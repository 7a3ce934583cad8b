"""Small pieces of HTML: text, tables, tiles, cards. Everything that came from data is escaped here."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def text(value: object) -> str:
    """Escaped text."""
    return html.escape(str(value), quote=True)


def card(title: str, *parts: str, note: str = "") -> str:
    heading = f"<h3>{text(title)}</h3>" if title else ""
    footer = f'<p class="note" style="margin:.9em 0 0">{note}</p>' if note else ""
    return f'<div class="card">{heading}{"".join(parts)}{footer}</div>'


def section(anchor: str, eyebrow: str, title: str, introduction: str, *parts: str) -> str:
    lead = f'<p class="lead">{introduction}</p>' if introduction else ""
    return (
        f'<section id="{anchor}"><p class="eyebrow">{text(eyebrow)}</p><h2>{text(title)}</h2>{lead}'
        f"{''.join(parts)}</section>"
    )


def columns(*cards: str) -> str:
    return f'<div class="columns">{"".join(cards)}</div>'


def tile(number: str, caption: str, *, unit: str = "", kind: str = "") -> str:
    small = f"<small> {text(unit)}</small>" if unit else ""
    return f'<div class="tile {kind}"><b>{text(number)}{small}</b><span>{text(caption)}</span></div>'


def tag(label: str, kind: str = "") -> str:
    return f'<span class="tag {kind}">{text(label)}</span>'


@dataclass(frozen=True)
class Heat:
    """A table cell with a tint of strength 0..1."""

    label: str
    strength: float


def table(head: Sequence[str], rows: Iterable[Sequence[str | Heat]]) -> str:
    """Cells are escaped text or `Heat`; the first column is left-aligned."""
    heads = "".join(f"<th>{text(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: str | Heat) -> str:
    if isinstance(cell, str):
        return f"<td>{text(cell)}</td>"
    strength = min(max(cell.strength, 0.0), 1.0)
    return f'<td class="heat"><i style="--v:{strength:.2f}"></i><span>{text(cell.label)}</span></td>'


def facts(rows: Iterable[tuple[str, object]], *, mono: bool = False) -> str:
    """Term and value pairs; empty values are left out."""
    kind = ' class="mono"' if mono else ""
    items = "".join(f"<dt>{text(k)}</dt><dd{kind}>{text(v)}</dd>" for k, v in rows if v not in ("", None))
    return f'<dl class="facts">{items}</dl>'


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f}%"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent where that reads better."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    shown = f"{value:.{digits}g}"
    return shown if "e" not in shown else f"{value:.1e}"
