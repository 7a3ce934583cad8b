"""The check as one self-contained HTML page: findings linked to frames, contact sheets, joint plots with limits.

Everything is inside the file: no script, no font, no picture is fetched from anywhere.
"""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla.annotate.segments import episode_segments
from athena_vla.check.findings import Finding
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode, Frames, Recording, Segment

EPISODES = 12  # shown with pictures and plots; those with findings first
PICTURES = 12  # per contact sheet
THUMB = 128  # [px] width
PLOT = (520, 90)  # [px]
LEAST_SPAN = 0.1  # [rad] of a plot: a joint that trembles by a milliradian must not look as if it worked
TARGET_COLOUR, STATE_COLOUR, ALARM = "#2b6cb0", "#d53f8c", "#e53e3e"
KINDS = {
    "walk": "#90cdf4",
    "balance": "#d6bcfa",
    "manipulate": "#fbd38d",
    "prepare": "#9ae6b4",
    "coordinate": "#feb2b2",
    "idle": "#cbd5e0",
    "task": "#faf089",
}

STYLE = """
:root{--ink:#1a202c;--paper:#fff;--soft:#edf2f7;--line:#cbd5e0}
@media(prefers-color-scheme:dark){:root{--ink:#e2e8f0;--paper:#171923;--soft:#2d3748;--line:#4a5568}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1100px;margin:0 auto}
body{padding:1rem}
a{color:#3182ce}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:left;vertical-align:top;white-space:nowrap}
td:last-child{white-space:normal;overflow-wrap:anywhere;min-width:11rem;width:100%}
.error{border-left:4px solid #e53e3e}.warning{border-left:4px solid #dd6b20}.info{border-left:4px solid #3182ce}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:6px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:4px 14px}
.plots figcaption b{font-weight:600}.key{display:inline-block;width:1.4em;height:.2em;vertical-align:middle}
figure{margin:0}img{width:100%;display:block}figcaption{font-size:12px}
.bad img{outline:3px solid #e53e3e;outline-offset:-3px}
svg{width:100%;height:auto;display:block;background:var(--soft)}
details{margin:.3rem 0}small{opacity:.75}h2{margin-top:2rem}.wide{overflow-x:auto}
"""


def write_page(path: Path, report: Any, recording: Recording, robot: Embodiment | None) -> None:
    """Write the page for a finished report, whole or not at all."""
    parts = [_head(report), _table(report.findings)]
    wanted = [f.episode for f in report.findings if f.episode is not None]
    order = list(dict.fromkeys([*wanted, *recording.ids()]))[:EPISODES]
    for episode_id in order:
        mine = [f for f in report.findings if f.episode in (episode_id, None)]
        try:
            parts.append(_episode(recording.read(episode_id), mine, robot))
        except AthenaError as error:
            parts.append(
                f'<h2 id="{_anchor(episode_id)}">{_title(episode_id)}</h2><p class="error">{_e(str(error))}</p>'
            )
    left = len(recording.ids()) - len(order)
    if left > 0:
        parts.append(f"<p>{left} more episodes are not shown; all were checked.</p>")
    title = f"Check of {_e(report.path.name)}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    temporary.rename(path)


def _head(report: Any) -> str:
    info = report.info
    counts = {s: sum(f.severity == s for f in report.findings) for s in ("error", "warning", "info")}
    lines = [f"<h1>Check of {_e(report.path.name)}</h1>"]
    lines.append(
        f"<p><b>{counted(counts['error'], 'error')}, {counted(counts['warning'], 'warning')}, "
        f"{counted(counts['info'], 'note')}</b> in {counted(report.episodes, 'episode')}, "
        f"{counted(report.frames, 'frame')}.</p>"
    )
    if info is not None:
        cameras = ", ".join(f"{n} {w}x{h}" for n, (h, w) in info.cameras.items()) or "none"
        rate = f"{info.fps:g} Hz" if info.fps else "not recorded"
        lines.append(
            f"<p>{_e(info.format)} {_e(info.version)}; robot {_e(info.robot or 'not named')}; "
            f"{len(info.joint_names)} action columns; cameras: {_e(cameras)}; rate: {rate}.</p>"
        )
    return "".join(lines)


def _table(findings: Sequence[Finding]) -> str:
    rows = []
    for f in sorted(findings, key=lambda f: ("error", "warning", "info").index(f.severity)):
        where = f'<a href="#{_anchor(f.episode)}">{_e(f.episode)}</a>' if f.episode else "all"
        frames = ""
        if f.frames:
            target = f"{_anchor(f.episode)}-{f.frames[0]}" if f.episode else ""
            first, last = f.frames[0], f.frames[1] - 1
            text = f"frame {first}" if first == last else f"frames {first}–{last}"
            frames = f'<a href="#{target}">{text}</a>' if target else text
        rows.append(
            f'<tr class="{f.severity}"><td>{f.severity}<br><small>{_e(f.code)}</small></td><td>{where}<br>{frames}</td>'
            f"<td>{_e(f.message)}<br><small>{_e(f.why)} <b>{_e(f.fix)}</b></small></td></tr>"
        )
    body = "".join(rows) or "<tr><td>Nothing found.</td></tr>"
    return f'<div class="wide"><table><tr><th></th><th>Episode</th><th>What was seen</th></tr>{body}</table></div>'


