"""Episodes that share a piece of motion: cuts of one take that overlap, found at any offset between them.

Every window of rows becomes one number; windows without motion, such as a common resting pose, do not count.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

WINDOW = 10  # rows; so many equal rows of a moving robot are one take
MOVES = 1e-2  # [rad] that a window must move by to be told from another at rest
DECIMALS = 4  # a copy that went through float32 is still a copy

_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it never vanish


def fingerprints(states: NDArray[np.floating], actions: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Numbers of the moving windows of an episode: `[T, S]` and `[T, D]` to `[at most T - WINDOW + 1]`."""
    rows = np.concatenate([np.asarray(a, np.float64).reshape(len(a), -1) for a in (states, actions)], axis=1)
    if len(rows) < WINDOW or not rows.shape[1] or not np.isfinite(rows).all():
        return np.zeros(0, np.uint64)
    whole = np.round(rows * 10.0**DECIMALS).astype(np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        columns = np.cumprod(np.full(rows.shape[1], _STEP))
        row = (whole * columns).sum(axis=1, dtype=np.uint64)
        row ^= row >> np.uint64(31)
        powers = np.cumprod(np.full(WINDOW, np.uint64(0xC2B2AE3D27D4EB4F)))
        windows = np.lib.stride_tricks.sliding_window_view(row, WINDOW)
        numbers = (windows * powers).sum(axis=1, dtype=np.uint64)
    seen = np.lib.stride_tricks.sliding_window_view(rows, WINDOW, axis=0)
    return numbers[np.ptp(seen, axis=2).max(axis=1) > MOVES]


def shared(episodes: Mapping[str, NDArray[np.uint64]]) -> dict[tuple[str, str], int]:
    """Pairs of episodes with windows in common -> how many; an episode beside the first that has the window."""
    names = list(episodes)
    if not names:
        return {}
    numbers = np.concatenate([episodes[n] for n in names])
    owner = np.concatenate([np.full(len(episodes[n]), i) for i, n in enumerate(names)])
    order = np.lexsort((owner, numbers))
    numbers, owner = numbers[order], owner[order]
    same = (numbers[1:] == numbers[:-1]) & (owner[1:] != owner[:-1])
    pairs, counts = np.unique(np.stack([owner[:-1][same], owner[1:][same]], axis=1), axis=0, return_counts=True)
    return {(names[a], names[b]): int(n) for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)}


def groups(episodes: Mapping[str, NDArray[np.uint64]]) -> dict[str, str]:
    """Episode -> the first episode of those that share motion with it, directly or through others."""
    root = {n: n for n in episodes}

    def top(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    order = {n: i for i, n in enumerate(episodes)}
    for one, two in shared(episodes):
        a, b = sorted((top(one), top(two)), key=order.__getitem__)
        root[b] = a
    return {n: top(n) for n in episodes}
