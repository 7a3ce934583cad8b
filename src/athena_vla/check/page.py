"""The check as one self-contained HTML page: findings linked to frames, contact sheets, joint plots with limits.

Everything is inside the file: no script, no font, no image is fetched from anywhere. What a recording says is put
into the page by a template that escapes it, whatever it is: names, kinds, texts and messages alike.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla import files
from athena_vla.annotate.segments import episode_segments
from athena_vla.check.findings import Finding
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError
from athena_vla.recordings.column_names import plain_name
from athena_vla.recordings.episode import Episode, Frames, Recording, Segment

EPISODES = 12  # shown with images and plots; those with findings first
PICTURES = 12  # per contact sheet
THUMB = 128  # [px] width
PLOT = (520, 90)  # [px]
LEAST_SPAN = 0.1  # [rad] of a plot: a joint that trembles by a milliradian must not look as if it worked
TARGET_COLOUR, STATE_COLOUR, ALARM = "#2b6cb0", "#d53f8c", "#e53e3e"
LEGEND = ((TARGET_COLOUR, "target"), (STATE_COLOUR, "state"), (ALARM, "limit, finding"))
SEVERITIES = ("error", "warning", "info")
KINDS = {
    "walk": "#90cdf4",
    "balance": "#d6bcfa",
    "manipulate": "#fbd38d",
    "prepare": "#9ae6b4",
    "coordinate": "#feb2b2",
    "idle": "#cbd5e0",
    "task": "#faf089",
}


@dataclass(frozen=True)
class Picture:
    """One frame of a contact sheet, or why it cannot be shown."""

    index: int
    bad: bool
    source: str = ""
    problem: str = ""


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
    bands: list[Band]
    marks: list[tuple[str, str]]  # findings: place, width
    limits: list[str]
    lines: list[tuple[str, str]]  # colour, points


@dataclass(frozen=True)
class Shown:
    """One episode of the page, or why it cannot be read."""

    id: str
    problem: str = ""
    task: str = ""
    length: int = 0
    starts: list[int] = field(default_factory=list)  # places that findings link to, drawn or not
    cameras: dict[str, list[Picture]] = field(default_factory=dict)
    plots: list[Plot] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)


def write_page(path: Path, report: Any, recording: Recording, robot: Embodiment | None) -> None:
    """Write the page for a finished report, whole or not at all."""
    wanted = [f.episode for f in report.findings if f.episode is not None]
    order = list(dict.fromkeys([*wanted, *recording.ids()]))[:EPISODES]
    page = (
        environment()
        .get_template("page.html")
        .render(
            name=report.path.name,
            style=Markup((resources.files("athena_vla.check") / "page.css").read_text()),
            report=report,
            info=report.info,
            counts={s: sum(f.severity == s for f in report.findings) for s in SEVERITIES},
            findings=sorted(report.findings, key=lambda f: SEVERITIES.index(f.severity)),
            episodes=[_shown(episode_id, report.findings, recording, robot) for episode_id in order],
            left=len(recording.ids()) - len(order),
            legend=LEGEND,
            alarm=ALARM,
            width=PLOT[0],
            height=PLOT[1],
        )
    )
    files.write_text(path, page)


def environment() -> Environment:
    """The template with its filters. Whatever is not `Markup` is escaped; an unknown name is an error."""
    templates = Environment(
        loader=PackageLoader("athena_vla.check"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"anchor": _anchor, "colour": _colour, "counted": counted, "stretch": _stretch}
    return templates


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(episode_id: str, findings: Sequence[Finding], recording: Recording, robot: Embodiment | None) -> Shown:
    try:
        return _episode(recording.read(episode_id), [f for f in findings if f.episode in (episode_id, None)], robot)
    except AthenaError as error:
        return Shown(episode_id, problem=str(error))


def _episode(episode: Episode, findings: Sequence[Finding], robot: Embodiment | None) -> Shown:
    spans = [f.frames for f in findings if f.frames and f.episode == episode.id]
    segments = episode_segments(episode, robot)
    plots, still = _plots(episode, robot, segments, spans)
    return Shown(
        episode.id,
        task=episode.instructions[0] if episode.instructions else "no instruction",
        length=len(episode),
        starts=sorted({a for a, _ in spans}),
        cameras={name: _sheet(stream, len(episode), spans) for name, stream in episode.cameras.items()},
        plots=plots,
        still=still,
        kinds=list(dict.fromkeys(s.kind for s in segments)),
    )


def _sheet(stream: Frames, length: int, spans: Sequence[tuple[int, int]]) -> list[Picture]:
    length = min(len(stream), length)
    if length == 0:
        return []
    even = np.linspace(0, length - 1, min(PICTURES, length)).round().astype(int).tolist()
    pictures = []
    for index in sorted({*even, *(a for a, _ in spans[:8] if a < length)}):
        bad = any(a <= index < b for a, b in spans)
        try:
            pictures.append(Picture(index, bad, source=_thumb(stream[index])))
        except AthenaError as error:
            pictures.append(Picture(index, bad, problem=str(error)[:80]))
    return pictures


def _thumb(image: NDArray[np.uint8]) -> str:
    picture = PillowImage.fromarray(image)
    picture.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plots(
    episode: Episode, robot: Embodiment | None, segments: Sequence[Segment], spans: Sequence[tuple[int, int]]
) -> tuple[list[Plot], list[str]]:
    """One plot per moving joint: target and state, limits, segments behind, findings below; and who hardly moves."""
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
    return plots, still


def _plot(
    name: str,
    actions: NDArray[np.float64],
    states: NDArray[np.float64] | None,
    limit: tuple[float, float] | None,
    segments: Sequence[Segment],
    spans: Sequence[tuple[int, int]],
) -> Plot:
    width, height = PLOT
    values = np.concatenate([actions, states]) if states is not None else actions
    values = values[np.isfinite(values)]
    least, most = float(values.min()), float(values.max())
    pad = max(0.08 * (most - least), (LEAST_SPAN - (most - least)) / 2)
    low, high = least - pad, most + pad
    count = max(len(actions) - 1, 1)

    def x(frame: float) -> float:
        return frame / count * width

    def y(value: float) -> float:
        return height - (value - low) / (high - low) * height

    def points(series: NDArray[np.float64]) -> str:
        step = max(1, len(series) // width)
        return " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in enumerate(series) if t % step == 0 and np.isfinite(v))

    drawn = ((states, STATE_COLOUR), (actions, TARGET_COLOUR))
    return Plot(
        name,
        least,
        most,
        [Band(f"{x(s.start):.1f}", f"{max(x(s.stop) - x(s.start), 1):.1f}", s.kind, s.text) for s in segments],
        [(f"{x(a):.1f}", f"{max(x(b) - x(a), 2):.1f}") for a, b in spans],
        [f"{y(bound):.1f}" for bound in limit or () if low < bound < high],
        [(colour, points(series)) for series, colour in drawn if series is not None],
    )


def _stretch(frames: tuple[int, int]) -> str:
    first, last = frames[0], frames[1] - 1
    return f"frame {first}" if first == last else f"frames {first}–{last}"


def _colour(kind: str) -> str:
    return KINDS.get(kind, "#eee")


def _anchor(episode_id: str) -> str:
    return "e-" + "".join(c if c.isalnum() else "-" for c in episode_id)
