"""Guards on the robot's model, and constrained generation: what they forbid, and that nothing else is forbidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.control.clearance import SelfCollision, Support, _convex_outline
from athena_vla.control.fallback import FallbackPolicy
from athena_vla.control.reachable import reach, reachable_bins
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import Embodiment
from athena_vla.errors import SafetyError

pytest.importorskip("mujoco", reason="mujoco is not installed")

# Two arms that meet in front of a body, standing on one foot; the toy's joint names.
ARMS = """
<mujoco>
  <worldbody>
    <body name="trunk" pos="0 0 1">
      <geom name="trunk" type="box" size="0.05 0.05 0.2" mass="10"/>
      <body name="foot" pos="0 0 -0.9"><geom name="foot" type="box" size="0.1 0.1 0.02" mass="1"/></body>
      <body name="left" pos="0 0.3 0">
        <joint name="base" axis="0 0 1"/><geom name="upper" type="capsule" fromto="0 0 0 0.2 0 0" size="0.02" mass="1"/>
        <body name="lower" pos="0.2 0 0">
          <joint name="shoulder" axis="0 0 1"/>
          <geom name="lower" type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="3"/>
          <body name="tip" pos="0.3 0 0">
            <joint name="finger" axis="0 0 1"/>
            <geom name="tip" type="sphere" size="0.03" mass="0.1"/>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def model(tmp_path) -> str:
    path = tmp_path / "arms.xml"
    path.write_text(ARMS)
    return str(path)


def test_the_arm_stops_before_it_touches_the_body(toy: Embodiment, model: str) -> None:
    guard = SelfCollision(toy, distance=0.02, path=model, skip=1)
    assert guard(toy.default) == ""
    folded = np.array([-1.5, -1.0, 0.0])
    assert guard(folded) == "collision"
    assert guard.clearance(folded) < 0.02 < guard.clearance(toy.default)
    safe = SafetyFilter(toy, guards=[guard])
    free = SafetyFilter(toy)
    closest, unguarded = np.inf, np.inf
    for k in range(300):
        closest = min(closest, guard.clearance(safe.step(folded, k / 100)))
        unguarded = min(unguarded, guard.clearance(free.step(folded, k / 100)))
    assert unguarded < 0.0  # without the guard the arm goes through the body
    assert closest >= 0.02 - 1e-6
    assert safe.interventions["collision"] > 0
    assert safe.at_rest
    safe.step(toy.default, 3.0)
    assert safe.level == "follow"


def test_the_centre_of_mass_stays_above_the_foot(toy: Embodiment, model: str) -> None:
    guard = Support(toy, ["foot"], path=model, margin=0.0)
    margins = [guard.margin(np.array([a, 0.0, 0.0])) for a in (-1.5, 0.0, 1.5)]
    assert margins[0] > margins[1] > margins[2]
    assert np.sign(guard.margin(toy.default) + 1e-12) == (1 if guard(toy.default) == "" else -1)
    with pytest.raises(SafetyError, match="hoof"):
        Support(toy, ["hoof"], path=model)


POSES = {  # of athena, that a body cannot have: [rad] by joint
    "hand in the chest": {"left_shoulder_yaw": -1.5, "left_elbow": -2.0},
    "forearms crossed": {
        "left_shoulder_pitch": -1.2,
        "right_shoulder_pitch": -1.2,
        "left_shoulder_yaw": -0.8,
        "right_shoulder_yaw": 0.8,
    },
    "legs crossed": {"left_hip_roll": -0.4, "right_hip_roll": 0.4},
}


def posed(robot: Embodiment, joints: dict[str, float]) -> np.ndarray:
    q = robot.default.copy()
    q[robot.index(tuple(joints))] = tuple(joints.values())
    return np.clip(q, robot.lower, robot.upper)


@pytest.fixture(scope="module")
def apart() -> SelfCollision:
    return SelfCollision(embodiment.load("athena"), distance=0.01)


@pytest.mark.parametrize("jerk", [False, True])
@pytest.mark.parametrize("pose", POSES)
def test_athena_stops_before_it_touches_itself(athena: Embodiment, apart: SelfCollision, pose: str, jerk: bool) -> None:
    """In every pose on the way, not only where it stops: here the poses between two approved ones are free as well."""
    wanted = posed(athena, POSES[pose])
    assert apart(athena.default) == ""
    assert apart(wanted) == "collision"
    assert apart.clearance(wanted) < 0.0
    safe = SafetyFilter(athena, guards=[apart], jerk=jerk)
    closest, outputs = np.inf, [athena.default] * 3
    for k in range(150):
        outputs.append(safe.step(wanted, k / athena.command_hz))
        closest = min(closest, apart.clearance(outputs[-1]))
    assert closest >= 0.01 - 1e-6
    assert safe.interventions["collision"] > 0
    assert np.abs(safe.velocity).max() < 1e-6
    assert np.abs(safe.position - athena.default).max() > 0.05  # it did set out
    difference = np.array(outputs)
    for limit in (athena.max_velocity, athena.max_acceleration, *([athena.max_jerk] if jerk else [])):
        difference = np.diff(difference, axis=0) * athena.command_hz
        assert (np.abs(difference) <= limit + 1e-9).all()


