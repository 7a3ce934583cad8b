"""When the next command is given: never less than one period after the last one, at an instant that is known before.

Knows a clock and a way to sleep; nothing of robots. The end of a wait is spun: a sleeping process wakes up late.
"""

import time
from collections.abc import Callable

SPIN = 3e-4  # [s] before the slot at which sleeping ends
LEAD = 2e-4  # [s] given to making a late command anew
ON_TIME = 5e-6  # [s] a command that is later than this is made anew
AGAIN = 20  # times that a command is made anew before it is given as it is


class Pacer:
    """Slots of one period. `now` and `sleep` can be those of a simulated clock."""

    def __init__(
        self,
        period: float,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period, self._now, self._sleep = period, now, sleep
        self.overruns = 0  # commands that could not be given in their slot
        self._last = now()
        self._slot = self._last + period
        self._again = 0

    def next(self, at_least: float = 0.0) -> float:
        """[s] from the last command to the slot of the next one, one period or more."""
        now = self._now()
        self._slot = self._last + max(self.period, at_least)
        self._again = 0
        if now > self._slot:  # commands that were missed are not made up for
            self.overruns += 1
            self._slot = now + LEAD
        return self._slot - self._last

    @property
    def last(self) -> float:
        """[s] when the last command was given."""
        return self._last

    @property
    def ahead(self) -> float:
        """[s] until the slot."""
        return self._slot - self._now()

    def arrive(self) -> float | None:
        """Wait for the slot; None where it was met, else the time from the last command to a later slot [s]."""
        remaining = self._slot - self._now()
        if remaining > SPIN:
            self._sleep(remaining - SPIN)
        now = self._now()
        while now < self._slot:
            now = self._now()
        if now - self._slot <= ON_TIME or self._again >= AGAIN:
            return None
        if self._again == 0:
            self.overruns += 1
        self._again += 1
        self._slot = now + LEAD
        return self._slot - self._last

    def stamp(self) -> float:
        """The command is given now: the time since the one before it [s]."""
        now = self._now()
        since, self._last = now - self._last, now
        return since

    def wait(self) -> None:
        """For a caller who gives a command just before: return when the next one is due."""
        self.stamp()
        self.next()
        while self.arrive() is not None:
            pass
