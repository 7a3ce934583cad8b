"""Robots as data: valid once constructed, found by name, hashed, refused with a sentence."""

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Channel, Embodiment, Observation
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


HASHES = {  # of the descriptions as they were before robots could have channels
    "athena": "9108bac8c2ef6ed9",
    "toy": "6b150496e4fcc400",
    "unitree_g1_23dof": "c94cb9fd293b2c39",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_robot_without_channels_keeps_its_hash(name: str) -> None:
    robot = embodiment.load(name)
    assert robot.hash == HASHES[name]
    assert "channels" not in robot.to_dict()


HEIGHT = Channel("base_height", "m", 0.4, 0.8, 0.2, 1.0, default=0.74, owner="policy", observed=True)


def test_channels_are_read_from_toml_and_change_the_hash(toy: Embodiment, tmp_path: Path) -> None:
    source = resources.files("athena_vla") / "robots" / "toy.toml"
    text = """
[[channel]]
name = "base_height"
unit = "m"
lower = 0.4
upper = 0.8
max_rate = 0.2
max_rate_derivative = 1.0
default = 0.74
owner = "policy"
observed = true
"""
    (tmp_path / "tall.toml").write_text(source.read_text() + text)
    robot = embodiment.load(tmp_path / "tall.toml")
    assert robot.channels == (HEIGHT,)
    assert robot.channel("base_height") == HEIGHT
    assert Embodiment.from_dict(robot.to_dict()) == robot
    assert robot.hash != toy.hash
    assert dataclasses.replace(robot, channels=()).hash == toy.hash
    with pytest.raises(UnknownName, match="no channel of robot 'toy' 'vx'. Known: base_height"):
        robot.channel("vx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lower": 0.9}, "not below"),
        ({"max_rate": 0.0}, "positive max_rate"),
        ({"upper": float("nan")}, "upper = nan, which is not a finite number"),
        ({"lower": "low"}, "lower = 'low', which is not a finite number"),
        ({"default": 2.0}, "default 2.0, outside"),
        ({"when_nothing": "zero"}, "0 is outside its limits"),
        ({"when_nothing": "explode"}, "known are hold, zero, default"),
        ({"unit": "furlong"}, "known are m, m/s, rad, rad/s, 1"),
        ({"resample": "cubic"}, "known are interpolate, hold, mean"),
        ({"owner": "nobody"}, "known are policy, balance, locked"),
        ({"observed": "yes"}, "not true or false"),
        ({"name": "base"}, "name of a joint or camera"),
    ],
)
def test_contradictory_channels_are_refused(toy: Embodiment, change: dict, message: str) -> None:
    with pytest.raises(InvalidEmbodiment, match=message):
        dataclasses.replace(toy, channels=(dataclasses.replace(HEIGHT, **change),))


def test_an_unknown_key_of_a_channel_is_refused(toy: Embodiment) -> None:
    raw = {**toy.to_dict(), "channels": [{**dataclasses.asdict(HEIGHT), "colour": "red"}]}
    with pytest.raises(InvalidEmbodiment, match="colour"):
        Embodiment.from_dict(raw)
    with pytest.raises(InvalidEmbodiment, match="channel names appear twice: base_height"):
        dataclasses.replace(toy, channels=(HEIGHT, HEIGHT))


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
