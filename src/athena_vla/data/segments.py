"""Segments of one episode from its most trusted source, worded; and segments read back from a sidecar."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from athena_vla.data.episode import Episode, Segment
from athena_vla.data.formats.common import guarded, read_json_object
from athena_vla.data.motion import motion_segments
from athena_vla.data.paraphrase import ParaphraseConfig, paraphrase
from athena_vla.data.phrases import phrase
from athena_vla.data.signals import signal_segments
from athena_vla.embodiment import Embodiment
from athena_vla.errors import DatasetError

TRUST = ("human", "simulator", "model", "motion-rule")
LEAST_CONFIDENCE = 0.5  # a human's steps without boundaries (0.3) do not outrank measured ones


def episode_segments(
    episode: Episode, robot: Embodiment | None, seed: int = 0, model: ParaphraseConfig | None = None
) -> tuple[Segment, ...]:
    """Segments of one episode from its most trusted source, each with its phrasing."""
    trusted = [s for s in episode.segments if s.confidence >= LEAST_CONFIDENCE]
    best = min((TRUST.index(s.source) for s in trusted if s.source in TRUST), default=None)
    chosen = tuple(s for s in trusted if best is not None and s.source == TRUST[best])
    if not chosen:
        chosen = signal_segments(episode, robot) or motion_segments(episode, robot) or episode.segments
    task = episode.instructions[0] if episode.instructions else ""
    worded = tuple(replace(s, text=phrase(s, task, episode.id, seed)) for s in chosen)
    if model is None or not episode.cameras:
        return worded
    stream = next(iter(episode.cameras.values()))
    asked = []
    for s in worded:
        places = np.linspace(s.start, s.stop - 1, model.pictures).round().astype(int)
        images = [stream[int(i)] for i in places]
        asked.append(
            replace(s, text=paraphrase(model, s.kind, s.text, task, images), confidence=min(s.confidence, 0.8))
        )
    return tuple(asked)


def read_annotations(path: Path) -> dict[str, tuple[Segment, ...]]:
    """Episode id -> segments of a sidecar. Raises `DatasetError` for one that is not ours."""
    raw = read_json_object(path)
    if raw.get("version") != 1 or not isinstance(raw.get("episodes"), dict):
        raise DatasetError(f"'{path}' is not a sidecar of annotations (version 1).")
    with guarded(f"'{path}'"):
        return {i: tuple(Segment(**s) for s in e["segments"]) for i, e in raw["episodes"].items()}
