"""Guards on the robot's model, and constrained generation: what they forbid, and that nothing else is forbidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla import embodiment
from athena_vla.control.clearance import SelfCollision, Support, _convex_outline
from athena_vla.control.constrain import reach, reachable_bins
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
    mask = reachable_bins(athena, joints, bins, athena.default, seconds=0.1)
    low, high = reach(athena, athena.default, np.zeros(23), 0.1)
    assert mask.shape == (8, 256)
    assert mask.any(axis=1).all()
    assert not mask.all()
    np.testing.assert_array_equal(mask, (bins >= low[joints][:, None]) & (bins <= high[joints][:, None]))
    coarse = np.stack([athena.lower[joints] - 5.0, athena.upper[joints] + 9.0], axis=1)
    alone = reachable_bins(athena, joints, coarse, athena.default, seconds=0.001)
    np.testing.assert_array_equal(alone, np.tile([True, False], (8, 1)))
    assert reachable_bins(athena, joints, bins, athena.default, seconds=5.0).sum() > mask.sum()
