"""The points of a trajectory: what was commanded, when it is due, and how to come to rest if nothing follows.

A controller replaces its trajectory by each new one and joins the points by straight lines. So a message holds more
than the newest command. By stamps it holds all commands of twice the `lead`, each due so long after it was made. Late
messages and clocks that differ change nothing of the motion while the lead is longer than both. From the arrival on
only the newest command is due, after the lead; the controller then stands still for one of its cycles at each message.
Behind the newest command stands the hardest braking, so that a controller that hears nothing more comes to rest inside
the limits.

Knows limits, times and positions; nothing of ROS.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array, Embodiment
from athena_vla.errors import SafetyError

LONGEST = 1.0  # [s] lead: a robot that follows later than that is of no use
PLANNED = 1.0 - 1e-6  # share of the acceleration limit that braking uses: rounding has to fit in


@dataclass(frozen=True)
class Points:
    """Rows of a trajectory."""

    begin: float  # [s] that times count from; 0: from the message's arrival
    times: Array  # [n] [s] after `begin`, increasing
    rows: Array  # [n, J] [rad]


class TrajectoryPoints:
    """Remembers commands as long as they may be needed."""

    def __init__(self, body: Embodiment, *, lead: float, stamped: bool) -> None:
        """`lead` [s] is the time between a command and the moment it is due, by its stamp or from the arrival on.

        Raises `SafetyError` for a lead below one period of the commands.
        """
        self._period, self._lead, self._stamped = 1.0 / body.command_hz, lead, stamped
        if not self._period <= lead <= LONGEST:
            raise SafetyError(f"lead_s must lie between one period, {self._period:g} s, and {LONGEST:g} s, not {lead}.")
        self._deceleration = body.max_acceleration * PLANNED
        self._lower, self._upper = body.lower, body.upper
        self._sent: deque[tuple[float, Array]] = deque()

    def add(self, now: float, rows: Array) -> Points:
        """The points after commands [n, J] [rad], the last of them at the time `now` [s], one period apart."""
        first = now - (len(rows) - 1) * self._period
        while self._sent and self._sent[-1][0] >= first:  # a clock that was set back, or goals that overlap
            self._sent.pop()
        self._sent.extend((first + i * self._period, row) for i, row in enumerate(rows))
        oldest = now - 2.0 * self._lead if self._stamped else now
        while len(self._sent) > len(rows) + 1 and self._sent[0][0] < oldest:
            self._sent.popleft()
        stamps, sent = np.array([t for t, _ in self._sent]), np.array([q for _, q in self._sent])
        after, braked = self._braking(sent, self._length(stamps))
        if self._stamped:
            due = stamps - stamps[0] + self._period  # a first point at no time at all is a jump
            begin = stamps[0] + self._lead - self._period
        else:
            sent, begin = rows, 0.0
            due = self._lead + self._period * np.arange(len(rows), dtype=np.float64)
        return Points(float(begin), np.concatenate([due, due[-1] + after]), np.concatenate([sent, braked]))

    def _length(self, stamps: Array) -> float:
        """[s] between the two newest commands."""
        return float(stamps[-1] - stamps[-2]) if len(stamps) > 1 and stamps[-1] > stamps[-2] else self._period

    def _braking(self, sent: NDArray[np.float64], last: float) -> tuple[Array, Array]:
        """Times after the newest command, and positions [m, J], of the hardest braking from its velocity.

        Steps of one period, of which later ones are left out: the mean accelerations between the points stay the same.
        """
        if len(sent) < 2:
            return np.empty(0), np.empty((0, sent.shape[1]))
        velocity = (sent[-1] - sent[-2]) / last
        less = self._deceleration * self._period
        steps = np.floor(np.abs(velocity) / less)
        longest = int(steps.max()) + 1
        if not velocity.any():
            return np.empty(0), np.empty((0, sent.shape[1]))
        taken = np.unique(np.minimum(2 ** np.arange(longest.bit_length() + 1), longest)).astype(np.float64)
        k = np.minimum(taken[:, None], steps)
        way = np.sign(velocity) * self._period * (k * np.abs(velocity) - 0.5 * k * (k + 1) * less)
        return taken * self._period, np.clip(sent[-1] + way, self._lower, self._upper)
