"""What a person says to a running robot: stop, go on, I am here. Safe to call from any thread or signal handler.

Knows words and times; what stopping means is the loop's business. After an emergency stop, and after a fault at which
the robot came to rest, nothing moves until somebody acknowledges it.
"""

import threading
import time
from collections.abc import Callable

from athena_vla.errors import SafetyError


class Operator:
    """`latch`: a fault that reached standstill needs an acknowledgement; an emergency stop always does.

    `heartbeat` [s] is how long the robot goes on without `beat`; None: nobody has to be there.
    """

    def __init__(
        self, *, latch: bool = True, heartbeat: float | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        if heartbeat is not None and not 0 < heartbeat < float("inf"):
            raise SafetyError(f"An operator's heartbeat must come within a positive time, not {heartbeat} s.")
        self.latches, self._heartbeat, self._now = latch, heartbeat, now
        self._lock = threading.RLock()  # a signal handler may interrupt its own thread
        self._stopped = ""
        self._latched = ""
        self._acknowledged = False
        self._beat = now()

    def stop(self, why: str = "stop() was called") -> None:
        """Brake now and stay at rest until `acknowledge`."""
        with self._lock:
            self._stopped, self._acknowledged = why, False

    def acknowledge(self) -> bool:
        """The reason is gone and nobody is in the way; False where there was nothing to acknowledge."""
        with self._lock:
            self._acknowledged = bool(self._stopped or self._latched)
            self._beat = self._now()
            return self._acknowledged

    def beat(self) -> None:
        """Somebody is still watching."""
        with self._lock:
            self._beat = self._now()

    @property
    def waiting_for(self) -> str:
        """Why the robot waits for an acknowledgement; "" where it does not."""
        with self._lock:
            return self._stopped or self._latched

    def fault(self) -> str:
        """Name of the fault that keeps the robot from following; "" where it may."""
        with self._lock:
            if self._stopped:
                return "stopped"
            if self._heartbeat is not None and self._now() - self._beat > self._heartbeat:
                return "heartbeat"
            return "latched" if self._latched else ""

    def came_to_rest(self, why: str) -> bool:
        """The robot stands still because of a fault; whether that was latched just now."""
        with self._lock:
            if not self.latches or self._latched or self._stopped:
                return False
            self._latched, self._acknowledged = why, False
            return True

    def hold(self, why: str) -> None:
        """Come to rest by the fallback levels, and wait for an acknowledgement whatever was configured."""
        with self._lock:
            if not self._latched:
                self._latched, self._acknowledged = why, False

    def acknowledged(self) -> bool:
        """Whether there is an acknowledgement to be acted on."""
        with self._lock:
            return self._acknowledged

    def clear(self) -> str:
        """The robot is ready to move again; the reason for which it had stopped."""
        with self._lock:
            why = self._stopped or self._latched
            self._stopped, self._latched, self._acknowledged = "", "", False
            return why

    def restart(self) -> None:
        """A new run begins: the heartbeat counts from now; a stop that was called before still holds."""
        with self._lock:
            self._latched, self._beat = "", self._now()
