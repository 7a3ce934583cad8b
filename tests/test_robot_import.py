"""Robots from published descriptions. Oracles: attributes as written, MuJoCo's own compiler, numbers by hand."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from athena_vla.embodiment import load
from athena_vla.errors import RobotFileError
from athena_vla.robot_import.robot_description import read_description
from athena_vla.robot_import.robot_importing import RobotImportConfig, import_robot

URDF = """<robot name="Desk Arm">
  <link name="base"/>
  <joint name="left_shoulder_pitch" type="revolute"><limit lower="-1.5" upper="2.0" velocity="3.0" effort="10"/></joint>
  <joint name="rail" type="prismatic"><limit lower="0.1" upper="0.6" velocity="0.2" effort="10"/></joint>
  <joint name="left_wrist_roll" type="continuous"><limit velocity="4.0" effort="1"/></joint>
  <joint name="left_gripper" type="revolute"><limit lower="0" upper="0.7" effort="1"/></joint>
  <joint name="left_gripper_twin" type="revolute"><mimic joint="left_gripper"/><limit lower="0" upper="1"/></joint>
  <joint name="camera_mount" type="fixed"/>
  <joint name="ball" type="planar"/>
</robot>"""

MJCF = """<mujoco model="legs">
  <default><joint range="-10 10"/>
    <default class="arm"><joint range="-90 45"/>
      <default class="wrist"><joint type="slide" range="0 0.2"/></default></default>
  </default>
  <worldbody><body name="torso" childclass="arm"><freejoint/>
    <body name="b"><joint name="elbow"/><joint name="hand_slide" class="wrist"/>
      <body name="c" childclass="wrist"><joint name="knee" class="arm" range="0 30"/></body></body>
    <body name="d"><joint name="idle"/></body><body name="e"><joint name="ball" type="ball"/></body>
  </body></worldbody>
  <actuator><position joint="elbow"/><motor joint="hand_slide"/><motor joint="knee"/></actuator>
