"""What people and programs marked in an episode: how it ended, where it was corrected, and who commanded each step."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError

MarkKind = Literal["success", "failure", "correction"]
StepSource = Literal["policy", "human", "script"]


@dataclass(frozen=True)
class Mark:
    """Frames `start` to `stop` (exclusive) that somebody marked."""

    kind: MarkKind
    start: int
    stop: int
    text: str = ""  # what they said of it


@dataclass(frozen=True)
class SourceSpan:
    """Frames `start` to `stop` (exclusive), and who commanded them."""

    source: StepSource
    start: int
    stop: int


@dataclass(frozen=True)
class Marks:
    """All marks of an episode. Empty fields say that nothing was recorded, not that nothing happened."""

    success: bool | None = None  # whether the episode as a whole succeeded; None: the recording does not say
    spans: tuple[Mark, ...] = ()
    sources: tuple[SourceSpan, ...] = ()  # apart from each other; a frame in no span has no known source

    @classmethod
    def from_flags(cls, is_human: NDArray[np.bool_], success: bool | None = None) -> "Marks":
        """Marks of an episode in which a person took over at the flagged frames `[T]` and a policy drove the rest."""
        sources: list[StepSource] = ["human" if flag else "policy" for flag in is_human]
        return cls.from_sources(sources, success)

    @classmethod
    def from_sources(cls, sources: Sequence[StepSource], success: bool | None = None) -> "Marks":
        """Marks of an episode whose frames these commanded; whoever took over from a policy corrected it there."""
        spans: list[SourceSpan] = []
        edges = [0, *(i for i in range(1, len(sources)) if sources[i] != sources[i - 1]), len(sources)]
        for start, stop in itertools.pairwise(edges):
            if stop > start:
                spans.append(SourceSpan(sources[start], start, stop))
        if "policy" not in sources:  # a demonstration corrects nobody
            return cls(success, (), tuple(spans))
        corrections = tuple(Mark("correction", s.start, s.stop) for s in spans if s.source != "policy")
        return cls(success, corrections, tuple(spans))

    def has(self, kind: MarkKind, length: int) -> NDArray[np.bool_]:
        """[T] True at frames with a mark of that kind."""
        flags = np.zeros(length, bool)
        for m in self.spans:
            if m.kind == kind:
                flags[m.start : m.stop] = True
        return flags

    def source_of_frames(self, length: int) -> list[StepSource | None]:
        """[T] who commanded each frame; None where that was not recorded."""
        found: list[StepSource | None] = [None] * length
        for s in self.sources:
            for frame in range(s.start, s.stop):
                found[frame] = s.source
        return found

    def cut(self, start: int, stop: int) -> "Marks":
        """Frames `start` to `stop`, counted from `start`."""
        return self.at_frames(np.arange(start, stop))

    def at_frames(self, frames: NDArray[np.intp]) -> "Marks":
        """The marks of the chosen, ascending frames `[K]`: step k has those of frame `frames[k]`."""
        spans = tuple(Mark(m.kind, a, b, m.text) for m in self.spans for a, b in _kept(m, frames))
        sources = tuple(SourceSpan(s.source, a, b) for s in self.sources for a, b in _kept(s, frames))
        return Marks(self.success, spans, sources)

    def problem(self, length: int) -> str:
        """What contradicts itself; "" where nothing does."""
        for s in (*self.spans, *self.sources):
            if not 0 <= s.start < s.stop <= length:
                return f"a mark {s.start}..{s.stop} lies outside {length} frames"
        ordered = sorted(self.sources, key=lambda s: s.start)
        for one, two in itertools.pairwise(ordered):
            if two.start < one.stop:
                return f"frame {two.start} has two sources, '{one.source}' and '{two.source}'"
        return ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "success": self.success,
            "spans": [asdict(m) for m in self.spans],
            "sources": [asdict(s) for s in self.sources],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Marks":
        """Inverse of `to_dict`. Raises `RecordingError` for what is no such table."""
        try:
            spans = tuple(Mark(**m) for m in raw.get("spans", ()))
            sources = tuple(SourceSpan(**s) for s in raw.get("sources", ()))
        except (TypeError, AttributeError) as error:
            raise RecordingError(f"The marks of an episode cannot be read: {error}.") from error
        unknown = {m.kind for m in spans} - set(get_args(MarkKind)) | {s.source for s in sources} - set(
            get_args(StepSource)
        )
        success = raw.get("success")
        if unknown or not (success is None or isinstance(success, bool)):
            what = ", ".join(map(str, sorted(unknown, key=str))) or f"success = {success!r}"
            known = ", ".join((*get_args(MarkKind), *get_args(StepSource)))
            raise RecordingError(
                f"The marks of an episode hold {what}; known are {known}, and success true, false or null."
            )
        return cls(success, spans, sources)


def _kept(span: Mark | SourceSpan, frames: NDArray[np.intp]) -> Sequence[tuple[int, int]]:
    start, stop = (int(i) for i in np.searchsorted(frames, [span.start, span.stop]))
    return [(start, stop)] if stop > start else []
