"""Segments from motion alone: which limbs move, whether legs step, when a hand closes and opens.

Speeds are relative to the joints' ranges, thresholds have hysteresis, segments a least duration; nothing is drawn by
chance. Six kinds: walk, balance, manipulate, prepare, coordinate (steps while something is held), idle.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Embodiment
from athena_vla.recordings.episode import Episode, Segment
from athena_vla.recordings.intervals import intervals_of
from athena_vla.recordings.limbs import Limbs, limbs

RANGE = np.pi  # [rad] range of a joint whose limits are not known
WINDOW_SECONDS = 0.5  # displacement over this window: jitter cancels, slow drift adds up
MOVES_ON, MOVES_OFF = 0.025, 0.016  # of the range per second
LEGS_STEP = 0.30  # of the range per second: a leg that steps
STEP_TURNS = 1.2  # reversals per second of a stepping joint
ALTERNATES = -0.35  # correlation of the same joint of both legs below which they take turns
TAKES_PART = 0.5  # of the other leg's motion that a leg makes which steps
LEGS_SHIFT = 0.05  # of the range per second: legs that shift weight or squat
HAND_BURST = 0.12  # of the range per second
HAND_NET = 0.25  # of the hand's own travel that a grasp or release makes
PRESHAPE = 0.55  # of the arm's fastest speed: a hand that opens in full flight does not grasp yet
REACHED = 0.5  # of the arm's largest displacement, where no hand is recorded
LEAST_SECONDS = 0.4
NO_POSITION = re.compile(r"(velocity|velocities|vel|effort|torque|current|acceleration)$", re.IGNORECASE)
CARRIES = 0.6  # of the legs' speed that arms with a load stay below


def motion_segments(episode: Episode, robot: Embodiment | None = None) -> tuple[Segment, ...]:
    """Segments that cover the whole episode without gaps; empty where no column can be told to be a limb."""
    names, values = _positions(episode, robot)
    body = limbs(names, {j.name: j.group for j in robot.joints} if robot is not None else None)
    if len(values) < 4 or not any(body.of(p) for p in ("arm", "leg", "hand")):
        return ()
    fps = episode.clock.rate(robot.control_hz if robot else 10.0)
    reach = np.full(len(names), RANGE)
    if robot is not None:
        known = {j.name: j.upper - j.lower for j in robot.joints}
        reach = np.array([known.get(n, RANGE) for n in names])
    signals = _Signals(names, values / reach, fps, body)
    kinds = _kinds(signals)
    side = signals.side()
    found = []
    for start, stop, kind in _spans(kinds, max(2, round(LEAST_SECONDS * fps))):
        text = _plain_text(kind, side, signals, start, stop)
        found.append(Segment(start, stop, kind, text, "motion-rule", _confidence(kind, signals, start, stop)))
    return tuple(found)


def _positions(episode: Episode, robot: Embodiment | None) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """(names, positions): states where they are named or follow the actions' order, else the targets."""
    places = [i for i, n in enumerate(episode.state_names) if not NO_POSITION.search(n)]
    names = tuple(episode.state_names[i] for i in places)
    values = np.asarray(episode.states, np.float64)[:, places]
    width = len(episode.joint_names)
    if not limbs(names).columns:
        names, values = episode.joint_names, values[:, :width] if values.shape[1] >= width else episode.actions
    if not limbs(names).columns and robot is not None:
        if episode.states.shape[1] == robot.state_dim:
            names, values = robot.joint_names, episode.states
        elif width in (robot.state_dim, robot.action_dim):
            names = robot.joint_names if width == robot.state_dim else robot.action_joints
    values = np.asarray(values, np.float64)
    return names, np.where(np.isfinite(values), values, 0.0)


def _steppers(names: Sequence[str], body: Limbs) -> list[int]:
    """Hips and knees: ankles have small ranges and work hard in a robot that only stands."""
    legs = body.of("leg")
    return [c for c in legs if "ankle" not in names[c].lower()] or legs