</mujoco>"""


def imported(folder: Path, text: str, suffix: str, **options: object):
    source = folder / f"robot{suffix}"
    source.write_text(text)
    return import_robot(RobotImportConfig(input=source, out=folder / "robot.toml", **options))  # pyright: ignore[reportArgumentType]


def test_a_urdf_becomes_a_robot(tmp_path: Path) -> None:
    done = imported(tmp_path, URDF, ".urdf", velocity=1.0)
    robot = load(tmp_path / "robot.toml")
    assert robot.name == "desk_arm"
    assert robot.joint_names == ("left_shoulder_pitch", "rail", "left_wrist_roll", "left_gripper")
    np.testing.assert_allclose(robot.lower, [-1.5, 0.1, -math.pi, 0.0], atol=1e-9)
    np.testing.assert_allclose(robot.upper, [2.0, 0.6, math.pi, 0.7], atol=1e-9)
    np.testing.assert_allclose(robot.max_velocity, [3.0, 0.2, 4.0, 1.0])
    assert [j.unit for j in robot.joints] == ["rad", "m", "rad", "rad"]
    assert [j.default for j in robot.joints] == [0.0, 0.1, 0.0, 0.0]
    assert [j.group for j in robot.joints] == ["left_arm", "body", "left_arm", "left_hand"]
    assert set(done.skipped) == {"left_gripper_twin", "ball"}
    said = str(done)
    for word in ("left_gripper", "mimic", "left_wrist_roll, which turn without end", "max_acceleration"):
        assert word in said
    text = (tmp_path / "robot.toml").read_text()
    assert "max_velocity = 1.0  # guessed" in text
    assert "max_velocity = 3.0\n" in text


def test_an_mjcf_becomes_a_robot_with_what_its_classes_say(tmp_path: Path) -> None:
    done = imported(tmp_path, MJCF, ".xml")
    robot = load(tmp_path / "robot.toml")
    assert robot.joint_names == ("elbow", "hand_slide", "knee")
    np.testing.assert_allclose(robot.lower, [-math.pi / 2, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(robot.upper, [math.pi / 4, 0.2, math.pi / 6], atol=1e-9)
    assert [j.owner for j in robot.joints] == ["policy", "policy", "balance"]
    assert set(done.skipped) == {"idle", "ball"}
    assert '# name = "base_height"' in (tmp_path / "robot.toml").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (URDF.replace(' lower="-1.5" upper="2.0"', ""), "no limits of left_shoulder_pitch"),
        (MJCF.replace('<joint range="-10 10"/>', "").replace('<joint range="-90 45"/>', ""), "no limits of elbow"),
        (URDF.replace("-1.5", "low"), "'low', no number"),
        (URDF.replace("-1.5", "inf"), "no finite number"),
        (URDF.replace("-1.5", "2.5"), "lower 2.5 not below upper 2.0"),
        (URDF.replace('left_gripper"', 'rail"'), "rail"),
        ('<!DOCTYPE r [<!ENTITY a "b">]>' + URDF, "declares entities"),
        ("<robot", "no XML"),
        ("<sdf/>", "begins with <sdf>"),
        ("<robot name='x'/>", "no joint that could be commanded"),
        (MJCF.replace("<worldbody>", '<include file="arm.xml"/><worldbody>'), "includes 'arm.xml'"),
    ],
)
def test_what_cannot_be_a_robot_is_a_sentence_and_leaves_nothing(tmp_path: Path, text: str, said: str) -> None:
    from athena_vla.errors import AthenaError

    with pytest.raises(AthenaError, match=said):
        imported(tmp_path, text, ".urdf")
    assert [p.name for p in tmp_path.iterdir()] == ["robot.urdf"]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    imported(tmp_path, URDF, ".urdf")
    with pytest.raises(RobotFileError, match="--overwrite"):
        imported(tmp_path, URDF, ".urdf")
    imported(tmp_path, URDF, ".urdf", overwrite=True, name="other")
    assert load(tmp_path / "robot.toml").name == "other"


@pytest.mark.parametrize("file", ["unitree_g1_29dof.xml", "unitree_h1.xml", "ur5e.xml", "kuka_iiwa14.xml"])
def test_published_mjcf_against_mujocos_own_compiler(shared: Path, file: str) -> None:
    mujoco = pytest.importorskip("mujoco")
    root = ElementTree.parse(shared / "robots" / file).getroot()
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):  # without what needs meshes
        if element.tag in ("geom", "asset", "contact", "keyframe", "sensor") and element in parents:
            parents[element].remove(element)
    model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    hinges = [i for i in range(model.njnt) if model.jnt_type[i] in (2, 3)]
    found = read_description(shared / "robots" / file)
    assert [j.name for j in found.joints] == [model.joint(i).name for i in hinges]
    np.testing.assert_allclose([(j.lower, j.upper) for j in found.joints], model.jnt_range[hinges], atol=1e-6)


@pytest.mark.parametrize("file", ["fourier_gr1t2.urdf", "unitree_g1_29dof.urdf"])
def test_published_urdf_against_its_attributes(shared: Path, file: str) -> None:
    root = ElementTree.parse(shared / "robots" / file).getroot()
    expected = {}
    for joint in root.iter("joint"):
        limit = joint.find("limit")
        if joint.get("type") in ("revolute", "prismatic") and limit is not None and joint.find("mimic") is None:
            expected[joint.get("name")] = tuple(float(limit.get(k, "nan")) for k in ("lower", "upper", "velocity"))
    found = {j.name: (j.lower, j.upper, j.velocity) for j in read_description(shared / "robots" / file).joints}
    assert found == expected


SHIPPED = {
    "unitree_g1_29dof": "unitree_g1_29dof.urdf", "unitree_h1": "unitree_h1.xml", "fourier_gr1t2": "fourier_gr1t2.urdf",
    "ur5e": "ur5e.xml", "kuka_iiwa14": "kuka_iiwa14.xml",
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_robots_are_their_descriptions(shared: Path, name: str) -> None:
    robot, found = load(name), read_description(shared / "robots" / SHIPPED[name])
    assert robot.joint_names == tuple(j.name for j in found.joints)
    np.testing.assert_allclose(robot.lower, [j.lower for j in found.joints], atol=1e-9)
    np.testing.assert_allclose(robot.upper, [j.upper for j in found.joints], atol=1e-9)
    for joint, original in zip(robot.joints, found.joints, strict=True):
        assert original.velocity in (None, joint.max_velocity)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_robots_name_their_licence(name: str) -> None:
    assert "BSD-3-Clause" in load(name).source or "Apache-2.0" in load(name).source


NARROW = """<mujoco model="narrow"><compiler angle="degree"/>
  <default><position ctrlrange="-1.2 1.2"/>
    <default class="weak"><general biastype="affine" ctrlrange="-0.5 2"/></default></default>
  <worldbody><body>
    <joint name="a" range="-90 90"/><geom size="0.1"/>
    <body><joint name="b" range="-90 90"/><geom size="0.1"/>
      <body><joint name="c" range="-90 90"/><geom size="0.1"/>
        <body><joint name="d" range="-90 90"/><geom size="0.1"/></body></body></body>
  </body></worldbody>
  <actuator><position joint="a"/><general class="weak" joint="b" gainprm="10" biasprm="0 -10 0" gear="2"/>
    <motor joint="c" ctrlrange="-1 1"/><position joint="d" inheritrange="1"/></actuator>
