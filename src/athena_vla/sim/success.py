"""Whether the robot did what it was asked: measured on the state of the world, held for a while, wrong objects fail.

Knows nothing of images or language: the goal decides, not the words the robot was given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import UnknownName
from athena_vla.sim.scene import Goal, Side
from athena_vla.sim.world import World

HOLD_TIME = 0.4  # [s], a goal counts once it has held this long
GRACE = 1.5  # [s], where the robot happens to look at the start is not an answer

TOUCH_GAP = 0.045  # [m], surface of the hand to surface of the object
POINT_ANGLE = 12.0  # [deg], forearm axis to the middle of the object
IDLE_HAND = 0.32  # [m], one hand acts, the other one stays on the robot's side of the objects
POINT_CLEARANCE = 0.05  # [m], pointing is not touching
LOOK_ANGLE = 8.0  # [deg], optical axis to the middle of the object
PUSH_DISTANCE = 0.03  # [m], away from the robot
BYSTANDER = 0.03  # [m], no other object may be moved farther than this
LIFT_HEIGHT = 0.10  # [m], of the sole above the other one
SQUAT_DROP = 0.08  # [m], of the pelvis below the default pose
KNEEL_ANGLE = 7.0  # [deg], heading of the base to the middle of the object
KNEEL_DROP = 0.12  # [m], of the pelvis below the default pose
REACH = 0.35  # [m], distances beyond this need not be exact


@dataclass(frozen=True)
class Measures:
    """What the tests look at, at one instant."""

    gaps: dict[str, NDArray[np.float64]]  # side -> [3] [m], hand to each object
    forearm_angles: dict[str, NDArray[np.float64]]  # side -> [3] [deg]
    camera_angles: NDArray[np.float64]  # [3] [deg]
    shifts: NDArray[np.float64]  # [3, 2] [m], objects from where they were placed
    soles: dict[str, float]  # side -> [m] above the ground
    hands: dict[str, NDArray[np.float64]]  # side -> [3] [m], world
    head: float  # [m], top of the head
    drop: float  # [m], of the pelvis below the default pose
    centres: NDArray[np.float64]  # [3, 3] [m], objects, world
    tops: NDArray[np.float64]  # [3] [m], world
    joints: dict[str, float]  # [rad], the waist and hips
    heading: float  # [rad], of the base, to the left of where it started


def measure(world: World) -> Measures:
    """Measure the world as it stands."""
    model, data = world.model, world.data
    assert world.scene is not None, "reset the world with a scene first"
    geoms = world.object_geoms
    centres = data.geom_xpos[geoms].copy()
    gaps, forearms, hands = {}, {}, {}
    for side in ("left", "right"):
        hand, elbow = data.site_xpos[world.hand_sites[side]], data.site_xpos[world.elbow_sites[side]]
        hands[side] = hand.copy()
        gaps[side] = np.array(
            [mujoco.mj_geomDistance(model, data, world.hands[side], int(g), REACH, None) for g in geoms]
        )
        forearms[side] = angles(hand - elbow, centres - elbow)
    camera = world.head_camera
    placed = np.array([(o.x, o.y) for o in world.scene.objects])
    heights = np.array([o.height for o in world.scene.objects])
    joints = ("waist_yaw", "waist_roll", "waist_pitch", "left_hip_roll", "right_hip_roll")
    positions = world.joint_positions[world.embodiment.index(joints)]
    return Measures(
        gaps=gaps,
        forearm_angles=forearms,
        camera_angles=angles(-data.cam_xmat[camera].reshape(3, 3)[:, 2], centres - data.cam_xpos[camera]),
        shifts=centres[:, :2] - placed,
        soles={s: float(data.site_xpos[i, 2]) for s, i in zip(("left", "right"), world.soles, strict=True)},
        hands=hands,
        head=float(data.site_xpos[world.head_top, 2]),
        drop=world.standing_height - float(data.qpos[world.gantry_qpos]),
        centres=centres,
        tops=centres[:, 2] + heights / 2,
        joints={name: float(x) for name, x in zip(joints, positions, strict=True)},
        heading=world.heading,
    )


class Judge:
    """Watches one episode: `success` and `failure` stay once they are reached."""

    def __init__(self, goal: Goal) -> None:
        if goal.family not in _TESTS:
            raise UnknownName("task family", goal.family, _TESTS)
        self.goal = goal
        self.success = False
        self.failure = ""  # why success is out of reach
        self.success_time: float | None = None  # [s]
        self.unit = _SHORT[goal.family][0] if goal.family in _SHORT else ""  # of what it was missed by
        self.missed_by: float | None = None  # the least that was lacking at any instant; 0 where it was reached
        self._held = 0.0
        self._wrong = 0.0

    def watch(self, measures: Measures, time: float, elapsed: float) -> None:
        """Take note of the state at `time`, `elapsed` after the last one. [s]"""
        if self.success or self.failure:
            return
        test = _TESTS[self.goal.family]
        if self.unit:
            short = max(_SHORT[self.goal.family][1](measures, self.goal), 0.0)
            self.missed_by = short if self.missed_by is None else min(self.missed_by, short)
        self._held = self._held + elapsed if test(measures, self.goal) else 0.0
        self._wrong = self._wrong + elapsed if self._is_wrong(measures, time) else 0.0
        if self._wrong >= HOLD_TIME - 1e-9:
            self.failure = "another object"
        elif self._held >= HOLD_TIME - 1e-9:
            self.success, self.success_time = True, time

    @property
    def wrong_for(self) -> float:
        """How long the robot has been at what fails: `HOLD_TIME` of it ends the episode. [s]"""
        return self._wrong

    def _is_wrong(self, measures: Measures, time: float) -> bool:
        wrong = _WRONG.get(self.goal.family)
        return wrong is not None and time > GRACE and wrong(measures, self.goal)


def angles(axis: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles [n] [deg] between an axis [3] and directions [n, 3]."""
    cosine = targets @ axis / (np.linalg.norm(axis) * np.linalg.norm(targets, axis=1))
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def _other(side: Side) -> str:
    return "right" if side == "left" else "left"