def _episode(episode: Episode, findings: Sequence[Finding], robot: Embodiment | None) -> str:
    spans = [f.frames for f in findings if f.frames and f.episode == episode.id]
    task = episode.instructions[0] if episode.instructions else "no instruction"
    parts = [f'<h2 id="{_anchor(episode.id)}">{_title(episode.id)}</h2><p>{_e(task)} — {len(episode)} frames</p>']
    # Every place a finding links to exists, whether or not a picture was drawn there.
    parts += [f'<a id="{_anchor(episode.id)}-{start}"></a>' for start in sorted({a for a, _ in spans})]
    for name, stream in episode.cameras.items():
        parts.append(f"<h3>Camera {_e(name)}</h3>{_sheet(stream, len(episode), spans)}")
    segments = episode_segments(episode, robot)
    parts.append(_plots(episode, robot, segments, spans))
    return "".join(parts)


def _sheet(stream: Frames, length: int, spans: Sequence[tuple[int, int]]) -> str:
    length = min(len(stream), length)
    if length == 0:
        return "<p>No pictures.</p>"
    even = np.linspace(0, length - 1, min(PICTURES, length)).round().astype(int).tolist()
    shown = sorted({*even, *(a for a, _ in spans[:8] if a < length)})
    figures = []
    for index in shown:
        is_bad = any(a <= index < b for a, b in spans)
        try:
            picture = f'<img alt="frame {index}" src="{_thumb(stream[index])}">'
        except AthenaError as error:
            picture = f"<p>{_e(str(error)[:80])}</p>"
        figures.append(f'<figure class="{"bad" if is_bad else ""}">{picture}<figcaption>{index}</figcaption></figure>')
    return f'<div class="sheet">{"".join(figures)}</div>'


def _thumb(image: NDArray[np.uint8]) -> str:
    picture = PillowImage.fromarray(image)
    picture.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plots(
    episode: Episode, robot: Embodiment | None, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
) -> str:
    """One plot per moving joint: target and state, limits, segments behind, findings below."""
    limits: dict[str, tuple[float, float]] = {}
    names = episode.joint_names
    if robot is not None:
        ours = robot.command_columns
        bounds = zip(ours.lower.tolist(), ours.upper.tolist(), strict=True)
        limits = dict(zip(map(plain_name, ours.names), bounds, strict=True))
        if len(names) == len(ours) and plain_name(names[0]) not in limits:
            names = ours.names
    place = {n: i for i, n in enumerate(episode.state_names)}
    plots, still = [], []
    for column, name in enumerate(names):
        actions = np.asarray(episode.actions[:, column], np.float64)
        if not np.isfinite(actions).any() or np.nanmax(actions) - np.nanmin(actions) < 1e-3:
            still.append(name)
            continue
        own = place.get(episode.joint_names[column])
        states = np.asarray(episode.states[:, own], np.float64) if own is not None else None
        plots.append(_plot(name, actions, states, limits.get(plain_name(name)), segments, spans))
    legend = " ".join(f'<span style="background:{KINDS.get(k, "#eee")};color:#000">&nbsp;{k}&nbsp;</span>'
                      for k in dict.fromkeys(s.kind for s in segments))  # fmt: skip
    note = f"<p><small>Hardly moving: {_e(', '.join(still))}</small></p>" if still else ""
    lines = "".join(
        f'<span class="key" style="background:{colour}"></span> {what} '
        for what, colour in (("target", TARGET_COLOUR), ("state", STATE_COLOUR), ("limit, finding", ALARM))
    )
    plotted = "".join(plots)
    head = f"<summary>Joints: {lines} {legend}</summary>"
    return f'<details open>{head}<div class="plots">{plotted}</div>{note}</details>'


def _plot(
    name: str,
    actions: NDArray[np.float64],
    states: NDArray[np.float64] | None,
    limit: tuple[float, float] | None,
    segments: Sequence[Segment],
    spans: Sequence[tuple[int, int]],
) -> str:
    width, height = PLOT
    values = np.concatenate([actions, states]) if states is not None else actions
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    label = f"<b>{_e(name)}</b> {low:.2f} … {high:.2f}"
    pad = max(0.08 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    low, high = low - pad, high + pad
    count = max(len(actions) - 1, 1)

    def x(frame: float) -> float:
        return frame / count * width

    def y(value: float) -> float:
        return height - (value - low) / (high - low) * height

    parts = [
        f'<rect x="{x(s.start):.1f}" y="0" width="{max(x(s.stop) - x(s.start), 1):.1f}" height="{height}" '
        f'fill="{KINDS.get(s.kind, "#eee")}" opacity=".35"><title>{_e(s.kind)}: {_e(s.text)}</title></rect>'
        for s in segments
    ]
    parts += [
        f'<rect x="{x(a):.1f}" y="{height - 5}" width="{max(x(b) - x(a), 2):.1f}" height="5" fill="#e53e3e"/>'
        for a, b in spans
    ]
    for bound in limit or ():
        if low < bound < high:
            parts.append(
                f'<line x1="0" x2="{width}" y1="{y(bound):.1f}" y2="{y(bound):.1f}" '
                'stroke="#e53e3e" stroke-dasharray="4"/>'
            )
    for series, colour in ((states, STATE_COLOUR), (actions, TARGET_COLOUR)):
        if series is None:
            continue
        step = max(1, len(series) // width)
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(series) if t % step == 0 and np.isfinite(v))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_e(name)}">'
    return f"<figure>{head}{''.join(parts)}</svg><figcaption>{label}</figcaption></figure>"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _title(episode_id: str) -> str:
    return _e(f"Episode {episode_id}" if episode_id.isdigit() else episode_id)


def _anchor(episode_id: str | None) -> str:
    return "e-" + "".join(c if c.isalnum() else "-" for c in episode_id or "all")


def _e(text: object) -> str:
    return html.escape(str(text))
