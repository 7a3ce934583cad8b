"""What the safety filter changed, by kind and joint: counts, and a JSON line for each event where one is wanted.

Knows names and numbers; decides nothing.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.embodiment import Array

WHOLE = "*"  # the joint name under which faults of the whole vector are counted
Event = dict[str, Any]  # {"t": [s], "kind": str, "level": str, "joints": {name: change in rad}}
Log = Callable[[Event], None]


class Interventions:
    """The ledger of one filter; `kinds` are those that are counted joint by joint."""

    def __init__(self, joint_names: tuple[str, ...], kinds: tuple[str, ...], log: Log | None) -> None:
        self._names = joint_names
        self._log = log
        self._kinds = kinds
        self._limits = np.zeros((len(kinds), len(joint_names)), dtype=np.int64)
        self._columns = np.arange(len(joint_names))
        self._faults: Counter[str] = Counter()
        self.touched_steps = 0  # steps with at least one intervention

    def fault(self, kind: str, t: float, level: str) -> None:
        """Something wrong with the whole step."""
        self._faults[kind] += 1
        self.touched_steps += 1
        if self._log is not None:
            self._log({"t": float(t), "kind": kind, "level": level, "joints": {}})

    def limits(self, kinds: NDArray[np.intp], joints: NDArray[np.bool_], amount: Array, t: float, level: str) -> None:
        """Joints that the limit of their kind kept from their target in this step, and by how much."""
        self._limits[kinds, self._columns] += joints
        if self._log is not None:
            for kind in np.unique(kinds[joints]):
                self._write(int(kind), joints & (kinds == kind), amount, t, level)

    def limit(self, kind: int, joints: NDArray[np.bool_], amount: Array, t: float, level: str) -> None:
        """The same for joints kept from their target by one limit."""
        self._limits[kind] += joints
        self._write(kind, joints, amount, t, level)

    def _write(self, kind: int, joints: NDArray[np.bool_], amount: Array, t: float, level: str) -> None:
        if self._log is not None and joints.any():
            names = {self._names[j]: float(amount[j]) for j in np.flatnonzero(joints)}
            self._log({"t": float(t), "kind": self._kinds[kind], "level": level, "joints": names})

    def by_kind(self) -> Counter[str]:
        totals = zip(self._kinds, self._limits.sum(axis=1).tolist(), strict=True)
        return Counter({kind: count for kind, count in (*totals, *self._faults.items()) if count})

    def by_joint(self) -> dict[str, dict[str, int]]:
        table = {kind: {WHOLE: count} for kind, count in sorted(self._faults.items())}
        for kind, row in zip(self._kinds, self._limits.tolist(), strict=True):
            joints = {name: count for name, count in zip(self._names, row, strict=True) if count}
            if joints:
                table[kind] = joints
        return table


class JsonLines:
    """A log that appends one JSON object per event to a file; use as a context manager."""

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def __call__(self, event: Event) -> None:
        # JSON has no NaN: a change that is not a number is written as null.
        finite = {name: x if abs(x) < float("inf") else None for name, x in event["joints"].items()}
        stamp = event["t"] if abs(event["t"]) < float("inf") else None
        self._file.write(json.dumps({**event, "t": stamp, "joints": finite}, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