def _target(goal: Goal) -> int:
    assert goal.target is not None, f"'{goal.family}' is about an object"
    return goal.target


def _reaches_with_both(measures: Measures) -> bool:
    return all(float(hand[0]) > IDLE_HAND for hand in measures.hands.values())


def _touched(measures: Measures) -> set[int]:
    """The object a hand touches, the nearest one where it is near several."""
    found: set[int] = set()
    if _reaches_with_both(measures):
        return found
    for gaps in measures.gaps.values():
        nearest = int(np.argmin(gaps))
        if gaps[nearest] <= TOUCH_GAP:
            found.add(nearest)
    return found


def _pointed(measures: Measures) -> set[int]:
    """The object a forearm points at."""
    found: set[int] = set()
    if _reaches_with_both(measures):
        return found
    for side, degrees in measures.forearm_angles.items():
        nearest = int(np.argmin(degrees))
        if degrees[nearest] <= POINT_ANGLE and measures.gaps[side].min() >= POINT_CLEARANCE:
            found.add(nearest)
    return found


def _looked(measures: Measures) -> set[int]:
    nearest = int(np.argmin(measures.camera_angles))
    return {nearest} if measures.camera_angles[nearest] <= LOOK_ANGLE else set()


def _pushed(measures: Measures, goal: Goal) -> bool:
    return float(measures.shifts[_target(goal), 0]) >= PUSH_DISTANCE and not _disturbed(measures, goal)


def _disturbed(measures: Measures, goal: Goal) -> bool:
    moved = np.linalg.norm(measures.shifts, axis=1)
    return any(float(moved[i]) > BYSTANDER for i in range(len(moved)) if i != _target(goal))


def _only(found: Callable[[Measures], set[int]]) -> Callable[[Measures, Goal], bool]:
    return lambda measures, goal: found(measures) == {_target(goal)}


def _another(found: Callable[[Measures], set[int]]) -> Callable[[Measures, Goal], bool]:
    return lambda measures, goal: bool(found(measures) - {_target(goal)})


def _lifted(measures: Measures, goal: Goal) -> bool:
    up, down = measures.soles[goal.side], measures.soles[_other(goal.side)]
    return up - down >= LIFT_HEIGHT and down <= 0.03


def _raised(measures: Measures, goal: Goal) -> bool:
    other = measures.hands[_other(goal.side)][2]
    return bool(measures.hands[goal.side][2] >= measures.head and other <= measures.head - 0.2)


def _squatted(measures: Measures, goal: Goal) -> bool:
    return measures.drop >= SQUAT_DROP and max(measures.soles.values()) <= 0.03


