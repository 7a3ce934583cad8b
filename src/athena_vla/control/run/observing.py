"""Which observations may be used: whole, possible for this robot, and fresh by their own stamps.

Knows a robot's `observe` and its clock; nothing of chunks or limits. A driver's exception is a missing observation.
"""

from collections.abc import Callable

import numpy as np

from athena_vla.control.plausible import implausible
from athena_vla.embodiment import Embodiment, Observation
from athena_vla.errors import AthenaError

AHEAD = 1e-3  # [s] that a stamp may be in the future: stamps in whole milliseconds are common


class Watcher:
    """`fault` is "observation" from the moment on at which the last good one is older than `max_age` [s]."""

    def __init__(self, body: Embodiment, observe: Callable[[], Observation], max_age: float) -> None:
        self._body, self._observe, self._max_age = body, observe, max_age
        self._newest = -np.inf  # [s] stamp of the newest one that was used
        self._failing = False
        self.problem = ""  # of the last look

    def look(self, clock: Callable[[], float]) -> Observation | None:
        """The latest observation, or None where it cannot be used; `problem` says why."""
        try:
            observation = self._observe().require(self._body)
            now = clock()
            self.problem = self._judge(observation, now)
        except AthenaError as error:
            self.problem = str(error)
        except Exception as error:  # whatever a driver raises must end in the fallback levels, not in a dead loop
            self.problem = f"{type(error).__name__}: {error}"
        else:
            if not self.problem:
                self._newest, self._failing = max(self._newest, observation.time), False
                return observation
        self._failing = True
        return None

    def first(self, observation: Observation, now: float) -> str:
        """Begin with an observation; why it cannot be used, "" where it can."""
        self._newest = observation.time
        return self._judge(observation, now)

    def fault(self, now: float) -> str:
        """ "observation" where the last look failed and the last good observation is too old at `now`."""
        return "observation" if self._failing and not now - self._newest <= self._max_age else ""

    def clock_stepped(self, now: float) -> None:
        """The robot's clock is another one now: earlier stamps say nothing, and ages count from here."""
        self._newest, self._failing = now, False

    def _judge(self, observation: Observation, now: float) -> str:
        age = now - observation.time
        if not np.isfinite(age):
            return f"its stamp {observation.time} is no time"
        if age > self._max_age:
            return (
                f"it is {age:.3g} s old by its own stamp, {self._max_age:g} s are allowed: "
                "the camera or its driver stands still"
            )
        if age < -AHEAD:
            return f"its stamp is {-age:.3g} s in the future: the clocks of driver and robot differ"
        if observation.time < self._newest - AHEAD:
            return f"its stamp is {self._newest - observation.time:.3g} s before the one used last"
        return implausible(self._body, observation.state)
