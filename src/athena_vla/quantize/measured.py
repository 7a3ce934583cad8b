"""What rounding does to the actions, as manifests and reports hold it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JointError:
    """Of one joint, over rows and frames [rad]."""

    mean: float
    p95: float
    max: float


@dataclass(frozen=True)
class ActionError:
    """How far two sets of chunks lie apart, and how much rougher the first is."""

    frames: int
    mean_rad: float
    p95_rad: float
    max_rad: float
    per_joint_rad: Mapping[str, JointError]
    roughness_rad: float
    roughness_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """JSON, as manifests and reports hold it."""
        return dataclasses.asdict(self)