@pytest.mark.parametrize("jerk", [False, True])
def test_faults_and_guards_together_keep_both_promises(athena: Embodiment, apart: SelfCollision, jerk: bool) -> None:
    """Hold, stop and safe pose pass the guards too: random jumps with missing targets, and a safe pose in the chest."""
    rng = np.random.default_rng(4)
    inside_the_chest = tuple(posed(athena, POSES["hand in the chest"]))
    fallback = FallbackPolicy(hold_s=0.1, safe_after_s=0.2, safe_pose=inside_the_chest)
    safe = SafetyFilter(athena, guards=[apart], jerk=jerk, fallback=fallback)
    target, resting = athena.default, []
    for k in range(250 if jerk else 500):
        if k % 40 == 0:
            target = rng.uniform(athena.lower, athena.upper)
        safe.step(None if (k // 25) % 2 else target, k / athena.command_hz)
        if safe.at_rest or k % 60 == 59:  # stop it here: hardest braking must end in a pose that was approved
            resting.append(apart(safe.stopping_pose) if not jerk else apart(safe.position))
    assert safe.interventions["collision"] > 0
    assert set(resting) == {""}


def test_guards_do_not_hinder_demonstrations_that_keep_apart(athena: Embodiment) -> None:
    """At no distance at all: the simulator's experts brush past their own chest, but never through it."""
    from athena_vla.sim.experts import Expert
    from athena_vla.sim.robot import SimRobot
    from athena_vla.sim.tasks import sample_scene

    touch = SelfCollision(athena, distance=0.0)
    robot = SimRobot(sample_scene(0, "train"), athena, "rays", (8, 8))
    for number in range(4):
        scene = sample_scene(number, "train")
        robot.reset(scene)
        trajectory = Expert(robot.world).plan(scene)
        safe = SafetyFilter(athena, guards=[touch])
        safe.reset(trajectory.at(0.0))
        for k in range(1, int(trajectory.duration * athena.command_hz)):
            row = trajectory.at(k / athena.command_hz)
            np.testing.assert_array_equal(safe.step(row, k / athena.command_hz), row)


def test_athena_stays_above_its_feet(athena: Embodiment) -> None:
    feet = Support(athena, ["left_foot", "right_foot"], margin=0.02)
    assert feet.margin(athena.default) > 0.05
    bow = posed(athena, {"left_hip_pitch": 0.9, "right_hip_pitch": 0.9})  # both feet behind the body
    assert feet(bow) == "support"
    safe = SafetyFilter(athena, guards=[feet])
    least = min(feet.margin(safe.step(bow, k / athena.command_hz)) for k in range(200))
    assert 0.02 - 1e-6 <= least < 0.04
    assert safe.interventions["support"] > 0


def test_a_start_that_a_guard_refuses_is_refused(athena: Embodiment, apart: SelfCollision) -> None:
    safe = SafetyFilter(athena, guards=[apart])
    with pytest.raises(SafetyError, match="collision"):
        safe.reset(posed(athena, POSES["legs crossed"]))


def test_guards_need_a_model_that_fits(toy: Embodiment, model: str, tmp_path) -> None:
    with pytest.raises(SafetyError, match="no model"):
        SelfCollision(toy, path=tmp_path / "none.xml")
    with pytest.raises(SafetyError, match="left_hip_pitch"):
        SelfCollision(embodiment.load("athena"), path=model)
    (tmp_path / "bad.xml").write_text("<mujoco><oops/></mujoco>")
    with pytest.raises(SafetyError, match="cannot be read"):
        SelfCollision(toy, path=tmp_path / "bad.xml")
    with pytest.raises(SafetyError, match="distance"):
        SelfCollision(toy, path=model, distance=float("nan"))


def test_the_outline_is_the_convex_hull() -> None:
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5], [0.2, 0.9]], dtype=float)
    outline = _convex_outline(square)
    assert {tuple(p) for p in outline} == {(0, 0), (1, 0), (1, 1), (0, 1)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_reach_is_what_a_joint_can_do(seed: int) -> None:
    """Against a simulation of full acceleration both ways, in very small steps."""
    robot = embodiment.load("toy")
    rng = np.random.default_rng(seed)
    q, v = rng.uniform(robot.lower, robot.upper), rng.uniform(-1, 1, 3) * robot.max_velocity
    seconds = rng.uniform(0.02, 0.5)
    low, high = reach(robot, q, v, seconds)
    n = 2000
    for sign, end in ((-1, low), (1, high)):
        p, u = q.copy(), v.copy()
        for _ in range(n):
            before = u
            u = np.clip(u + sign * robot.max_acceleration * seconds / n, -robot.max_velocity, robot.max_velocity)
            p = p + 0.5 * (before + u) * seconds / n
        np.testing.assert_allclose(
            np.clip(p, robot.lower, robot.upper), np.clip(end, robot.lower, robot.upper), atol=2e-3
        )


def test_masks_leave_a_choice_and_nothing_out_of_reach(athena: Embodiment) -> None:
    joints = athena.index(athena.groups["arms"])
    bins = np.linspace(athena.lower[joints] - 0.1, athena.upper[joints] + 0.1, 256).T
    mask = reachable_bins(athena, joints, bins, athena.default, np.zeros(23), seconds=0.1)
    low, high = reach(athena, athena.default, np.zeros(23), 0.1)
    assert (mask <= reachable_bins(athena, joints, bins, athena.default, seconds=0.1)).all()  # velocity not known
    assert mask.shape == (8, 256)
    assert mask.any(axis=1).all()
    assert not mask.all()
    np.testing.assert_array_equal(mask, (bins >= low[joints][:, None]) & (bins <= high[joints][:, None]))
    coarse = np.stack([athena.lower[joints] - 5.0, athena.upper[joints] + 9.0], axis=1)
    alone = reachable_bins(athena, joints, coarse, athena.default, seconds=0.001)
    np.testing.assert_array_equal(alone, np.tile([True, False], (8, 1)))
    assert reachable_bins(athena, joints, bins, athena.default, seconds=5.0).sum() > mask.sum()
