"""Taking over with the keys of the terminal: one joint at a time, in small steps. Knows keys and poses, no terminal."""

import threading

import numpy as np

from athena_vla.control.runtime import Robot
from athena_vla.control.teleoperator import Source, Wish
from athena_vla.embodiment import Array
from athena_vla.errors import SafetyError

KEYS = "t: take over, hand back   [ ]: joint before, after   - +: move it"


class Keyboard:
    """`press` may be called from any thread. `step` is what one key press moves a column by, in its unit."""

    source: Source = "human"

    def __init__(self, robot: Robot, step: str = "0.05") -> None:
        self._step = float(step)
        if not 0 < self._step <= 0.5:
            raise SafetyError(f"A key press moves a joint by more than 0 and at most 0.5, not {step}.")
        columns = robot.embodiment.command_columns
        self._names, self._lower, self._upper = robot.embodiment.command_names, columns.lower, columns.upper
        self._lock = threading.Lock()
        self._engaged, self._selected = False, 0
        self._moves = np.zeros(len(self._names))  # pressed, and not yet in the pose
        self._pose: Array | None = None

    def press(self, key: str) -> str:
        """What a key does, in words; "" for a key that is none of `KEYS`."""
        with self._lock:
            if key == "t":
                self._engaged, self._pose = not self._engaged, None
                self._moves[:] = 0.0
                return f"take over: '{self._names[self._selected]}' is selected" if self._engaged else "hand back"
            if key in "[]":
                self._selected = (self._selected + (1 if key == "]" else -1)) % len(self._names)
                return f"'{self._names[self._selected]}' is selected"
            if key in "+=-" and self._engaged:
                self._moves[self._selected] += -self._step if key == "-" else self._step
                return f"'{self._names[self._selected]}' {key}"
            return ""

    def read(self, command: Array, time: float, /) -> Wish:
        with self._lock:
            if not self._engaged:
                return Wish(False)
            pose = command if self._pose is None else self._pose
            self._pose = np.clip(pose + self._moves, self._lower, self._upper)
            self._moves[:] = 0.0
            return Wish(True, self._pose)
