"""Which scenes occur: seeded, balanced, with combinations that training never sees, and not solvable by luck."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import hypot

import numpy as np
import pytest

from athena_vla.errors import SimulationError, UnknownName
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import COLOURS, SHAPES, Goal
from athena_vla.sim.success import GRACE, HOLD_TIME, Judge, families, measure
from athena_vla.sim.task_language import (
    BASE_FAMILIES,
    BASE_PHRASES,
    DEMO_FAMILIES,
    DEMO_PHRASES,
    OBJECT_FAMILIES,
    RAIL_FAMILIES,
    held_out_objects,
    phrases_of,
)
from athena_vla.sim.tasks import SPACING, other_instruction, sample_scene, sample_task

TRAIN = [sample_scene(i, "train") for i in range(350)]
TEST = [sample_scene(i, "test") for i in range(140)]
BASE = [sample_scene(i, "base") for i in range(180)]


def combination(scene):
    item = scene.target
    return (scene.goal.family, item.colour, item.shape) if item else (scene.instruction,)


def test_a_scene_is_its_seed():
    assert sample_scene(17, "train") == TRAIN[17]
    assert sample_scene(17, "train") != sample_scene(17, "test")
    assert len({(s.objects, s.instruction) for s in TRAIN}) == len(TRAIN)


@pytest.mark.parametrize(("scenes", "names"), [(TRAIN, DEMO_FAMILIES), (TEST, DEMO_FAMILIES), (BASE, BASE_FAMILIES)])
def test_families_are_balanced_in_every_block(scenes, names):
    for start in range(0, len(scenes) - len(names), len(names)):
        assert Counter(s.goal.family for s in scenes[start : start + len(names)]) == Counter(names)


def test_test_combinations_never_occur_in_training():
    """Neither (verb, colour, shape) nor, for gestures, the wording; and every word of a test occurs in training."""
    assert not {combination(s) for s in TRAIN} & {combination(s) for s in TEST}
    assert not {s.instruction for s in TRAIN} & {s.instruction for s in TEST}
    trained = {t for s in TRAIN for t in (s.instruction, *s.phrasings)}
    assert not trained & {s.instruction for s in TEST}
    known = {word for text in trained for word in text.split()}
    assert {word for s in TEST for word in s.instruction.split()} <= known
    for family in DEMO_FAMILIES:
        assert any(s.goal.family == family for s in TEST)


def test_held_out_objects_leave_every_word_in_training():
    for family in set(DEMO_FAMILIES) & set(OBJECT_FAMILIES):
        left = {(c, s) for c in COLOURS for s in SHAPES} - held_out_objects(family)
        assert len(left) == 9
        assert {c for c, _ in left} == set(COLOURS)
        assert {s for _, s in left} == set(SHAPES)


def test_the_base_never_hears_the_demos_verbs():
    def verbs(phrases):
        return {template.split()[0] for templates in phrases.values() for template in templates}

    assert not verbs(DEMO_PHRASES) & verbs(BASE_PHRASES)
    demo_words = {"touch", "point", "look", "push", "lift", "raise", "squat", "crouch", "bend", "watch", "aim", "shove"}
    heard = {word for s in BASE for t in (s.instruction, *s.phrasings) for word in t.replace(",", "").split()}
    assert not heard & demo_words


def test_objects_are_distinct_apart_and_named_by_the_instruction():
    shares_colour = 0
    for scene in TRAIN + TEST:
        for a, b in combinations(scene.objects, 2):
            assert a.name != b.name
            assert hypot(a.x - b.x, a.y - b.y) >= SPACING
        if scene.target is not None:
            assert scene.target.name in scene.instruction
            assert sum(o.name in scene.instruction for o in scene.objects) == 1
            shares_colour += any(o.colour == scene.target.colour for o in scene.objects if o is not scene.target)
    asked = sum(s.target is not None for s in TRAIN + TEST)
    assert 0.1 < shares_colour / asked < 0.35  # there the shape word decides, in the others the colour does


def test_goals_are_spread_over_the_table_and_the_slots():
    targets = [s.target for s in TRAIN if s.target is not None]
    assert min(t.y for t in targets) < -0.22
    assert max(t.y for t in targets) > 0.22
    slots = Counter(s.goal.target for s in TRAIN if s.target is not None)
    assert min(slots.values()) > 0.25 * sum(slots.values())
    assert len({(t.colour, t.shape) for t in targets}) == len(COLOURS) * len(SHAPES)


def test_the_other_instruction_names_another_object_and_keeps_the_goal():
    for scene in TEST:
        if scene.target is None:
            with pytest.raises(SimulationError, match="names no object"):
                other_instruction(scene)
            continue
        other = other_instruction(scene)
        assert other.goal == scene.goal
        assert other.objects == scene.objects
        named = [o for o in scene.objects if o.name in other.instruction]
        assert len(named) == 1
        assert named[0] != scene.target


def test_unknown_names_are_refused():
    with pytest.raises(UnknownName, match="train, test, base"):
        sample_scene(0, "validation")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="touch"):
        phrases_of("juggle")
    with pytest.raises(UnknownName, match="touch"):
        Judge(Goal("juggle"))


def test_every_family_has_a_success_test():
    assert set(families()) == set(DEMO_FAMILIES) | set(BASE_FAMILIES) | set(RAIL_FAMILIES)


def test_a_goal_must_be_held():
    scene = replace(sample_task("look", 0, "train"))
    robot = SimRobot(scene, image_size=(8, 8))
    m = measure(robot.world)
    assert scene.goal.target is not None
    other = (scene.goal.target + 1) % 3
    at_goal = replace(m, camera_angles=np.array([0.5 if i == scene.goal.target else 30.0 for i in range(3)]))
    at_other = replace(m, camera_angles=np.array([0.5 if i == other else 30.0 for i in range(3)]))
    judge = Judge(scene.goal)
    judge.watch(at_goal, GRACE + 0.1, HOLD_TIME * 0.9)
    judge.watch(m, GRACE + 0.2, 0.1)
    judge.watch(at_goal, GRACE + 0.3, HOLD_TIME * 0.9)
    assert not judge.success
    judge.watch(at_goal, GRACE + 0.4, HOLD_TIME * 0.2)
    assert judge.success
    wrong = Judge(scene.goal)
    wrong.watch(at_other, GRACE + 0.1, HOLD_TIME)
    wrong.watch(at_goal, GRACE + 0.2, HOLD_TIME)
    assert wrong.failure == "another object"
    assert not wrong.success


def test_what_was_lacking_at_the_best_instant():
    for family, unit, changes, lacking in (
        ("look", "deg", [{"camera_angles": np.array([a] * 3)} for a in (40.0, 20.0, 31.0)], 12.0),
        ("squat", "m", [{"drop": d} for d in (0.01, 0.03, 0.0)], 0.05),
        ("push", "m", [{"shifts": np.array([[x, 0.0]] * 3)} for x in (0.0, 0.012)], 0.018),
        ("touch", "m", [{"gaps": {"left": np.full(3, 0.2), "right": np.full(3, g)}} for g in (0.3, 0.055)], 0.01),
        ("raise", "m", [{"head": 1.5, "hands": {s: np.array([0.0, 0.0, 1.2]) for s in ("left", "right")}}], 0.3),
    ):
        scene = sample_task(family, 0, "train")
        m = measure(SimRobot(scene, image_size=(8, 8)).world)
        judge = Judge(scene.goal)
        for k, change in enumerate(changes):
            judge.watch(replace(m, **change), 0.1 * k, 0.1)
        assert judge.unit == unit
        assert judge.missed_by == pytest.approx(lacking), family
    assert Judge(Goal("wave")).missed_by is None


def test_standing_still_and_one_pose_for_all_solve_nothing():
    """Hold-still and the mean final pose of the demonstrations, over the test split: at most 10% each."""
    from athena_vla.sim.experts import Expert

    robot = SimRobot(TEST[0], image_size=(8, 8))
    expert = Expert(robot.world)
    finals = []
    for scene in TRAIN[:35]:
        robot.reset(scene)
        finals.append(expert.plan(scene).at(99.0))
    mean = np.mean(finals, axis=0)
    for pose in (None, mean):
        won = 0
        for scene in TEST[:21]:
            robot.reset(scene)
            start = robot.world.joint_positions
            goal = start if pose is None else pose
            while not robot.is_over() and robot.time < 4.0:
                robot.command(start + (goal - start) * min(1.0, robot.time / 2.0))
            won += robot.success()
        assert won <= 2
