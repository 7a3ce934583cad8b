"""Which situations occur: balanced, seeded sampling of scenes for training, test and the generic base.

Knows nothing of MuJoCo; feasibility (within reach, far enough apart) is geometry on numbers.
"""

from dataclasses import replace
from math import acos, atan2, cos, degrees, hypot, pi, sin, sqrt

import numpy as np

from athena_vla.errors import SimulationError, UnknownName
from athena_vla.sim.scene import (
    COLOURS,
    OBJECTS_ON_TABLE,
    SHAPES,
    Appearance,
    Goal,
    Scene,
    SceneObject,
    Side,
    Split,
    Vector,
)
from athena_vla.sim.task_language import (
    BASE_FAMILIES,
    DEMO_FAMILIES,
    HOLDING_OUT,
    OBJECT_FAMILIES,
    SIDES,
    choose,
    held_out_objects,
    wordings,
)

SPLITS: tuple[Split, ...] = ("train", "test", "base")
JOINTS = 23

# Where objects stand. [m], pelvis frame
AREA_X = (0.34, 0.50)
AREA_Y = (-0.30, 0.30)
SPACING = 0.16  # [m], between any two objects
MIDDLE = 0.05  # [m], a hand's object is clearly on its side
PUSH_REACH = 0.43  # [m], the far end of where pushing can start
PUSH_LANE = 0.13  # [m], sideways, free of other objects
EYE = (0.10, 0.0, 1.30)  # [m], head camera in the default pose
KNEEL_APART = 16.0  # [deg], bearings of two objects
LOOK_APART = 12.0  # [deg], seen from the eye
LOOK_OFF_AXIS = 10.0  # [deg], a robot that stands still does not look at it
EYE_PITCH = 52.0  # [deg] down
LOOK_NEAREST = 0.39  # [m] from the waist's axis: nearer objects need more than the waist can bend

START_NOISE = 0.03  # [rad]
_MAX_TRIES = 2000


