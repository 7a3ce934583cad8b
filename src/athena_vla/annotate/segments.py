"""Segments of one episode from its most trusted source, worded; and segments read back from a sidecar."""

from dataclasses import replace

import numpy as np

from athena_vla.annotate.motion import motion_segments
from athena_vla.annotate.paraphrase import ParaphraseConfig, paraphrase
from athena_vla.annotate.phrases import phrase
from athena_vla.annotate.signals import signal_segments
from athena_vla.embodiment import Embodiment
from athena_vla.recordings.episode import Episode, Segment
from athena_vla.recordings.texts import alternatives_at

TRUST = ("human", "simulator", "model", "motion-rule")
LEAST_CONFIDENCE = 0.5  # a human's steps without boundaries (0.3) do not outrank measured ones


def episode_segments(
    episode: Episode, robot: Embodiment | None, seed: int = 0, model: ParaphraseConfig | None = None
) -> tuple[Segment, ...]:
    """Segments of one episode from its most trusted source, each with its phrasing."""
    trusted = [s for s in episode.segments if s.confidence >= LEAST_CONFIDENCE]
    best = min((TRUST.index(s.source) for s in trusted if s.source in TRUST), default=None)
    chosen = tuple(s for s in trusted if best is not None and s.source == TRUST[best])
    measured = not chosen
    if not chosen:
        chosen = signal_segments(episode, robot) or motion_segments(episode, robot) or episode.segments
    name = robot.name if robot is not None else ""
    worded = tuple(
        replace(s, text=phrase(s, _task_at(episode, s.start), episode.id, seed, name, measured=measured))
        for s in chosen
    )
    if model is None or not episode.cameras:
        return worded
    stream = next(iter(episode.cameras.values()))
    asked = []
    for s in worded:
        places = np.linspace(s.start, s.stop - 1, model.pictures).round().astype(int)
        images = [stream[int(i)] for i in places]
        text = paraphrase(model, s.kind, s.text, _task_at(episode, s.start), images)
        asked.append(replace(s, text=text, confidence=min(s.confidence, 0.8)))
    return tuple(asked)


def _task_at(episode: Episode, frame: int) -> str:
    """The most trusted text at a frame; the episode's first where nothing is said there."""
    said = alternatives_at(episode.texts, frame) or episode.instructions
    return said[0] if said else ""
