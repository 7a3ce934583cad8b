"""What an episode depends on and what came of it, as plain data; needs neither simulator nor model to be read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from athena_vla.embodiment import Embodiment, Owner
from athena_vla.sim.scene import Split

SCENES = "episodes in the simulator"  # what progress calls them


@dataclass(frozen=True)
class Setup:
    """What all episodes of an evaluation share; together with actor and scene number it decides every number."""

    robot: str = "athena"
    split: Split = "test"
    duration: float = 6.0  # [s] of the robot's clock; an episode ends early once its outcome is decided
    replan_every: int = 8  # control steps: the whole chunk, as on the robot
    latency: float = 0.0  # [s] simulated time between observation and answer
    image_size: tuple[int, int] = (96, 96)  # (height, width) [px]
    renderer: str = "auto"
    # In the simulator the policy drives the whole body; on a real humanoid the legs belong to a balance controller.
    owners: Mapping[str, Owner] = field(default_factory=lambda: {"legs": "policy"})


def driven_by_policy(robot: Embodiment) -> dict[str, Owner]:
    """Owners with which the policy drives what a balance controller drives on the real robot."""
    return {g: "policy" for g, names in robot.groups.items() if any(robot.joint(n).owner == "balance" for n in names)}


@dataclass(frozen=True)
class EpisodeResult:
    """What one actor did in one scene. All but `wall` is the same in every run."""

    actor: str
    scene: int
    task: str
    instruction: str  # what the goal is judged by; an ablated actor was told something else
    success: bool
    time_to_success: float | None  # [s] of the robot's clock
    commands: int  # motor commands given
    touched: int  # commands the safety filter changed
    interventions: dict[str, int]  # by kind
    interventions_by_joint: dict[str, dict[str, int]]  # kind -> joint -> count
    violations: int  # counted from the commands, not asked of the filter
    worst_velocity: float  # share of the limit
    worst_acceleration: float
    errors: tuple[str, ...]  # refused chunks and failing calls, in words
    wall: dict[str, float]  # [s] total, acting and mean per act: differs from run to run
    cause: str = ""  # why it is no success, one of `failures.CAUSES`
    missed_by: float | None = None  # the least that was lacking to the goal, in `unit`; None where nothing measures it
    unit: str = ""  # m or deg

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "EpisodeResult":
        return cls(**{**raw, "errors": tuple(raw["errors"])})
