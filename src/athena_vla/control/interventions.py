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


# Which limit (index into the kinds) bound first: (wish, chosen, v [n, J], braking bounds [n, 2, J], the most
# that the velocity may change [n, J], all in [rad/s]) -> [n, J]
Reason = Callable[[Array, Array, Array, Array, Array], NDArray[np.intp]]
PENDING = 256  # steps that wait to be counted together: counting one costs as much as filtering one
UNCHANGED = 1e-12  # [rad] an output this close to its target counts as untouched


class Interventions:
    """Counts what one filter changed, and why; `kinds` are those that are counted joint by joint."""

    def __init__(self, joint_names: tuple[str, ...], kinds: tuple[str, ...], reason: Reason, log: Log | None) -> None:
        self._names, self._kinds, self._reason, self._log = joint_names, kinds, reason, log
        self._counts = np.zeros((len(kinds), len(joint_names)), dtype=np.int64)
        self._faults: Counter[str] = Counter()
        self._touched = 0
        self._pending = np.empty((PENDING, 9, len(joint_names)))
        self._flat = self._pending.reshape(PENDING, -1)
        self._waiting = 0

    @property
    def touched_steps(self) -> int:
        """Steps with at least one intervention."""
        self._settle(0.0, "")
        return self._touched

    def fault(self, kind: str, t: float, level: str) -> None:
        """Something wrong with the whole step."""
        self._faults[kind] += 1
        self._touched += 1
        if self._log is not None:
            self._log({"t": float(t), "kind": kind, "level": level, "joints": {}})

    def limits(self, t: float, level: str, rows: tuple[Array, ...], reach: Array) -> None:
        """A step that may have been kept from its target: `rows` [J] are the target, the same inside the limits, the
        command [rad]; wish, chosen and last velocity and its largest change [rad/s]; `reach` the braking bounds [2, J].
        """
        np.concatenate((*rows, *reach), out=self._flat[self._waiting])
        self._waiting += 1
        if self._log is not None or self._waiting == PENDING:
            self._settle(t, level)

    def limit(self, kind: str, joints: NDArray[np.bool_], amount: Array, t: float, level: str) -> None:
        """Joints changed by `amount` [J] for one reason."""
        self._count(self._kinds.index(kind), joints[None], amount, t, level)

    def _settle(self, t: float, level: str) -> None:
        """Count what waits; with a log that is always one step, the one at `t`."""
        rows = self._pending[: self._waiting]
        self._waiting = 0
        target, inside, command, wish, chosen, v, step = (rows[:, k] for k in range(7))
        amount = np.abs(command - target)
        changed = amount > UNCHANGED
        self._touched += int(changed.any(axis=1).sum())
        if not changed.any():
            return
        self._count(self._kinds.index("position"), (inside != target) & changed, amount[0], t, level)
        late = (command != inside) & changed
        kinds = self._reason(wish, chosen, v, rows[:, 7:], step)
        for kind in range(int(kinds.min()), int(kinds.max()) + 1):
            self._count(kind, late & (kinds == kind), amount[0], t, level)

    def _count(self, kind: int, joints: NDArray[np.bool_], amount: Array, t: float, level: str) -> None:
        self._counts[kind] += joints.sum(axis=0)
        if self._log is not None and joints.any():
            names = {self._names[j]: float(amount[j]) for j in np.flatnonzero(joints[0])}
            self._log({"t": float(t), "kind": self._kinds[kind], "level": level, "joints": names})

    def by_kind(self) -> Counter[str]:
        self._settle(0.0, "")
        totals = zip(self._kinds, self._counts.sum(axis=1).tolist(), strict=True)
        return Counter({kind: count for kind, count in (*totals, *self._faults.items()) if count})

    def by_joint(self) -> dict[str, dict[str, int]]:
        self._settle(0.0, "")
        table = {kind: {WHOLE: count} for kind, count in sorted(self._faults.items())}
        for kind, row in zip(self._kinds, self._counts.tolist(), strict=True):
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