def _hovered(measures: Measures, goal: Goal) -> bool:
    i = _target(goal)
    return any(
        float(np.linalg.norm(hand[:2] - measures.centres[i, :2])) <= 0.06 and 0.06 <= gaps[i] <= 0.20
        for hand, gaps in zip(measures.hands.values(), measures.gaps.values(), strict=True)
    )


def _beside(measures: Measures, goal: Goal) -> bool:
    i = _target(goal)
    return any(
        0.02 <= gaps[i] <= 0.09 and hand[2] <= measures.tops[i] + 0.06 and int(np.argmin(gaps)) == i
        for hand, gaps in zip(measures.hands.values(), measures.gaps.values(), strict=True)
    )


def _oriented(measures: Measures, goal: Goal) -> bool:
    x, y, _ = measures.centres[_target(goal)]
    return abs(np.degrees(np.arctan2(y, x) - measures.joints["waist_yaw"])) <= 5.0


def _faced(measures: Measures) -> set[int]:
    """The object that the base faces, knelt down."""
    bearings = np.arctan2(measures.centres[:, 1], measures.centres[:, 0])
    off = np.degrees(np.abs(bearings - measures.heading))
    nearest = int(np.argmin(off))
    return {nearest} if off[nearest] <= KNEEL_ANGLE and measures.drop >= KNEEL_DROP else set()


def _beyond(joint: Callable[[Side], str], sign: Callable[[Side], float], least: float) -> Callable[..., bool]:
    return lambda measures, goal: sign(goal.side) * measures.joints[joint(goal.side)] >= least


def _outwards(side: Side) -> float:
    return 1.0 if side == "left" else -1.0


def _stretched(measures: Measures, goal: Goal) -> bool:
    return _outwards(goal.side) * float(measures.hands[goal.side][1]) >= 0.50


def _waved(measures: Measures, goal: Goal) -> bool:
    hand = measures.hands[goal.side][2]
    return bool(measures.head - 0.35 <= hand < measures.head)


_TESTS: dict[str, Callable[[Measures, Goal], bool]] = {
    "touch": _only(_touched),
    "point": _only(_pointed),
    "look": _only(_looked),
    "push": _pushed,
    "lift": _lifted,
    "raise": _raised,
    "squat": _squatted,
    "hover": _hovered,
    "beside": _beside,
    "orient": _oriented,
    "stretch": _stretched,
    "twist": _beyond(lambda side: "waist_yaw", _outwards, 0.35),
    "lean": _beyond(lambda side: "waist_roll", lambda side: -_outwards(side), 0.20),
    "bow": _beyond(lambda side: "waist_pitch", lambda side: 1.0, 0.30),
    "stride": _beyond(lambda side: f"{side}_hip_roll", _outwards, 0.25),
    "wave": _waved,
    "kneel": _only(_faced),
}
_WRONG: dict[str, Callable[[Measures, Goal], bool]] = {
    "touch": _another(_touched),
    "point": _another(_pointed),
    "look": _another(_looked),
    "push": _disturbed,
    "kneel": _another(_faced),
}
# What is lacking to the goal, in which unit; negative where it is more than enough.
_SHORT: dict[str, tuple[str, Callable[[Measures, Goal], float]]] = {
    "touch": ("m", lambda m, goal: min(float(g[_target(goal)]) for g in m.gaps.values()) - TOUCH_GAP),
    "point": ("deg", lambda m, goal: min(float(a[_target(goal)]) for a in m.forearm_angles.values()) - POINT_ANGLE),
    "look": ("deg", lambda m, goal: float(m.camera_angles[_target(goal)]) - LOOK_ANGLE),
    "push": ("m", lambda m, goal: PUSH_DISTANCE - float(m.shifts[_target(goal), 0])),
    "lift": ("m", lambda m, goal: LIFT_HEIGHT - m.soles[goal.side] + m.soles[_other(goal.side)]),
    "raise": ("m", lambda m, goal: m.head - float(m.hands[goal.side][2])),
    "squat": ("m", lambda m, goal: SQUAT_DROP - m.drop),
    "kneel": ("m", lambda m, goal: KNEEL_DROP - m.drop),
}


def families() -> Sequence[str]:
    """Families that have a success test."""
    return tuple(_TESTS)
