"""Ctrl-C and SIGTERM as a word to read instead of an exception in the middle of a step.

Only the main thread receives signals; elsewhere this does nothing.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, `word` names the first signal that came; the old handlers return on leaving."""

    def __init__(self, wanted: bool) -> None:
        self.word = ""
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if self._wanted:
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.word = self.word or signal.Signals(number).name

    def pass_on(self) -> None:
        """Do what the signal asks for, now that the robot is at rest. Raises `KeyboardInterrupt` or `SystemExit`."""
        if self.word == "SIGINT":
            raise KeyboardInterrupt
        if self.word:
            raise SystemExit(128 + signal.Signals[self.word].value)