class _Signals:
    """Speeds per limb, in shares of range per second, over a centred window."""

    def __init__(self, names: Sequence[str], positions: NDArray[np.float64], fps: float, body: Limbs) -> None:
        self.fps = fps
        self.positions = positions
        self.length = len(positions)
        half = max(1, round(WINDOW_SECONDS * fps / 2))
        high = np.minimum(np.arange(self.length) + half, self.length - 1)
        low = np.maximum(np.arange(self.length) - half, 0)
        self.velocity = (positions[high] - positions[low]) / ((high - low) / fps)[:, None]
        self.body = body
        self.arms = {s: self._speed(body.of("arm", s)) for s in body.sides("arm")}
        self.hands = {s: self._speed(body.of("hand", s)) for s in body.sides("hand")}
        self.steppers = _steppers(names, body)
        self.legs = self._speed(self.steppers)
        self.arm = np.max(list(self.arms.values()), axis=0) if self.arms else np.zeros(self.length)
        self.hand = np.max(list(self.hands.values()), axis=0) if self.hands else np.zeros(self.length)

    def _speed(self, columns: list[int]) -> NDArray[np.float64]:
        return np.linalg.norm(self.velocity[:, columns], axis=1) if columns else np.zeros(self.length)

    def side(self) -> str:
        """The side that does most, or "" where both do or sides are unknown."""
        travel = {s: float(np.sum(v)) for s, v in self.arms.items() if s}
        if len(travel) < 2:
            return next(iter(travel), "")
        (first, most), (_, other) = sorted(travel.items(), key=lambda p: -p[1])
        return first if most > 2.0 * other else ""


def _kinds(s: _Signals) -> NDArray[np.str_]:
    arm = hysteresis(s.arm, MOVES_ON, MOVES_OFF) | hysteresis(s.hand, 4 * MOVES_ON, 2 * MOVES_ON)
    step = _stepping(s)
    shift = hysteresis(s.legs, LEGS_SHIFT, LEGS_SHIFT / 2) & ~step
    held = _held(s)
    kinds = np.full(s.length, "idle", dtype="<U10")
    kinds[shift] = "balance"
    kinds[arm & ~held] = "prepare"
    kinds[held] = "manipulate"
    # Legs that shift without arms doing more than following are balance even while something is held.
    quiet = s.arm < np.maximum(MOVES_ON, 0.5 * s.legs)
    kinds[shift & quiet] = "balance"
    kinds[step & ~held] = "walk"
    kinds[step & held] = "coordinate"
    return kinds


def _stepping(s: _Signals) -> NDArray[np.bool_]:
    """Legs that move much, turn back again and again, and take turns: a squat and a lifted leg do not."""
    columns = s.steppers
    if not columns or s.length < 8:
        return np.zeros(s.length, bool)
    # Short differences here: a window of half a second would smear single steps.
    gap = max(1, round(0.08 * s.fps))
    velocity = np.zeros_like(s.positions[:, columns])
    velocity[gap:-gap] = (s.positions[2 * gap :, columns] - s.positions[: -2 * gap, columns]) / (2 * gap / s.fps)
    busy = np.linalg.norm(velocity, axis=1)
    turns = np.abs(np.diff(np.sign(velocity), axis=0, prepend=np.sign(velocity[:1]))) > 0
    weight = np.abs(velocity).mean(axis=0)
    per_second = (turns * weight).sum(axis=1) / max(weight.sum(), 1e-9) * s.fps
    window = min(max(3, round(0.8 * s.fps)), s.length)  # a longer one would lengthen the signal
    smooth = np.ones(window) / window
    effort = np.asarray(np.convolve(busy, smooth, "same"), np.float64)
    busy_enough = hysteresis(effort, LEGS_STEP, 0.6 * LEGS_STEP) & (
        np.convolve(per_second, smooth, "same") > STEP_TURNS
    )
    return busy_enough & _alternating(s, dict(zip(columns, velocity.T, strict=True)))


