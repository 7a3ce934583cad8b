"""The shipped robots against their published or shipped models."""

import xml.etree.ElementTree as ElementTree
from importlib import resources

import mujoco
import numpy as np
import pytest

from athena_vla.embodiment import known_robots, load


def test_athena_matches_its_mjcf(athena):
    model = mujoco.MjModel.from_xml_string((resources.files("athena_vla") / "robots" / athena.mjcf).read_text())
    actuators = [model.actuator(i).name for i in range(model.nu)]
    assert actuators[: len(athena.joints)] == list(athena.joint_names)
    assert actuators[len(athena.joints) :] == ["gantry"]
    compared = 0
    for joint in athena.joints:
        there = model.joint(joint.name)
        assert model.jnt_type[there.id] == mujoco.mjtJoint.mjJNT_HINGE
        assert there.range == pytest.approx((joint.lower, joint.upper), abs=1e-9), joint.name
        assert model.actuator(joint.name).ctrlrange == pytest.approx((joint.lower, joint.upper), abs=1e-9)
        assert model.jnt_limited[there.id]
        compared += 1
    assert compared == 23
    hinges = {model.joint(i).name for i in range(model.njnt)} - {"gantry"}
    assert hinges == set(athena.joint_names)


def test_athena_head_camera_matches_its_mjcf(athena):
    model = mujoco.MjModel.from_xml_string((resources.files("athena_vla") / "robots" / athena.mjcf).read_text())
    head = next(c for c in athena.cameras if c.name == "head")
    assert model.cam_fovy[model.camera("head").id] == head.fov_deg
    assert model.body(model.cam_bodyid[model.camera("head").id]).name == head.mount


def test_athena_is_primitives_only():
    model = mujoco.MjModel.from_xml_string((resources.files("athena_vla") / "robots" / "athena.xml").read_text())
    assert model.ngeom > 20
    assert model.nmesh == 0


def test_groups_follow_the_users_order(athena):
    assert {g: len(names) for g, names in athena.groups.items()} == {"legs": 12, "arms": 8, "torso": 3}
    assert list(athena.groups) == ["legs", "arms", "torso"]


def test_unitree_g1_matches_its_published_urdf(shared):
    path = shared / "data" / "robot_g1_23dof" / "g1_23dof_rev_1_0.urdf"
    if not path.is_file():
        pytest.skip("the published URDF of the Unitree G1 is not in ../shared/data/robot_g1_23dof")
    published = [j for j in ElementTree.parse(path).getroot().iter("joint") if j.get("type") == "revolute"]
    robot = load("unitree_g1_23dof")
    assert len(published) == 23
    assert [j.get("name") for j in published] == list(robot.joint_names)
    for joint, ours in zip(published, robot.joints, strict=True):
        limit = joint.find("limit")
        assert limit is not None
        assert float(limit.get("lower", "nan")) == pytest.approx(ours.lower, abs=1e-4), ours.name
        assert float(limit.get("upper", "nan")) == pytest.approx(ours.upper, abs=1e-4), ours.name
        assert float(limit.get("velocity", "nan")) == pytest.approx(ours.max_velocity), ours.name


def test_every_shipped_robot_loads():
    assert {"athena", "toy", "unitree_g1_23dof"} <= set(known_robots())
    for name in known_robots():
        robot = load(name)
        assert np.all(robot.lower <= robot.default)
        assert np.all(robot.default <= robot.upper)
