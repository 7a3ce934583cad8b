"""Robots as data: valid once constructed, found by name, hashed, refused with a sentence."""

import dataclasses

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import AthenaError, InvalidEmbodiment, InvalidObservation, UnknownName


@pytest.mark.parametrize("name", embodiment.known_robots())
def test_shipped_robots_load_and_survive_a_round_trip(name: str) -> None:
    robot = embodiment.load(name)
    again = Embodiment.from_dict(robot.to_dict())
    assert again == robot
    assert again.hash == robot.hash
    assert hash(again) == hash(robot)
    assert (robot.lower < robot.upper).all()
    assert robot.source, "where the numbers come from must be said"


def test_athena_has_the_users_joints_in_the_users_order(athena: Embodiment) -> None:
    assert len(athena.joints) == 23
    assert [len(athena.groups[g]) for g in ("legs", "arms", "torso")] == [12, 8, 3]
    order = [j.group for j in athena.joints]
    assert order == ["legs"] * 12 + ["arms"] * 8 + ["torso"] * 3


def test_joints_are_found_by_name(toy: Embodiment) -> None:
    assert toy.index(["finger", "base"]).tolist() == [2, 0]
    with pytest.raises(UnknownName, match="no joint of robot 'toy' 'wrist'. Known: base, shoulder, finger"):
        toy.index(["wrist"])


def test_limits_cannot_be_changed_behind_the_robots_back(toy: Embodiment) -> None:
    with pytest.raises(ValueError, match="read-only"):
        toy.lower[0] = -100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command_hz": 15.0}, "not an integer multiple"),
        ({"control_hz": 0.0}, "must be positive"),
        ({"joints": ()}, "no joints"),
        ({"control_hz": float("nan")}, "must be positive"),
    ],
)
def test_contradictory_robots_are_refused(toy: Embodiment, change: dict, message: str) -> None:
    with pytest.raises(InvalidEmbodiment, match=message):
        dataclasses.replace(toy, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower": 2.0}, "not below"),
        ({"max_velocity": 0.0}, "positive"),
        ({"upper": float("inf")}, "not a finite number"),
        ({"default": 9.0}, "rests at"),
        ({"owner": "nobody"}, "owner 'nobody'"),
        ({"name": "shoulder"}, "appear twice: shoulder"),
    ],
)
def test_contradictory_joints_are_refused(toy: Embodiment, change: dict, message: str) -> None:
    joints = (dataclasses.replace(toy.joints[0], **change), *toy.joints[1:])
    with pytest.raises(InvalidEmbodiment, match=message):
        dataclasses.replace(toy, joints=joints)


def test_locked_joints_are_state_but_not_action(toy: Embodiment) -> None:
    locked = dataclasses.replace(toy.joints[1], owner="locked")
    robot = dataclasses.replace(toy, joints=(toy.joints[0], locked, toy.joints[2]))
    assert (robot.state_dim, robot.action_dim) == (3, 2)
    assert robot.action_joints == ("base", "finger")
    assert robot.action_index.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"\ncontrol_hz = 10\ncommand_hz = 10\nwheels = 4', "wheels"),
        ('name = "x"', "no joints|control_hz"),
    ],
)
def test_robot_files_that_do_not_fit(tmp_path, text: str, message: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(AthenaError, match=message):
        embodiment.load(file)


def test_unknown_robot_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="athena"):
        embodiment.load("athina")


def observation(robot: Embodiment, **change) -> Observation:
    image = np.zeros((4, 6, 3), np.uint8)
    good = {"images": {"front": image}, "state": np.zeros(3, np.float32), "instruction": "wave"}
    return Observation(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"wrist": np.zeros((4, 6, 3), np.uint8)}}, r"needs cameras \['front'\]"),
        ({"images": {"front": np.zeros((4, 6, 4), np.uint8)}}, "RGB uint8"),
        ({"images": {"front": np.zeros((4, 6, 3), np.uint16)}}, "uint16"),
        ({"images": {"front": np.zeros((0, 6, 3), np.uint8)}}, "RGB uint8"),
        ({"state": np.zeros(4, np.float32)}, r"3 joints.*shape \[4\]"),
        ({"state": np.array([0, np.nan, 0], np.float32)}, r"joints \['shoulder'\]"),
    ],
)
def test_observations_that_do_not_fit_are_refused(toy: Embodiment, change: dict, message: str) -> None:
    observation(toy).require(toy)
    with pytest.raises(InvalidObservation, match=message):
        observation(toy, **change).require(toy)


def test_a_chunk_knows_its_joints() -> None:
    with pytest.raises(InvalidObservation, match="2 joints"):
        ActionChunk(np.zeros((4, 3)), ("a", "b"), dt=0.1)