def _alternating(s: _Signals, velocity: Mapping[int, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Frames in which some joint of the left leg turns against its twin of the right leg, both taking part.

    A robot whose legs have no sides in their names is believed: nothing can be compared.
    """
    left, right = ([c for c in s.body.of("leg", side) if c in velocity] for side in ("left", "right"))
    if not left or len(left) != len(right):
        return np.ones(s.length, bool)
    window = min(max(3, round(1.6 * s.fps)), s.length)
    smooth = np.ones(window) / window

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.convolve(values, smooth, "same"), np.float64)

    found = np.zeros(s.length, bool)
    for a, b in zip(left, right, strict=True):
        x, y = velocity[a], velocity[b]
        own, other = mean(x * x), mean(y * y)
        together = mean(x * y) / np.maximum(np.sqrt(own * other), 1e-12)
        both = np.sqrt(np.minimum(own, other)) > TAKES_PART * np.sqrt(np.maximum(own, other))
        moves = np.sqrt(own + other) > 0.2 * LEGS_STEP
        found |= (together < ALTERNATES) & both & moves
    return found


def _held(s: _Signals) -> NDArray[np.bool_]:
    """Frames from a grasp to the end of its release; where no hand is recorded, from where the arm has arrived on."""
    held = np.zeros(s.length, bool)
    sides = [side for side in s.hands if np.ptp(s.positions[:, s.body.of("hand", side)], axis=0).max() > 0.05]
    if not sides:
        return _arrived(s)
    for side in sides:
        columns = s.body.of("hand", side)
        arm = s.arms.get(side, s.arm)
        held |= _grasps(s.positions[:, columns], s.hands[side], arm, s.fps)
    return held


def _grasps(
    hand: NDArray[np.float64], speed: NDArray[np.float64], arm: NDArray[np.float64], fps: float
) -> NDArray[np.bool_]:
    held = np.zeros(len(hand), bool)
    centred = hand - hand.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    opening = centred @ axis  # [T] one number for the hand's posture
    travel = float(np.ptp(opening))
    limit = max(HAND_BURST, 0.15 * float(speed.max()))
    bursts = []
    for start, stop in intervals_of(hysteresis(speed, limit, 0.5 * limit)):
        # Judged half a second after: a hand that flexes and springs back has grasped nothing.
        net = float(opening[min(stop - 1 + round(0.5 * fps), len(opening) - 1)] - opening[start])
        in_flight = float(arm[start:stop].mean()) > PRESHAPE * float(arm.max())
        if abs(net) > HAND_NET * travel and not in_flight:
            bursts.append((start, stop, float(np.sign(net))))
    closing = _closing(bursts, hysteresis(arm, MOVES_ON, MOVES_OFF))
    grasp: int | None = None
    for start, stop, direction in bursts:
        if direction == closing:
            grasp = start if grasp is None else grasp
        elif grasp is not None:
            held[grasp:stop] = True
            grasp = None
    if grasp is not None:
        held[grasp:] = True
    return held


def _closing(bursts: Sequence[tuple[int, int, float]], arm: NDArray[np.bool_]) -> float:
    """The sense in which this hand closes, which no recording says: that of the posture the arm moves longest with.

    A hand opens shortly before it grasps, the load then travels. Only postures that begin and end within the recording
    are compared, since how long it goes on after the last release says nothing; at a tie the first burst grasps.
    """
    turns = [b for i, b in enumerate(bursts) if i == 0 or b[2] != bursts[i - 1][2]]
    carried = {1.0: 0, -1.0: 0}
    for (start, _, direction), (stop, _, _) in itertools.pairwise(turns):
        carried[direction] += int(arm[start:stop].sum())
    if not turns:
        return 1.0
    first = turns[0][2]
    return -first if carried[-first] > carried[first] else first


def _arrived(s: _Signals) -> NDArray[np.bool_]:
    """From the first arrival at the arm's far postures on, while arms move or hold there."""
    columns = s.body.of("arm")
    if not columns or s.arm.max() < MOVES_ON:
        return np.zeros(s.length, bool)
    away = np.linalg.norm(s.positions[:, columns] - s.positions[0, columns], axis=1)
    if away.max() < 0.03:
        return np.zeros(s.length, bool)
    far = hysteresis(away, REACHED * float(away.max()), 0.25 * float(away.max()))
    moving = hysteresis(s.arm, MOVES_ON, MOVES_OFF)
    # A hold of up to two seconds between motions belongs to the handling; a longer one is idle.
    gap = round(2.0 * s.fps)
    for start, stop in intervals_of(~moving):
        if stop - start <= gap and start > 0 and stop < s.length:
            moving[start:stop] = True
    # A load was picked up standing and is held still in front of the body; arms that swing along, or that the recording
    # only ever saw on the way, are only walking.
    steps = _stepping(s)
    handled = np.cumsum(far & moving & ~steps) >= LEAST_SECONDS * s.fps
    for start, stop in intervals_of(steps):
        still = s.arm[start:stop].mean() < CARRIES * s.legs[start:stop].mean()
        moving[start:stop] = still and handled[start]
    return far & moving


def hysteresis(values: NDArray[np.float64], on: float, off: float) -> NDArray[np.bool_]:
    """True from where the values pass `on` until they fall below `off`, and back to where they rose above `off`."""
    above = values > off
    result = np.zeros(len(values), bool)
    for start, stop in intervals_of(above):
        if values[start:stop].max() > on:
            result[start:stop] = True
    return result


def _spans(kinds: NDArray[np.str_], least: int) -> list[tuple[int, int, str]]:
    """Intervals of one kind; those shorter than `least` join the longer neighbour, shortest first."""
    edges = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(kinds)]
    spans = [[a, b, str(kinds[a])] for a, b in itertools.pairwise(edges)]
    while len(spans) > 1:
        shortest = min(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], i))
        if spans[shortest][1] - spans[shortest][0] >= least:
            break
        beside = [i for i in (shortest - 1, shortest + 1) if 0 <= i < len(spans)]
        into = max(beside, key=lambda i: spans[i][1] - spans[i][0])
        spans[shortest][2] = spans[into][2]
        merged: list[list] = []
        for span in spans:
            if merged and merged[-1][2] == span[2]:
                merged[-1][1] = span[1]
            else:
                merged.append(span)
        spans = merged
    return [(int(a), int(b), str(k)) for a, b, k in spans]


