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
from athena_vla.check.joint_plots import AXIS, HEIGHT, STATE_COLOUR, TARGET_COLOUR, WIDTH, Kind, plots_of
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError
from athena_vla.recordings.episode import Episode, Frames, Recording

EPISODES = 12  # shown with images and plots; those with findings first
PICTURES = 12  # per contact sheet
THUMB = 128  # [px] width
ALARM = "#e53e3e"
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
class Shown:
    """One episode of the page, or why it cannot be read."""

    id: str
    problem: str = ""
    task: str = ""
    length: int = 0
    starts: list[int] = field(default_factory=list)  # places that findings link to, drawn or not
    cameras: dict[str, list[Picture]] = field(default_factory=dict)
    plots: list[Kind] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    segment_kinds: list[str] = field(default_factory=list)


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
            width=WIDTH,
            height=HEIGHT,
            axis=AXIS,
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
    plots, still = plots_of(episode, robot, segments, spans)
    return Shown(
        episode.id,
        task=episode.instructions[0] if episode.instructions else "no instruction",
        length=len(episode),
        starts=sorted({a for a, _ in spans}),
        cameras={name: _sheet(stream, len(episode), spans) for name, stream in episode.cameras.items()},
        plots=plots,
        still=still,
        segment_kinds=list(dict.fromkeys(s.kind for s in segments)),
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


def _stretch(frames: tuple[int, int]) -> str:
    first, last = frames[0], frames[1] - 1
    return f"frame {first}" if first == last else f"frames {first}–{last}"


def _colour(kind: str) -> str:
    return KINDS.get(kind, "#eee")


def _anchor(episode_id: str) -> str:
    return "e-" + "".join(c if c.isalnum() else "-" for c in episode_id)
