"""Explicit repairs of an episode, each reported in words; the recording itself is never edited."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from athena_vla.recordings.episode import Episode, Frames, Image, Segment
from athena_vla.recordings.formats.common import StillFrames
from athena_vla.recordings.intervals import idle_spans
from athena_vla.recordings.texts import cut as cut_texts

FIXES = ("trim-idle", "drop-failed", "drop-duplicates", "drop-first-frame")
KEPT_SECONDS = 0.3  # of stillness that stays at each end: a policy must also learn to start and stop


@dataclass(frozen=True)
class Cut:
    """A part of a camera stream."""

    stream: Frames
    start: int
    stop: int

    def __len__(self) -> int:
        return min(self.stop, len(self.stream)) - self.start

    def __getitem__(self, index: int, /) -> Image:
        return self.stream[index + self.start]


@dataclass(frozen=True)
class StillCut(StillFrames):
    """A part of a stream of single images, still copyable byte for byte."""

    stream: StillFrames
    start: int
    stop: int

    def __len__(self) -> int:
        return min(self.stop, len(self.stream)) - self.start

    def encoded(self, index: int, /) -> bytes:
        return self.stream.encoded(index + self.start)

    def describe(self, index: int, /) -> str:
        return self.stream.describe(index + self.start)


def apply_fixes(episode: Episode, fixes: Sequence[str], seen: set[str]) -> tuple[Episode | None, list[str]]:
    """(the repaired episode, or None where it is dropped; what was done). `seen` remembers motions across episodes."""
    said: list[str] = []
    if "drop-failed" in fixes and episode.success is False:
        return None, ["dropped: it failed"]
    if "drop-duplicates" in fixes:
        digest = hashlib.sha256(np.ascontiguousarray(episode.actions).tobytes()).hexdigest()
        if digest in seen:
            return None, ["dropped: a duplicate"]
        seen.add(digest)
    start, stop = 0, len(episode)
    if "drop-first-frame" in fixes and stop > 1:
        start = 1
        said.append("first frame left out")
    if "trim-idle" in fixes:
        margin = round(KEPT_SECONDS * episode.fps)
        for a, b in idle_spans(episode):
            if a <= start < b - margin < stop:
                said.append(f"{b - margin - start} idle frames trimmed at the start")
                start = b - margin
            if b >= stop and a + margin > start and a + margin < stop:
                said.append(f"{stop - a - margin} idle frames trimmed at the end")
                stop = a + margin
    if (start, stop) == (0, len(episode)):
        return episode, said
    return cut(episode, start, stop), said


def cut(episode: Episode, start: int, stop: int) -> Episode:
    """Frames `start` to `stop` of an episode, with everything that belongs to them."""
    segments = [
        Segment(max(s.start, start) - start, min(s.stop, stop) - start, s.kind, s.text, s.source, s.confidence)
        for s in episode.segments
        if min(s.stop, stop) > max(s.start, start)
    ]
    return replace(
        episode,
        clock=episode.clock.cut(start, stop),
        actions=episode.actions[start:stop],
        states=episode.states[start:stop],
        cameras={k: _cut_stream(v, start, stop) for k, v in episode.cameras.items()},
        texts=cut_texts(episode.texts, start, stop),
        marks=episode.marks.cut(start, stop),
        segments=tuple(segments),
        streams={k: v.cut(start, stop, episode.clock) for k, v in episode.streams.items()},
        truth=None if episode.truth is None else episode.truth.cut(start, stop),
    )


def _cut_stream(stream: Frames, start: int, stop: int) -> Frames:
    return StillCut(stream, start, stop) if isinstance(stream, StillFrames) else Cut(stream, start, stop)
