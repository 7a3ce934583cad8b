"""The simulated world: physics, rearranging without recompiling, and the robot protocol."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from athena_vla.embodiment import load
from athena_vla.errors import InvalidObservation, SimulationError
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import TABLE_HEIGHT, Goal, Scene, SceneObject
from athena_vla.sim.tasks import sample_scene
from athena_vla.sim.world import World


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def robot():
    return SimRobot(sample_scene(0, "train"), image_size=(24, 32))


def test_the_servos_reach_what_is_commanded(world):
    """Commanded is reached within a degree, in poses all over the range, and the table holds nothing up."""
    body = world.embodiment
    world.reset(sample_scene(1, "train"))
    rng = np.random.default_rng(0)
    for _ in range(4):
        target = body.default.copy()
        arms = body.index([n for g in ("arms", "torso") for n in body.groups[g]])
        target[arms] += rng.uniform(-0.5, 0.2, len(arms)) * np.where(body.upper[arms] < 0.6, 0.3, 1.0)
        target = np.clip(target, body.lower, body.upper)
        start = world.joint_positions
        for step in range(500):
            world.step(start + (target - start) * min(1.0, step / 300))
        assert np.abs(world.joint_positions - target).max() < np.radians(1.0)
        assert np.abs(world.joint_velocities).max() < 0.02


def test_standing_still_does_not_drift(world):
    """Ten seconds of holding a pose: joints, pelvis and objects stay where they are."""
    world.reset(sample_scene(2, "train"))
    before, pose = world.data.qpos.copy(), world.joint_positions
    for _ in range(2000):
        world.step(pose)
    assert np.abs(world.data.qpos - before).max() < 1e-4


def test_the_rail_keeps_the_lower_sole_on_the_ground(world):
    body = world.embodiment
    world.reset(replace(sample_scene(3, "train"), start=()))
    target = body.default.copy()
    for side in ("left", "right"):
        target[body.index([f"{side}_hip_pitch", f"{side}_knee", f"{side}_ankle_pitch"])] = (-0.7, 1.4, -0.7)
    start = world.joint_positions
    lowest = []
    for step in range(600):
        world.step(start + (target - start) * min(1.0, step / 400))
        lowest.append(world.data.site_xpos[world.soles, 2].min())
    assert np.abs(lowest).max() < 0.02
    assert world.standing_height - world.data.qpos[world.gantry_qpos] > 0.10


def test_a_hand_moves_an_object_and_the_table_stops_it(world):
    """Contact is real: pushing moves the object, other bodies pass nothing on."""
    from athena_vla.sim.experts import Expert
    from athena_vla.sim.tasks import sample_task

    scene = sample_task("push", 5, "train")
    world.reset(scene)
    plan = Expert(world).plan(scene)
    assert scene.goal.target is not None
    geom = int(world.object_geoms[scene.goal.target])
    before = world.data.geom_xpos[geom].copy()
    for step in range(int(plan.duration * 200)):
        world.step(plan.at(step / 200))
    moved = world.data.geom_xpos[geom] - before
    assert moved[0] > 0.04
    assert abs(moved[2]) < 1e-9


def test_rearranging_equals_a_fresh_world(world):
    """Whatever was shown before leaves no trace: the compiled model is reused for every scene."""
    for seed in (4, 5):
        world.reset(sample_scene(seed, "test"))
        for _ in range(30):
            world.step(world.embodiment.default)
    scene = sample_scene(6, "train")
    world.reset(scene)
    fresh = World()
    fresh.reset(scene)
    for field in ("geom_rgba", "geom_size", "geom_aabb", "geom_pos", "geom_group", "cam_pos", "cam_quat"):
        shown = world.model.geom_group < 5 if field.startswith("geom") and field != "geom_group" else slice(None)
        assert np.array_equal(getattr(world.model, field)[shown], getattr(fresh.model, field)[shown]), field
    for _ in range(50):
        world.step(world.embodiment.default)
        fresh.step(fresh.embodiment.default)
    assert np.array_equal(world.data.qpos, fresh.data.qpos)


def test_objects_stand_where_the_scene_says(world):
    scene = sample_scene(7, "train")
    world.reset(scene)
    for item, geom in zip(scene.objects, world.object_geoms, strict=True):
        assert world.data.geom_xpos[geom] == pytest.approx(item.centre)
        lowest = {
            "cube": world.model.geom_size[geom][2],
            "ball": world.model.geom_size[geom][0],
            "cylinder": world.model.geom_size[geom][1],
        }[item.shape]
        assert world.data.geom_xpos[geom][2] - lowest == pytest.approx(TABLE_HEIGHT)


def test_the_clock_advances_by_one_command_period(robot):
    robot.reset(sample_scene(8, "train"))
    assert robot.time == 0.0
    for count in range(1, 4):
        robot.command(robot.embodiment.default)
        assert robot.time == pytest.approx(count / robot.embodiment.command_hz)
    assert robot.world.data.time == pytest.approx(robot.time)


def test_observations_are_complete_and_repeatable(robot):
    scene = sample_scene(9, "train")
    robot.reset(scene)
    first = robot.observe().require(robot.embodiment)
    assert first.images["head"].shape == (24, 32, 3)
    assert first.instruction == scene.instruction
    robot.command(robot.embodiment.default + 0.1)
    robot.reset(scene)
    again = robot.observe()
    assert np.array_equal(first.images["head"], again.images["head"])
    assert np.array_equal(first.state, again.state)


def test_a_wrong_command_is_refused(robot):
    with pytest.raises(InvalidObservation, match="23 finite joint positions"):
        robot.command(np.zeros(22))
    with pytest.raises(InvalidObservation, match="finite"):
        robot.command(np.full(23, np.nan))


def test_robots_without_a_model_are_refused():
    with pytest.raises(SimulationError, match="no MJCF"):
        SimRobot(sample_scene(0, "train"), load("unitree_g1_23dof"))


def test_impossible_scenes_are_refused():
    red, blue = SceneObject("cube", "red", 0.4, 0.2), SceneObject("ball", "blue", 0.4, -0.2)
    with pytest.raises(SimulationError, match="distinct"):
        Scene(0, "train", (red, red, blue), Goal("touch", 0), "")
    with pytest.raises(SimulationError, match="3 objects"):
        Scene(0, "train", (red, blue), Goal("touch", 0), "")
    with pytest.raises(SimulationError, match="no 'pink cube'"):
        SceneObject("cube", "pink", 0.4, 0.2)


def test_physics_takes_one_step_per_command(world):
    assert world.model.opt.timestep == pytest.approx(1 / world.embodiment.command_hz)
    assert world.model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
