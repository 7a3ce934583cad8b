"""Whether unnamed state columns stand in the order of the targets: their motion says so, or nothing does."""

import numpy as np
from numpy.typing import NDArray

LIKENESS = 0.15  # [rad] a moving joint is this close to its target most of the time,
STILL_LIKENESS = 0.05  # [rad] and one that stands this close
TIE = 0.02  # [rad] two columns about equally far from a target: taking one for the other costs no more
MOST_LAG = 15  # [rows] by which a joint may follow its target


def follow_in_order(states: NDArray[np.floating], actions: NDArray[np.floating]) -> bool:
    """Whether the first columns of `states` `[T, S]` are those that follow `actions` `[T, D]`, column for column.

    Each target must be followed closely by the column of its own place and by no other column more closely, at the
    delay at which all fit best. A robot that hardly moves proves nothing by being close.
    """
    count, length = actions.shape[1], len(actions)
    if states.shape[1] < count or length < 4:
        return False
    moving = np.ptp(np.asarray(actions, np.float64), axis=0) > LIKENESS / 5
    if not moving.any():
        return False
    best: NDArray[np.float64] | None = None
    for lag in range(1, min(MOST_LAG, length // 4) + 1):
        s, a = np.asarray(states[lag:], np.float64), np.asarray(actions[:-lag], np.float64)
        apart = np.stack([np.median(np.abs(s - a[:, [c]]), axis=0) for c in range(count)])  # [D, S]
        if best is None or np.trace(apart[:, :count]) < np.trace(best[:, :count]):
            best = apart
    assert best is not None
    own = np.diagonal(best[:, :count])
    is_close = own < np.where(moving, LIKENESS, STILL_LIKENESS)
    is_closest = ~moving | (own <= best.min(axis=1) + TIE)
    return bool((is_close & is_closest).all())
