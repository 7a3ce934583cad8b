"""Ctrl-C and SIGTERM: work that can stop at a good place is asked to, and whoever stops says what is kept."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Work that was interrupted; `str()` is a sentence about what is kept and how to go on, or empty."""

    def __init__(self, kept: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(kept)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status, by the shell's convention."""
        return 128 + self.number


class Stop:
    """Whether somebody asked, and by which signal."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    @property
    def asked(self) -> bool:
        return bool(self.numbers)

    def interrupted(self, kept: str) -> Interrupted:
        return Interrupted(kept, self.numbers[0] if self.numbers else signal.SIGINT)


@contextmanager
def until_asked(place: str) -> Iterator[Stop]:
    """Let a signal set `asked`; `place` says on standard error where the work will stop.

    The same signal again interrupts at once; another kind does not, since a group of processes may get both. Outside
    the main thread, which alone is sent signals, nothing is changed.
    """
    stop, own = Stop(), os.getpid()

    def ask(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a forked worker: the process that started it decides
            return
        if number in stop.numbers:
            raise Interrupted(number=number)
        if not stop.asked:
            print(f"\nathena: stopping {place}; a second time stops at once.", file=sys.stderr, flush=True)
        stop.numbers.append(number)

    with _handled(ask, _SIGNALS):
        yield stop


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM unwind the work as Ctrl-C does, so that half-written files go and what is kept is said."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number=number)

    with _handled(end, (signal.SIGTERM,)):
        yield


@contextmanager
def _handled(handler: "signal._HANDLER", numbers: tuple[int, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
