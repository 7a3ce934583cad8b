"""Intervals: where a boolean signal holds, and where an episode stands still."""

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.episode import Episode

IDLE_SECONDS = 1.0
IDLE_SPEED = 0.02  # of the joint's own range per second


def intervals_of(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, stop) of the intervals of True."""
    padded = np.concatenate([[False], flags, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def idle_spans(episode: Episode) -> list[tuple[int, int]]:
    """[start, stop) of intervals of at least a second in which no joint moves noticeably."""
    values = np.asarray(episode.states if episode.states.shape[1] else episode.actions, np.float64)
    if len(values) < 4 or not values.shape[1] or not np.isfinite(values).all():
        return []
    width = len(episode.joint_names) or values.shape[1]
    values = values[:, :width]
    fps = episode.clock.rate(10.0)
    reach = np.maximum(np.ptp(values, axis=0), 0.1)
    speed = np.abs(np.diff(values, axis=0)) / reach * fps
    window = min(max(1, round(0.2 * fps)), len(speed))
    smooth = np.convolve(speed.max(axis=1), np.ones(window) / window, mode="same")
    still = np.concatenate([smooth < IDLE_SPEED * 2.5, smooth[-1:] < IDLE_SPEED * 2.5])
    return [(a, b) for a, b in intervals_of(still) if b - a >= IDLE_SECONDS * fps]
