"""Columns: what each place of a state, action or command vector stands for, whether joint or channel."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.channels import Channel
from athena_vla.robot_parts import Joint

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RobotColumns:
    """What the places of one vector stand for, in its order; arrays are [n] in each column's own unit."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    lower: Array
    upper: Array
    default: Array
    max_rate: Array  # [unit/s]; 0 for what is only observed
    max_rate_derivative: Array  # [unit/s^2]

    @classmethod
    def of(cls, joints: Iterable[Joint], channels: tuple[Channel, ...]) -> "RobotColumns":
        """Joints first, channels after them, each in the order of the robot's description."""
        chosen = tuple(joints)
        both = (*chosen, *channels)
        return cls(
            names=tuple(x.name for x in both),
            units=tuple(x.unit for x in both),
            lower=fixed(x.lower for x in both),
            upper=fixed(x.upper for x in both),
            default=fixed(x.default for x in both),
            max_rate=fixed((*(j.max_velocity for j in chosen), *(c.max_rate for c in channels))),
            max_rate_derivative=fixed(
                (*(j.max_acceleration for j in chosen), *(c.max_rate_derivative for c in channels))
            ),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def span(self) -> Array:
        return self.upper - self.lower

    def wrong_width(self, shape: tuple[int, ...]) -> str:
        """What a vector of these columns looks like, and which ones an array of that shape lacks."""
        said = f"it is {len(self)} values: {', '.join(self.names)}"
        if len(shape) != 1 or not 0 < shape[0] < len(self):
            return said
        return f"{said}. In that order, {shape[0]} values lack {', '.join(self.names[shape[0] :])}"

    def places(self, names: Iterable[str]) -> NDArray[np.intp]:
        """Where each name is among these; -1 for one that is not."""
        place = {name: i for i, name in enumerate(self.names)}
        return np.array([place.get(n, -1) for n in names], dtype=np.intp)

    def taken(self, values: NDArray[Any], place: NDArray[np.intp]) -> NDArray[Any]:
        """[..., n] these columns from places of another vector [..., m]; a column without one stands at its default."""
        chosen = values[..., place]
        unseen = place < 0
        if unseen.any():
            chosen[..., unseen] = self.default[unseen]
        return chosen


def fixed(values: Iterable[float]) -> Array:
    """A constant [n] that nobody can change."""
    column = np.array(list(values), dtype=np.float64)
    column.setflags(write=False)
    return column
