"""A device that may be slow or hang, as a teleoperator that never waits: it is read in a thread of its own."""

import threading
import time as clock
from dataclasses import replace

from athena_vla.control.teleoperator import Source, Teleoperator, Wish
from athena_vla.embodiment import Array


class Polled:
    """`read` returns what the device said last, with the age of that; a device that hangs grows old.

    Use as a context manager. An exception of the device is raised by the next `read`, once for each one.
    """

    def __init__(self, device: Teleoperator, period: float) -> None:
        self._device, self._period = device, period  # [s]
        self.source: Source = device.source
        self._lock, self._wake, self._done = threading.Lock(), threading.Event(), threading.Event()
        self._asked: tuple[Array, float] | None = None
        self._wish, self._heard = Wish(False), clock.monotonic()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._poll, name="teleoperator", daemon=True)

    def read(self, command: Array, time: float, /) -> Wish:
        with self._lock:
            self._asked = command, time
            wish, heard, problem = self._wish, self._heard, self._problem
            self._problem = None
        self._wake.set()
        if problem is not None:
            raise problem
        return replace(wish, age=wish.age + clock.monotonic() - heard)

    def _poll(self) -> None:
        while not self._done.is_set():
            self._wake.wait(self._period)
            self._wake.clear()
            with self._lock:
                asked = self._asked
            if asked is None:
                continue
            try:
                wish = self._device.read(*asked)
            except Exception as error:  # the loop says it
                with self._lock:
                    self._problem, self._wish = error, Wish(False)
                continue
            with self._lock:
                self._wish, self._heard = wish, clock.monotonic()

    def __enter__(self) -> "Polled":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._wake.set()
        self._thread.join(1.0)  # one that hangs is left behind: it holds nothing of ours
