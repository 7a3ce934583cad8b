"""`athena data align`: what the recording's clocks and streams say about rate and delays, and what it would set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.action_state import paired, relation
from athena_vla.check.cameras import joint_travel
from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import BrokenEpisode, Episode, Frames
from athena_vla.recordings.formats.common import broken_note
from athena_vla.recordings.limbs import limbs
from athena_vla.recordings.media.luma import luma_grids
from athena_vla.recordings.notes import Note
from athena_vla.recordings.reading import Reading

MOST_SHIFT = 8  # [frames] camera offsets that are searched
SEEN = 0.5  # correlation of image change and joint speed from which an offset may be believed
CLEARER = 0.1  # by how much the best offset must beat no offset


@dataclass(frozen=True, kw_only=True)
class AlignConfig(Reading):
    """Which recording is measured."""

    input: Path
    """The recording, in any known format."""
    episodes: int = 10
    """How many episodes are measured."""


@dataclass(frozen=True)
class AlignReport:
    """Measured medians over the episodes; None where a stream is not recorded or says nothing."""

    declared_fps: float
    real_fps: float | None
    action_lag: int | None  # [frames] states follow actions by
    action_lag_per_joint: dict[str, int]
    camera_lag: dict[str, int | None]  # [frames] images follow joints by
    settings: dict[str, Any]
    notes: tuple[Note, ...] = ()

    def __str__(self) -> str:
        real = "no time stamps" if self.real_fps is None else f"{self.real_fps:.2f} Hz by its time stamps"
        lines = [f"rate: {self.declared_fps:g} Hz declared, {real}"]
        if self.action_lag is not None:
            lines.append(f"states follow actions by {self.action_lag} frames")
        for name, lag in self.camera_lag.items():
            seen = "the images do not say" if lag is None else f"{lag} frames"
            lines.append(f"camera {name} against the joints: {seen}")
        lines += [f"note: {n.text}" for n in self.notes]
        lines.append("would set: " + ", ".join(f"{k} {v}" for k, v in self.settings.items()))
        return "\n".join(lines)


def align(config: AlignConfig) -> AlignReport:
    """Measure a recording; nothing is changed. Raises `RecordingError` where nothing can be read."""
    recording = config.open(config.input)
    rates: list[float] = []
    declared = 0.0
    lags: dict[str, list[int]] = {}
    joint_lags: list[int] = []
    shifts: dict[str, list[tuple[int, float, float]]] = {}
    notes: list[Note] = []
    measured = 0
    for item in recording.episodes():
        if isinstance(item, BrokenEpisode):
            notes.append(broken_note(item))
            continue
        declared = item.fps
        if item.clock.source == "recorded" and len(item) > 2:
            steps = np.diff(item.timestamps)
            rates.append(float(1.0 / np.median(steps[steps > 0])) if (steps > 0).any() else 0.0)
        for name, lag in joint_delays(item).items():
            lags.setdefault(name, []).append(lag)
        pair = paired(item)
        found = relation(*pair) if pair else None
        if pair is not None and found is not None:
            joint_lags.append(best_lag(item, *pair))
        for name, stream in item.cameras.items():
            shift = camera_shift(item, stream)
            if shift is not None:
                shifts.setdefault(name, []).append(shift)
        measured += 1
        if measured >= config.episodes:
            break
    if not measured:
        raise RecordingError(f"'{config.input}' has no readable episode: {notes[0] if notes else 'it holds none'}")
    camera_lag = {n: _agreed(s) for n, s in shifts.items()}
    real = float(np.median(rates)) if rates else None
    settings: dict[str, Any] = {"leads": "state", "camera_offset": 0, "drop_head": 0, "drop_tail": 0}
    if real is not None and declared and abs(real / declared - 1) > 0.03:
        settings["fps"] = round(real, 3)
        measured_rate = f"the time stamps run at {real:.2f} Hz, declared are {declared:g}: --fps {real:.2f}"
        notes.append(Note("clock.rate", measured_rate))
    known = [lag for lag in camera_lag.values() if lag is not None]
    if known and len(set(known)) == 1 and known[0] != 0:
        settings["camera_offset"] = known[0]
        late = f"images follow the joints by {known[0]} frames: --camera-offset {known[0]}"
        notes.append(Note("camera.lag", late))
    action_lag = round(float(np.median(joint_lags))) if joint_lags else None
    if action_lag is not None and action_lag > 1:
        lag = f"states follow actions by {action_lag} frames: that is the controller, kept as it is"
        notes.append(Note("action.lag", lag))
    return AlignReport(
        declared_fps=declared,
        real_fps=real,
        action_lag=action_lag,
        action_lag_per_joint={n: round(float(np.median(v))) for n, v in lags.items()},
        camera_lag=camera_lag,
        settings=settings,
        notes=tuple(notes),
    )


def best_lag(episode: Episode, actions: NDArray[np.float64], states: NDArray[np.float64]) -> int:
    """[frames] delay at which the moving joints together are nearest to their targets [rad], hands left out.

    A hand that closes on something never gets where it is told, so its delay is that of the grip, not of the clock.
    """
    hands = set(limbs(episode.joint_names).of("hand"))
    moving = [c for c in range(actions.shape[1]) if np.ptp(actions[:, c]) > 0.1 and np.ptp(states[:, c]) > 0.1]
    chosen = [c for c in moving if c not in hands] or moving or list(range(actions.shape[1]))
    a, s = actions[:, chosen], states[:, chosen]
    return int(np.argmin([np.abs(s[k:] - a[: len(a) - k]).mean() for k in range(min(16, len(a) // 4) + 1)]))


def joint_delays(episode: Episode) -> dict[str, int]:
    """[frames] per moving joint."""
    pair = paired(episode)
    if pair is None:
        return {}
    actions, states = pair
    found: dict[str, int] = {}
    for column, name in enumerate(episode.joint_names[: actions.shape[1]]):
        a, s = actions[:, column], states[:, column]
        if np.ptp(a) > 0.05 and np.ptp(s) > 0.05:
            errors = [np.abs(s[k:] - a[: len(a) - k]).mean() for k in range(min(16, len(a) // 4) + 1)]
            found[name] = int(np.argmin(errors))
    return found


def camera_shift(episode: Episode, stream: Frames) -> tuple[int, float, float] | None:
    """(frames the images follow the joints by, correlation there, correlation without) from change against speed."""
    travel = joint_travel(episode)
    if travel is None or len(episode) < 4 * MOST_SHIFT:
        return None
    grids: list[NDArray[np.uint8]] = []
    for _, look in luma_grids(stream):
        if isinstance(look, RecordingError):
            return None
        grids.append(look.grid)
    count = min(len(grids), len(travel))
    pixels = np.stack(grids[:count]).astype(np.int16)
    change = np.abs(np.diff(pixels, axis=0)).reshape(count - 1, -1).mean(axis=1)
    speed = np.linalg.norm(np.diff(travel[:count], axis=0), axis=1)
    if change.std() < 1e-6 or speed.std() < 1e-9:
        return None
    edge = slice(MOST_SHIFT, count - 1 - MOST_SHIFT)
    scores = {}
    for shift in range(-MOST_SHIFT, MOST_SHIFT + 1):
        moved = change[edge.start + shift : edge.stop + shift]
        scores[shift] = float(np.corrcoef(moved, speed[edge])[0, 1])
    best = max(scores, key=lambda k: (scores[k], -abs(k)))
    return best, scores[best], scores[0]


def _agreed(shifts: list[tuple[int, float, float]]) -> int | None:
    """The offset most episodes agree on; 0 where no offset is as good; None where the images do not say."""
    sure = [s for s in shifts if s[1] > SEEN]
    if not sure:
        return None
    offset = round(float(np.median([s[0] for s in sure])))
    together = [s for s in sure if abs(s[0] - offset) <= 1]
    if len(together) < max(2, 0.7 * len(sure)):
        return None
    return offset if float(np.median([s[1] - s[2] for s in together])) > CLEARER else 0
