"""Checks of how actions and states belong together: lag, next-state actions, deltas, kinematic replay, idle time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.findings import Finding, finding, some
from athena_vla.recordings.column_order import follow_in_order
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.common import are_placeholders
from athena_vla.recordings.intervals import idle_spans

MOST_LAG = 15  # [frames]
REPORTED_LAG = 3  # [frames] delays up to this are a controller at work
MOVES = 0.02  # [rad] travel of a joint that takes part in these checks
STILL = 1e-3  # [rad] added to the spread of a joint, so that one that hardly moves does not explode
REPLAY_SHARE = 0.6  # of a joint's own spread that its replay may be off
REPLAY_MISS = 0.01  # [rad] RMS below which a miss is what a gearbox has, however little the joint moves
REPLAY_JOINTS = 0.3  # share of moving joints that must be off: hands in contact do not go where they are told
IDLE_SHARE = 0.3


@dataclass(frozen=True)
class Relation:
    """How the states follow the actions, over the joints that move."""

    lag: int  # [frames] best match of action t with state t + lag
    error: float  # [rad] mean distance at that lag
    joints: tuple[int, ...]  # columns that move
    contrast: float  # distance at the best lag over the distance at the worst: near 1 says nothing


def paired(episode: Episode) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(actions, states) of the same joints, by name; by position where neither is named and the widths agree."""
    actions, states = np.asarray(episode.actions, np.float64), np.asarray(episode.states, np.float64)
    if len(actions) < 8 or not actions.shape[1] or not states.shape[1]:
        return None
    place = {n: i for i, n in enumerate(episode.state_names)}
    common = [(i, place[n]) for i, n in enumerate(episode.joint_names) if n in place]
    if common and len(common) >= len(episode.joint_names) // 2:
        actions, states = actions[:, [a for a, _ in common]], states[:, [s for _, s in common]]
    elif actions.shape[1] != states.shape[1]:
        # 47 state columns may begin with the 23 joint positions, if they follow the targets column for column.
        if not are_placeholders(episode.state_names) or not follow_in_order(states, actions):
            return None
        states = states[:, : actions.shape[1]]
    if not (np.isfinite(actions).all() and np.isfinite(states).all()):
        return None
    return actions, states


def relation(actions: NDArray[np.float64], states: NDArray[np.float64]) -> Relation | None:
    """The lag at which actions match later states best, over joints that move in both."""
    moving = np.flatnonzero((np.ptp(actions, axis=0) > MOVES) & (np.ptp(states, axis=0) > MOVES))
    if not len(moving):
        return None
    a, s = actions[:, moving], states[:, moving]
    most = min(MOST_LAG, len(a) // 4)
    errors = np.stack([np.abs(s[lag:] - a[: len(a) - lag]).mean(axis=0) for lag in range(most + 1)])  # [lags, joints]
    # Each joint votes: a hand that never gets where it is told must not outvote an arm.
    lag = round(float(np.median(errors.argmin(axis=0))))
    contrast = float(np.median(errors.min(axis=0) / np.maximum(errors.max(axis=0), 1e-9)))
    return Relation(lag, float(errors[lag].mean()), tuple(moving.tolist()), contrast)


def check_relations(episode: Episode, *, replay: bool = True) -> Iterator[Finding]:
    """Actions that are states, deltas, lag and replay, for one episode."""
    pair = paired(episode)
    if pair is None:
        return
    actions, states = pair
    found = relation(actions, states)
    if found is None:
        return
    moving = list(found.joints)
    a, s = actions[:, moving], states[:, moving]
    if np.abs(a[:-1] - s[1:]).max() < 1e-6:
        yield finding("action.next_state", "Every action equals the next state.", episode.id)
        return
    if np.abs(a - s).max() < 1e-6:
        yield finding("action.same_state", "Every action equals the state of its own row.", episode.id)
        return
    if _looks_relative(a, s):
        message = "Actions correlate with the change of the state and not with the state."
        yield finding("action.delta", message, episode.id)
        return
    follows = np.median([_correlation(a[: len(a) - found.lag, c], s[found.lag :, c]) for c in range(a.shape[1])])
    if follows < 0.4:
        message = f"Actions hardly correlate with the joint positions they should lead to (median {follows:.2f})."
        yield finding("action.unrelated", message, episode.id)
        return
    if found.lag > REPORTED_LAG and found.contrast < 0.8:
        time = f" ({found.lag / episode.fps * 1e3:.0f} ms at {episode.fps:g} Hz)" if episode.clock.has_rate else ""
        yield finding("action.lag", f"The states follow the actions by {found.lag} frames{time}.", episode.id)
    if not replay:
        return
    errors = replay_error(a, s)
    missed = errors * (s.std(axis=0) + STILL)  # [rad]
    bad = np.flatnonzero((errors > REPLAY_SHARE) & (missed > REPLAY_MISS))
    if len(bad) > REPLAY_JOINTS * len(errors):
        names = [f"{episode.joint_names[moving[c]]} ({errors[c]:.0%} of its spread)" for c in bad]
        yield finding("replay.mismatch", f"Replayed actions miss the states of {some(names)}.", episode.id)


def replay_error(a: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per joint, RMS error of the best delayed first-order tracking, free running from the first state, over spread.

    s[t+1] = s[t] + gain (a[t-delay] - s[t]); delay and gain are searched per joint, a constant offset is forgiven.
    """
    delays = range(0, min(MOST_LAG, len(a) // 4) + 1, 2)
    gains = np.array([0.08, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0])
    commands = np.stack([np.concatenate([np.repeat(a[:1], d, axis=0), a[: len(a) - d]]) for d in delays])
    position = np.broadcast_to(s[0], (len(commands), len(gains), s.shape[1])).copy()
    errors = np.empty((len(s) - 1, *position.shape))
    for t in range(len(s) - 1):
        position += gains[None, :, None] * (commands[:, None, t] - position)
        errors[t] = position - s[t + 1]
    spread = errors.std(axis=0)  # the mean error is the offset
    return spread.min(axis=(0, 1)) / (s.std(axis=0) + STILL)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if x.std() < 1e-9 or y.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _looks_relative(a: NDArray[np.float64], s: NDArray[np.float64]) -> bool:
    change, level = np.diff(s, axis=0), s[1:]
    scores = []
    for c in range(a.shape[1]):
        if a[:-1, c].std() < 1e-6 or change[:, c].std() < 1e-6:
            continue
        with_change = float(np.corrcoef(a[:-1, c], change[:, c])[0, 1])
        with_level = float(np.corrcoef(a[:-1, c], level[:, c])[0, 1])
        # Deltas are also much smaller than the postures they lead through, or at least centred elsewhere.
        apart = abs(np.median(a[:-1, c]) - np.median(level[:, c])) / (level[:, c].std() + 1e-6)
        scores.append(with_change > 0.6 and with_level < 0.5 and (apart > 0.5 or a[:, c].std() < 0.3 * s[:, c].std()))
    return len(scores) > 0 and float(np.mean(scores)) > 0.5


def check_idle(episode: Episode) -> Iterator[Finding]:
    """Idle time, where it is a good part of the episode."""
    spans = idle_spans(episode)
    idle = sum(b - a for a, b in spans)
    if idle > IDLE_SHARE * len(episode):
        message = f"{idle} of {len(episode)} frames are idle, in {len(spans)} spans: {some(spans, 4)}."
        yield finding("motion.idle", message, episode.id, spans[0])