</mujoco>"""


def test_targets_that_an_actuator_takes_narrow_the_limits(tmp_path: Path) -> None:
    """By MuJoCo's own compiler: targets are in radians whatever the angles are, a motor's range is a torque."""
    done = imported(tmp_path, NARROW, ".xml")
    robot = load(tmp_path / "robot.toml")
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(NARROW)
    joints, targets, gears = model.jnt_range, model.actuator_ctrlrange, model.actuator_gear[:, 0]
    for place, joint in enumerate(robot.joints):
        lower, upper = joints[place]
        if joint.name != "c":
            lower, upper = max(lower, targets[place][0] / gears[place]), min(upper, targets[place][1] / gears[place])
        assert (joint.lower, joint.upper) == pytest.approx((lower, upper), abs=1e-9)
    assert done.narrowed == ("a, b, by the actuator's ctrlrange",)
    assert "narrower than the joint's own range: a, b" in (tmp_path / "robot.toml").read_text()


def test_soft_limits_of_a_urdf_narrow_the_limits(tmp_path: Path) -> None:
    soft = '<safety_controller soft_lower_limit="-1.4" soft_upper_limit="{}" k_velocity="10"/>'
    limit = '<limit lower="-1.5" upper="2.0" velocity="3.0" effort="10"/>'
    done = imported(tmp_path, URDF.replace(limit, limit + soft.format(1.8), 1), ".urdf")
    robot = load(tmp_path / "robot.toml")
    assert (robot.lower[0], robot.upper[0]) == pytest.approx((-1.4, 1.8))
    assert done.narrowed == ("left_shoulder_pitch, by the safety_controller",)
    with pytest.raises(RobotFileError, match=r"safety_controller of joint 'left_shoulder_pitch'.*no number"):
        imported(tmp_path, URDF.replace(limit, limit + soft.format("x"), 1), ".urdf", overwrite=True)
    empty = soft.replace("-1.4", "2.5").format(3.0)
    with pytest.raises(RobotFileError, match=r"is 2.5 to 3; the joint goes from -1.5 to 2"):
        imported(tmp_path, URDF.replace(limit, limit + empty, 1), ".urdf", overwrite=True)