def _plain_text(kind: str, side: str, s: _Signals, start: int, stop: int) -> str:
    with_side = f" with the {side} arm" if side else " with both arms" if len([x for x in s.arms if x]) > 1 else ""
    if kind == "balance":
        return _leg_direction(s, start, stop)
    plain = {"walk": "walk", "coordinate": "walk while holding", "idle": "hold still"}
    return plain.get(kind, f"{kind}{with_side}")


def _leg_direction(s: _Signals, start: int, stop: int) -> str:
    """A squat or a rise shows in the legs' net change; anything else is only balance."""
    columns = s.body.of("leg")
    change = np.abs(s.positions[stop - 1, columns] - s.positions[start, columns])
    return "shift the legs and keep balance" if change.max() > 0.08 else "keep balance"


def _confidence(kind: str, s: _Signals, start: int, stop: int) -> float:
    """How far the deciding signal lies from its threshold, 0.5 at the threshold and at most 0.9."""
    part = slice(start, stop)
    value = {
        "walk": s.legs[part].mean() / LEGS_STEP,
        "coordinate": s.legs[part].mean() / LEGS_STEP,
        "balance": s.legs[part].mean() / LEGS_SHIFT,
        "idle": MOVES_ON / max(float(s.arm[part].mean()), 1e-6),
    }.get(kind, s.arm[part].mean() / MOVES_ON)
    return round(float(np.clip(0.4 + 0.1 * value, 0.5, 0.9)), 3)
