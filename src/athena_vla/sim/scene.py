"""One simulated situation as plain data: what stands on the table, what is asked, how the world looks.

Knows nothing of MuJoCo. A scene is a value: equal scenes give equal worlds, equal pixels and equal physics.
"""

from dataclasses import dataclass, field
from typing import Literal

from athena_vla.errors import SimulationError

Vector = tuple[float, float, float]
Side = Literal["left", "right", "both", ""]
Split = Literal["train", "test", "base"]

COLOURS: dict[str, Vector] = {
    "red": (0.82, 0.09, 0.09),
    "green": (0.08, 0.58, 0.16),
    "blue": (0.10, 0.22, 0.86),
    "yellow": (0.95, 0.80, 0.08),
}
SHAPES = ("cube", "ball", "cylinder")
HEIGHTS = {"cube": 0.070, "ball": 0.080, "cylinder": 0.120}  # [m] at size 1
OBJECTS_ON_TABLE = 3

TABLE_HEIGHT = 0.76  # [m]
TABLE_FRONT = 0.25  # [m] in front of the pelvis


@dataclass(frozen=True)
class SceneObject:
    """A coloured shape standing on the table."""

    shape: str
    colour: str
    x: float  # [m] in front of the pelvis
    y: float  # [m] to the left of the pelvis
    yaw: float = 0.0  # [rad]
    size: float = 1.0  # factor on the nominal size

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.colour not in COLOURS:
            raise SimulationError(
                f"There is no '{self.colour} {self.shape}'. Colours: {', '.join(COLOURS)}; shapes: {', '.join(SHAPES)}."
            )

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def height(self) -> float:
        return HEIGHTS[self.shape] * self.size  # [m]

    @property
    def centre(self) -> Vector:
        """World position of the middle of the object as it is placed. [m]"""
        return (self.x, self.y, TABLE_HEIGHT + self.height / 2)


@dataclass(frozen=True)
class Goal:
    """What is asked for: a task family, the object it is about, or the side of the body."""

    family: str
    target: int | None = None  # index into the scene's objects
    side: Side = ""


@dataclass(frozen=True)
class Appearance:
    """Everything that changes the image and nothing else."""

    table: Vector = (0.62, 0.55, 0.47)
    floor: Vector = (0.42, 0.44, 0.47)
    background: Vector = (0.70, 0.76, 0.82)
    light_direction: Vector = (-0.3, 0.2, 0.93)  # towards the light, world frame, unit length
    ambient: float = 0.45
    diffuse: float = 0.60
    object_tints: tuple[Vector, ...] = ((0.0, 0.0, 0.0),) * OBJECTS_ON_TABLE  # added to the nominal colour
    camera_offset: Vector = (0.0, 0.0, 0.0)  # [m], torso frame
    camera_tilt: Vector = (0.0, 0.0, 0.0)  # [rad], small rotation about the torso's axes


@dataclass(frozen=True)
class Scene:
    """A situation to act in; `goal` is what success is judged on, `instruction` what the robot is told."""

    seed: int
    split: Split
    objects: tuple[SceneObject, ...]
    goal: Goal
    instruction: str
    phrasings: tuple[str, ...] = ()  # other wordings of the same request
    appearance: Appearance = field(default_factory=Appearance)
    start: tuple[float, ...] = ()  # [rad], added to the default pose; () = exactly the default pose

    def __post_init__(self) -> None:
        if len(self.objects) != OBJECTS_ON_TABLE:
            raise SimulationError(f"A scene has {OBJECTS_ON_TABLE} objects, this one has {len(self.objects)}.")
        names = [o.name for o in self.objects]
        if len(set(names)) != len(names):
            raise SimulationError(f"The objects of a scene must be distinct, these are {names}.")
        if self.goal.target is not None and not 0 <= self.goal.target < len(self.objects):
            raise SimulationError(f"The goal is object {self.goal.target} of {len(self.objects)}.")

    @property
    def target(self) -> SceneObject | None:
        return None if self.goal.target is None else self.objects[self.goal.target]
