"""What is said to the robot, frame by frame.

Two texts of one frame are *alternatives*: either of them says all of it. Texts of different frames are *successive*:
each holds for its own frames only. A sampler draws among alternatives and never across spans.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextSpan:
    """Frames `start` to `stop` (exclusive), and the alternatives that hold there, in order of trust."""

    start: int
    stop: int
    alternatives: tuple[str, ...]


# Where a format wants a text at every frame; a sidecar keeps that there was none.
NO_TEXT = "no instruction recorded"
Texts = tuple[TextSpan, ...]  # in order, apart from each other; a frame in no span has no text


def said(texts: Iterable[str], length: int) -> Texts:
    """Alternatives that hold for all of an episode; no span where there are none."""
    alternatives = tuple(dict.fromkeys(t for t in texts if t))
    return (TextSpan(0, length, alternatives),) if alternatives and length else ()


def from_frames(columns: Sequence[Sequence[str]]) -> Texts:
    """Columns of one text per frame, each an alternative to the others; "" says nothing."""
    return _regrouped([tuple(dict.fromkeys(t for t in row if t)) for row in zip(*columns, strict=True)])


def all_texts(spans: Texts) -> tuple[str, ...]:
    """Every text once, in the order in which it first holds."""
    return tuple(dict.fromkeys(t for s in spans for t in s.alternatives))


def alternatives_at(spans: Texts, frame: int) -> tuple[str, ...]:
    """What may be said at a frame; () where nothing was."""
    return next((s.alternatives for s in spans if s.start <= frame < s.stop), ())


def first_of_frames(spans: Texts, length: int) -> list[str]:
    """The most trusted text of every frame, "" where there is none."""
    texts = [""] * length
    for s in spans:
        texts[s.start : s.stop] = [s.alternatives[0]] * (s.stop - s.start)
    return texts


def is_whole(spans: Texts, length: int) -> bool:
    """True where the same alternatives hold for every frame, or nothing is said at all."""
    return not spans or (len(spans) == 1 and (spans[0].start, spans[0].stop) == (0, length))


def filled(spans: Texts, length: int, text: str) -> Texts:
    """The same, with `text` for every frame that has none."""
    return _regrouped([alternatives_at(spans, i) or (text,) for i in range(length)])


def also_said(spans: Texts, more: Texts, length: int) -> Texts:
    """The same, with the alternatives of `more` after those of each frame."""
    rows = [(*alternatives_at(spans, i), *alternatives_at(more, i)) for i in range(length)]
    return _regrouped([tuple(dict.fromkeys(row)) for row in rows])


def kept(spans: Texts, wanted: Callable[[str], bool]) -> Texts:
    """The same without the texts that are not wanted, and without spans of which nothing is left."""
    chosen = (replace(s, alternatives=tuple(t for t in s.alternatives if wanted(t))) for s in spans)
    return tuple(s for s in chosen if s.alternatives)


def cut(spans: Texts, start: int, stop: int) -> Texts:
    """Frames `start` to `stop`, counted from `start`."""
    moved = (replace(s, start=max(s.start, start) - start, stop=min(s.stop, stop) - start) for s in spans)
    return tuple(s for s in moved if s.stop > s.start)


def at_frames(spans: Texts, frames: NDArray[np.intp]) -> Texts:
    """The texts of the chosen frames `[K]`, in their order: what holds at step k is what held at frame `frames[k]`."""
    return _regrouped([alternatives_at(spans, int(i)) for i in frames])


def requests(alternatives: Iterable[Sequence[str]]) -> dict[str, int]:
    """Text -> number of what it asks for: alternatives ask for the same, and so do texts that share one, and so on."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for same in alternatives:
        for text in same:
            parent[root(text)] = root(same[0])
    numbers: dict[str, int] = {}
    return {text: numbers.setdefault(root(text), len(numbers)) for text in list(parent)}


def texts_json(spans: Texts) -> list[dict[str, Any]]:
    return [{**asdict(s), "alternatives": list(s.alternatives)} for s in spans]


def texts_from_json(raw: Iterable[Mapping[str, Any]]) -> Texts:
    """Inverse of `texts_json`. Raises `KeyError`, `TypeError` or `ValueError` for something else."""
    return tuple(TextSpan(int(s["start"]), int(s["stop"]), tuple(map(str, s["alternatives"]))) for s in raw)


def problem_of(spans: Texts, length: int) -> str:
    """What contradicts itself; "" where nothing does."""
    at = 0
    for s in spans:
        if not at <= s.start < s.stop <= length:
            return f"the text span {s.start}..{s.stop} overlaps another or lies outside {length} frames"
        if not s.alternatives or not all(s.alternatives):
            return f"the text span {s.start}..{s.stop} says nothing"
        at = s.stop
    return ""


def _regrouped(rows: list[tuple[str, ...]]) -> Texts:
    spans: list[TextSpan] = []
    at = 0
    for alternatives, group in itertools.groupby(rows):
        stop = at + len(list(group))
        spans += [TextSpan(at, stop, alternatives)] if alternatives else []
        at = stop
    return tuple(spans)
