"""What only a simulator knows of an episode: the task, the objects and where they were, contacts, and its verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Phase:
    """A part of a scripted motion."""

    name: str
    start: float  # [s]
    stop: float  # [s]


@dataclass(frozen=True)
class SimulatorTruth:
    """The simulator's record beside the robot's own; formats that cannot hold it drop it."""

    task: Mapping[str, Any] = field(default_factory=dict)  # family, side, target
    split: str = ""
    seed: int | None = None
    failed_on_purpose: str = ""  # how a demonstration was made to fail; "" where it was not
    objects: tuple[Mapping[str, Any], ...] = ()  # what each object is: shape, colour, size, place
    camera: Mapping[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    success_time: float | None = None  # [s], None where it never came
    judged: str = ""
    contacts: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # name -> [T] or [T, 3] touched, or [N]
    object_positions: NDArray[np.float64] | None = None  # [T, N, 3] [m], world frame

    def cut(self, start: int, stop: int) -> "SimulatorTruth":
        """The truth of rows `start` to `stop`; times keep counting from where the recording began."""
        places = self.object_positions
        return replace(
            self,
            contacts={k: v[start:stop] for k, v in self.contacts.items()},
            object_positions=None if places is None else places[start:stop],
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON as the recordings of the simulator hold it."""
        measured: dict[str, Any] = {
            "phases": [vars(p) for p in self.phases],
            "success_time": self.success_time,
            "judged": self.judged,
            **{k: v.tolist() for k, v in self.contacts.items()},
        }
        if self.object_positions is not None:
            measured["object_positions"] = self.object_positions.tolist()
        return {
            "camera": dict(self.camera),
            "seed": self.seed,
            "split": self.split,
            "task": dict(self.task),
            "objects": [dict(o) for o in self.objects],
            "failed_on_purpose": self.failed_on_purpose,
            "simulator": measured,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "SimulatorTruth | None":
        """Inverse of `to_dict`; None where no simulator says anything or what is there has another shape."""
        measured = raw.get("simulator")
        if not isinstance(measured, Mapping):
            return None
        try:
            places, time = measured.get("object_positions"), measured.get("success_time")
            return cls(
                task=dict(raw.get("task") or {}),
                split=str(raw.get("split") or ""),
                seed=raw.get("seed"),
                failed_on_purpose=str(raw.get("failed_on_purpose") or ""),
                objects=tuple(dict(o) for o in raw.get("objects") or ()),
                camera=dict(raw.get("camera") or {}),
                phases=tuple(Phase(**p) for p in measured.get("phases") or ()),
                success_time=None if time is None else float(time),
                judged=str(measured.get("judged") or ""),
                contacts={k: np.asarray(v) for k, v in measured.items() if "contact" in k and isinstance(v, list)},
                object_positions=None if places is None else np.asarray(places, np.float64),
            )
        except (TypeError, ValueError):
            return None


TRUTH_KEYS = frozenset(SimulatorTruth().to_dict())
