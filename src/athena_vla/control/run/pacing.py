"""When the next command is given: never less than one period after the last one, at an instant that is known before.

Knows a clock and a way to sleep; nothing of robots. The end of a wait is spun: a sleeping process wakes up late. Just
before, other threads get their turn, so that none takes it between the stamp of a command and the command.
"""

import sys
import time
from collections.abc import Callable

SPIN = 3e-4  # [s] before the slot at which sleeping ends
LEAD = 2e-4  # [s] given to making a late command anew
ON_TIME = 5e-6  # [s] a command that is later than this is made anew
HANDING_OVER = 2.5e-5  # [s] from the look at the clock to the driver, caches cold (measured: 9 us, seldom 11)
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
        self._before, self._met, self._switches = self._last, self._last, 0
        self._paused = False  # handing over to the driver took longer than that
        self.interrupted = False  # the last command reached the driver at an instant that nobody knows

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
        self._sleep(max(remaining - SPIN, 0.0))
        self._switches = _preemptions()  # not later: asking takes longer than a command may be late
        now = self._now()
        while now < self._slot:
            now = self._now()
        if now - self._slot <= ON_TIME or self._again >= AGAIN:
            self._met = now
            return None
        if self._again == 0:
            self.overruns += 1
        self._again += 1
        self._slot = now + LEAD
        return self._slot - self._last

    def stamp(self) -> None:
        """The driver is given the command now: the stamp is the look at the clock that found it in time.

        A look of its own here could come after a pause, and be later than the command was made for.
        """
        self._before, self._last = self._last, self._met
        self._paused = self._now() - self._met > HANDING_OVER

    def given(self) -> float:
        """The driver has it: when that was [s].

        Where the system, or the machine below it, took the processor away in between, the driver got it at some time
        until now, and now counts.
        """
        self.interrupted = self._paused or _preemptions() != self._switches
        if self.interrupted:
            self._last = self._now()
        return self._last

    @property
    def since(self) -> float:
        """[s] between the last two commands."""
        return self._last - self._before

    def wait(self) -> None:
        """For a caller who gives a command just before: return when the next one is due."""
        self._met = self._now()
        self.stamp()
        self.next()
        while self.arrive() is not None:
            pass


if sys.platform == "linux":
    import resource

    def _preemptions() -> int:
        """Times that the system took the processor away from this thread."""
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw

else:

    def _preemptions() -> int:
        return 0
