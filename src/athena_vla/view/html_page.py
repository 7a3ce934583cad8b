"""A timeline as one self-contained HTML page, and an index of pages on which episodes are flagged.

Nothing is fetched: style, script and images are inside, and the page's own policy forbids the network. What a
recording says is put in by a template that escapes it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from athena_vla import files
from athena_vla.errors import ViewError
from athena_vla.view.column_plots import HEIGHT, WIDTH, plot_groups
from athena_vla.view.small_images import Strip, strips_of
from athena_vla.view.timeline import Span, SpanKind, Timeline

MOST_STEPS = 2000  # of the slider; a longer episode is stepped through by more than a frame
DIGITS = 5  # of the values that are read off
LANES: tuple[tuple[SpanKind, str], ...] = (
    ("text", "said"), ("segment", "segment"), ("mark", "marked"), ("source", "by"), ("finding", "found"),
)  # fmt: skip
MEGABYTE = 1e6


@dataclass(frozen=True)
class PageLink:
    """A page, and what the index says of its episode."""

    id: str
    file: str
    frames: int
    seconds: float
    instruction: str
    success: bool | None
    errors: int
    warnings: int


@dataclass(frozen=True)
class Flagging:
    """What all pages of one view share: where flags are kept, and the command that they become part of."""

    name: str  # of what is looked at
    key: str  # of the browser's store
    build: tuple[str, ...]  # words that --exclude follows


def page_name(place: int, episode_id: str) -> str:
    """A file name that any system takes, whatever the episode is called."""
    return f"{place:04d}-{file_safe(episode_id)}.html"


def file_safe(name: str) -> str:
    """The name with nothing in it that a file system may refuse."""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in name)[:60]


@dataclass(frozen=True)
class Pages:
    """A folder of pages; `names` are the files of all of them, in order."""

    folder: Path
    names: Sequence[str]
    flagging: Flagging
    width: int  # [px] of images, at most
    megabytes: float  # of a page, at most

    def write_episode(self, place: int, timeline: Timeline) -> PageLink:
        """Raises `ViewError` where even a page without images would be too large."""
        room = self.megabytes * MEGABYTE - len(self._rendered(place, timeline, []).encode())
        strips = strips_of(timeline.cameras, self.width, room * 0.74)  # base64: four characters for three bytes
        page = self._rendered(place, timeline, strips)
        while len(page.encode()) > self.megabytes * MEGABYTE:
            if all(len(s.images) < 2 for s in strips):
                raise ViewError(
                    f"The page of episode {timeline.id} needs {len(page) / MEGABYTE:.1f} MB with one image of each "
                    f"camera; raise --megabytes (it is {self.megabytes:g})."
                )
            strips = [s.thinned() for s in strips]
            page = self._rendered(place, timeline, strips)
        files.write_text(self.folder / self.names[place], page, ViewError)
        severities = [*(s.severity for s in timeline.spans_of("finding")), *(r.severity for r in timeline.remarks)]
        return PageLink(
            id=timeline.id,
            file=self.names[place],
            frames=len(timeline),
            seconds=timeline.duration,
            instruction=timeline.instructions[0] if timeline.instructions else "no instruction",
            success=timeline.success,
            errors=severities.count("error"),
            warnings=severities.count("warning"),
        )

    def write_unread(self, place: int, episode_id: str, why: str) -> PageLink:
        """A page that says why an episode cannot be shown, so that the pages beside it lead somewhere."""
        page = self._page("view_unread.html", id=episode_id, why=why, **self._beside(place))
        files.write_text(self.folder / self.names[place], page, ViewError)
        return PageLink(episode_id, self.names[place], 0, 0.0, f"cannot be read: {why}", None, 1, 0)

    def write_index(self, links: Sequence[PageLink], notes: Sequence[str]) -> Path:
        """The page that lists the others, with what was flagged on them."""
        return files.write_text(
            self.folder / "index.html", self._page("view_index.html", links=links, notes=notes), ViewError
        )

    def _rendered(self, place: int, timeline: Timeline, strips: Sequence[Strip]) -> str:
        steps = _steps(len(timeline))
        return self._page(
            "view_episode.html",
            t=timeline,
            groups=plot_groups(timeline),
            lanes=[(title, timeline.spans_of(kind)) for kind, title in LANES if timeline.spans_of(kind)],
            place_of=lambda span: _place_of(span, timeline),
            strips=strips,
            steps=steps,
            every=int(steps[1] - steps[0]) if len(steps) > 1 else 1,
            width=WIDTH,
            height=HEIGHT,
            data=_data(timeline, strips, steps),
            **self._beside(place),
        )

    def _page(self, template: str, **values: Any) -> str:
        folder = resources.files("athena_vla.view") / "templates"
        ours = {n: Markup((folder / f"view.{n}").read_text()) for n in ("css", "js")}
        shared = {"key": self.flagging.key, "build": list(self.flagging.build)}
        return environment().get_template(template).render(name=self.flagging.name, shared=shared, **ours, **values)

    def _beside(self, place: int) -> dict[str, str]:
        """The pages before and after this one; "" where there is none."""
        after = self.names[place + 1] if place + 1 < len(self.names) else ""
        return {"before": self.names[place - 1] if place else "", "after": after}


def environment() -> Environment:
    """The templates. Whatever is not `Markup` is escaped; an unknown name is an error."""
    return Environment(
        loader=PackageLoader("athena_vla.view"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _steps(length: int) -> NDArray[np.intp]:
    """Frames that the slider stops at."""
    return np.arange(0, length, max(1, -(-length // MOST_STEPS)))


def _place_of(span: Span, timeline: Timeline) -> tuple[str, str]:
    """Left edge and width of a span on the axis, in percent."""
    whole = max(timeline.duration, 1e-9)
    return f"{100 * span.start / whole:.3f}", f"{max(100 * (span.end - span.start) / whole, 0.3):.3f}"


def _data(timeline: Timeline, strips: Sequence[Strip], steps: NDArray[np.intp]) -> dict[str, Any]:
    """What the script of the page reads: values at the slider's stops, images, links of the robot."""
    times = timeline.times[steps]
    posed = timeline.posed
    return {
        "id": timeline.id,
        "times": _rounded(times),
        "frames": steps.tolist(),
        "duration": timeline.duration,
        "columns": [
            {
                "state": None if c.state is None else _rounded(_at(c.state.times, c.state.values, times)),
                "target": None if c.target is None else _rounded(_at(c.target.times, c.target.values, times)),
            }
            for group in dict.fromkeys(c.group for c in timeline.columns)
            for c in timeline.columns
            if c.group == group  # in the order of the plots
        ],
        "cameras": [
            {"frames": list(s.frames), "images": [base64.b64encode(i).decode() for i in s.images]} for s in strips
        ],
        "robot": None
        if posed is None
        else {
            "parents": [link.parent for link in posed.links],
            "points": np.round(posed.positions[steps].reshape(len(steps), -1), 3).tolist(),
        },
    }


def _at(times: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]], wanted: NDArray[Any]) -> NDArray[Any]:
    """The newest value at each time; the first one before there is any."""
    if not len(times):
        return np.full(len(wanted), np.nan)
    places = np.clip(np.searchsorted(times, wanted + 1e-9, side="right") - 1, 0, len(times) - 1)
    return np.asarray(values, np.float64)[places]


def _rounded(values: NDArray[np.floating[Any]]) -> list[float | None]:
    """Numbers as JSON has them: what is none is null."""
    return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in np.asarray(values, np.float64).tolist()]
