"""Checks of time: is there a clock, does it run forward, at the declared rate, without gaps and drift?"""

from collections.abc import Iterator

import numpy as np

from athena_vla.check.findings import Finding, finding, some
from athena_vla.recordings.episode import Episode

RATE_TOLERANCE = 0.03  # relative; a declared integer rate of a real 29.97 Hz camera passes
GAP = 1.6  # intervals longer than this many typical ones have lost a frame
DRIFT = 0.025  # relative change of the interval from the first to the last quarter


def check_clock(episode: Episode) -> Iterator[Finding]:
    """Findings about the episode's time stamps; a clock made from the rate cannot be wrong and says nothing."""
    if not episode.clock.has_rate:
        yield finding("clock.missing", "No time stamps and no rate are recorded.", episode.id)
    if episode.clock.source != "recorded" or len(episode) < 3:
        return
    stamps = episode.timestamps
    if not np.isfinite(stamps).all():
        bad = np.flatnonzero(~np.isfinite(stamps))
        yield finding("clock.not_finite", f"{len(bad)} time stamps are not numbers.", episode.id, _span(bad))
        return
    steps = np.diff(stamps)
    backwards = np.flatnonzero(steps <= 0)
    if len(backwards):
        message = f"Time does not advance at {len(backwards)} frames (first at {backwards[0] + 1})."
        yield finding("clock.backwards", message, episode.id, _span(backwards + 1))
        if len(backwards) > len(steps) / 2:
            return
    forward = steps[steps > 0]
    typical = float(np.median(forward))
    real = 1.0 / typical
    if abs(real / episode.fps - 1.0) > RATE_TOLERANCE:
        message = f"The recording declares {episode.fps:g} Hz; its time stamps advance at {real:.2f} Hz."
        yield finding("clock.rate", message, episode.id)
    else:
        # Uneven sampling can keep the median right while the mean is off.
        mean = len(forward) / float(forward.sum())
        gaps = forward > GAP * typical
        if abs(mean / episode.fps - 1.0) > RATE_TOLERANCE and not gaps.any():
            message = f"The recording declares {episode.fps:g} Hz; on average it runs at {mean:.2f} Hz."
            yield finding("clock.rate", message, episode.id)
    gaps = np.flatnonzero(steps > GAP * typical)
    if len(gaps):
        lost = int(np.rint(steps[gaps] / typical - 1).sum())
        message = f"{lost} frames are missing in {len(gaps)} gaps, at frames {some((gaps + 1).tolist())}."
        yield finding("clock.dropped", message, episode.id, _span(gaps + 1))
    quarter = len(steps) // 4
    if quarter >= 8:
        early, late = (float(np.median(part)) for part in (steps[:quarter], steps[-quarter:]))
        if early > 0 and abs(late / early - 1.0) > DRIFT:
            message = f"The interval goes from {early * 1e3:.1f} ms to {late * 1e3:.1f} ms over the episode."
            yield finding("clock.drift", message, episode.id)


def _span(indices: np.ndarray) -> tuple[int, int]:
    return int(indices[0]), int(indices[-1]) + 1