def sample_scene(seed: int, split: Split) -> Scene:
    """The scene of that number: the same for ever, balanced over the families in every block of consecutive seeds.

    `test` scenes combine verbs with objects (or wordings) that `train` never combines, `base` has other verbs.
    Raises `UnknownName`, `SimulationError` where no arrangement is found.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    stream = SPLITS.index(split)
    families = BASE_FAMILIES if split == "base" else DEMO_FAMILIES
    block, place = divmod(seed, len(families))
    family = families[int(np.random.default_rng([stream, 1, block]).permutation(len(families))[place])]
    return sample_task(family, seed, split)


def sample_task(family: str, seed: int, split: Split) -> Scene:
    """A scene of one family; `sample_scene` says which family a seed belongs to."""
    rng = np.random.default_rng([SPLITS.index(split), 2, seed])
    held_out = split == "test"
    sides = SIDES.get(family, ("",))
    side: Side = sides[int(rng.integers(len(sides)))]
    for _ in range(_MAX_TRIES):
        objects = _objects(rng, family, held_out)
        goal = Goal(family, 0 if family in OBJECT_FAMILIES else None, side)
        if _is_feasible(objects, goal):
            break
    else:
        raise SimulationError(f"No arrangement of objects was found for '{family}', seed {seed}, split {split}.")
    # The goal must not always be the first object of the scene.
    order = [int(i) for i in rng.permutation(OBJECTS_ON_TABLE)]
    objects = tuple(objects[i] for i in order)
    if goal.target is not None:
        goal = replace(goal, target=order.index(0))
    name = "" if goal.target is None else objects[goal.target].name
    texts = choose(wordings(family, name, side, held_out=held_out), 3, rng)
    return Scene(
        seed=seed,
        split=split,
        objects=objects,
        goal=goal,
        instruction=texts[0],
        phrasings=texts[1:],
        appearance=sample_appearance(rng),
        start=tuple(float(x) for x in rng.uniform(-START_NOISE, START_NOISE, JOINTS)),
    )


def other_instruction(scene: Scene) -> Scene:
    """The same scene and goal, but the robot is told the name of another object that stands there.

    Success is still judged on the original goal. Raises `SimulationError` for a task without an object.
    """
    target = scene.target
    if target is None:
        raise SimulationError(f"'{scene.instruction}' names no object, so no other one can be named instead.")
    others = [o for o in scene.objects if o is not target]
    differently_coloured = [o for o in others if o.colour != target.colour]
    named = (differently_coloured or others)[scene.seed % len(differently_coloured or others)]
    return replace(scene, instruction=scene.instruction.replace(target.name, named.name), phrasings=())


def twin(scene: Scene) -> Scene | None:
    """The same scene with another of its objects as the goal, told so; None where no other one can be the goal.

    In `train` no combination is made that the test holds out.
    """
    target = scene.target
    if target is None:
        return None
    family = scene.goal.family
    reserved = held_out_objects(family) if scene.split == "train" else frozenset()
    possible = [
        place
        for place, other in enumerate(scene.objects)
        if other is not target
        and (other.colour, other.shape) not in reserved
        and _is_feasible(scene.objects, replace(scene.goal, target=place))
    ]
    if not possible:
        return None
    place = possible[scene.seed % len(possible)]
    renamed = [t.replace(target.name, scene.objects[place].name) for t in (scene.instruction, *scene.phrasings)]
    return replace(scene, goal=replace(scene.goal, target=place), instruction=renamed[0], phrasings=tuple(renamed[1:]))


def sample_appearance(rng: np.random.Generator) -> Appearance:
    """Domain randomisation: lights, table, floor, background, tints and the mounting of the head camera."""

    def vector(low: float, high: float) -> Vector:
        a, b, c = (float(x) for x in rng.uniform(low, high, 3))
        return (a, b, c)

    def dull(low: float, high: float) -> Vector:
        base, tint = float(rng.uniform(low, high)), vector(-0.06, 0.06)
        return (base + tint[0], base + tint[1], base + tint[2])

    tilt, turn = float(rng.uniform(0.0, 0.7)), float(rng.uniform(0.0, 2 * pi))
    return Appearance(
        table=dull(0.42, 0.80),
        floor=dull(0.20, 0.65),
        background=dull(0.45, 0.85),
        light_direction=(sin(tilt) * cos(turn), sin(tilt) * sin(turn), cos(tilt)),
        ambient=float(rng.uniform(0.38, 0.55)),
        diffuse=float(rng.uniform(0.42, 0.65)),
        object_tints=tuple(vector(-0.06, 0.06) for _ in range(OBJECTS_ON_TABLE)),
        camera_offset=vector(-0.008, 0.008),
        camera_tilt=vector(-0.02, 0.02),
    )


def _objects(rng: np.random.Generator, family: str, held_out: bool) -> tuple[SceneObject, ...]:
    """Three distinct objects, the goal first; distractors often share the goal's colour or shape."""
    pairs = [(c, s) for c in COLOURS for s in SHAPES]
    if family in OBJECT_FAMILIES and family in HOLDING_OUT:
        reserved = held_out_objects(family)
        pairs = [p for p in pairs if (p in reserved) == held_out]
    chosen = [pairs[int(rng.integers(len(pairs)))]]
    everything = [(c, s) for c in COLOURS for s in SHAPES]
    while len(chosen) < OBJECTS_ON_TABLE:
        pair = everything[int(rng.integers(len(everything)))]
        # Every second distractor in the goal's colour is drawn again: about 20% of the scenes need the shape word.
        if pair not in chosen and (pair[0] != chosen[0][0] or rng.random() < 0.5):
            chosen.append(pair)
    placed: list[SceneObject] = []
    for colour, shape in chosen:
        placed.append(
            SceneObject(
                shape,
                colour,
                x=float(rng.uniform(*AREA_X)),
                y=float(rng.uniform(*AREA_Y)),
                yaw=float(rng.uniform(-pi / 4, pi / 4)),
                size=float(rng.uniform(0.92, 1.08)),
            )
        )
    return tuple(placed)


def _is_feasible(objects: tuple[SceneObject, ...], goal: Goal) -> bool:
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            if hypot(a.x - b.x, a.y - b.y) < SPACING:
                return False
    if goal.target is None:
        return True
    target, others = objects[goal.target], [o for i, o in enumerate(objects) if i != goal.target]
    if goal.family in ("touch", "point", "push", "hover", "beside") and abs(target.y) < MIDDLE:
        return False
    if goal.family == "push" and (target.x > PUSH_REACH or any(abs(o.y - target.y) < PUSH_LANE for o in others)):
        return False
    if goal.family == "kneel":
        bearing = atan2(target.y, target.x) * 180 / pi
        apart = (abs(bearing - atan2(o.y, o.x) * 180 / pi) for o in others)
        return abs(bearing) >= LOOK_OFF_AXIS and min(apart) >= KNEEL_APART
    if goal.family in ("look", "orient"):
        down = EYE_PITCH * pi / 180
        if _angle(_from_eye(target), (cos(down), 0.0, -sin(down))) < LOOK_OFF_AXIS:
            return False
        if goal.family == "look" and hypot(target.x, target.y) < LOOK_NEAREST:
            return False
        if goal.family == "orient" and abs(atan2(target.y, target.x)) < LOOK_OFF_AXIS * pi / 180:
            return False
        return all(_angle(_from_eye(target), _from_eye(o)) >= LOOK_APART for o in others)
    return True


def _from_eye(item: SceneObject) -> Vector:
    x, y, z = item.centre
    return (x - EYE[0], y - EYE[1], z - EYE[2])


def _angle(a: Vector, b: Vector) -> float:
    dot = sum(p * q for p, q in zip(a, b, strict=True))
    norm = sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    return degrees(acos(max(-1.0, min(1.0, dot / norm))))  # [deg]
