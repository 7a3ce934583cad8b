"""Limits of channels that take theirs from the training data: range, greatest rate and its derivative as recorded.

They keep a policy's answers where it was trained; they are no statement about the robot, and never called safe.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from athena_vla.channels import limited
from athena_vla.embodiment import Embodiment


def with_learned_limits(
    robot: Embodiment, episodes: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]
) -> Embodiment:
    """The robot with limits for its open channels, from states `[T, S]` and actions `[T, D]` of training episodes.

    The same robot where no channel is open.
    """
    names = robot.open_channels
    if not names:
        return robot
    seen = {n: _Seen(robot.control_hz) for n in names}
    for states, actions in episodes:
        for table, columns in ((states, robot.state_names), (actions, robot.action_names)):
            for name in names:
                if name in columns:
                    seen[name].add(np.asarray(table[:, columns.index(name)], np.float64))
    channels = [
        limited(c, s.low, s.high, s.rate, s.derivative) if (s := seen.get(c.name)) is not None else c
        for c in robot.channels
    ]
    return replace(robot, channels=tuple(channels))


class _Seen:
    """Extremes of one column over episodes; differences never cross from one episode to the next."""

    def __init__(self, control_hz: float) -> None:
        self._hz = control_hz
        self.low, self.high, self.rate, self.derivative = np.inf, -np.inf, 0.0, 0.0

    def add(self, column: NDArray[np.float64]) -> None:
        self.low, self.high = min(self.low, float(column.min())), max(self.high, float(column.max()))
        first, second = np.abs(np.diff(column)), np.abs(np.diff(column, 2))
        self.rate = max(self.rate, float(first.max(initial=0.0)) * self._hz)
        self.derivative = max(self.derivative, float(second.max(initial=0.0)) * self._hz**2)
