"""The demonstrators: they succeed, within the robot's limits, smoothly; and inverse kinematics against its oracles."""

import mujoco
import numpy as np
import pytest

from athena_vla.sim.experts import SHARE_OF_LIMITS, Expert, Move, Trajectory
from athena_vla.sim.kinematics import Kinematics
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.task_language import BASE_FAMILIES, DEMO_FAMILIES
from athena_vla.sim.tasks import sample_scene, sample_task


@pytest.fixture(scope="module")
def robot():
    return SimRobot(sample_scene(0, "train"), image_size=(8, 8))


def act(robot, trajectory):
    while robot.time < trajectory.duration + 0.2:
        robot.command(np.clip(trajectory.at(robot.time), robot.embodiment.lower, robot.embodiment.upper))
    return robot.success()


@pytest.mark.parametrize("family", [*DEMO_FAMILIES, *BASE_FAMILIES])
def test_experts_succeed(robot, family):
    split = "test" if family in DEMO_FAMILIES else "base"
    expert = Expert(robot.world)
    for seed in range(6):
        scene = sample_task(family, seed, split)
        robot.reset(scene)
        assert act(robot, expert.plan(scene)), (family, seed, robot.judge.failure)


@pytest.mark.parametrize("split", ["train", "base"])
def test_demonstrations_keep_to_the_limits(robot, split):
    """Finite differences of the sampled path, at the motor rate, against the robot's own limits."""
    body = robot.embodiment
    expert = Expert(robot.world)
    for seed in range(27):
        scene = sample_scene(seed, split)
        robot.reset(scene)
        trajectory = expert.plan(scene)
        rate = body.command_hz
        path = np.stack([trajectory.at(i / rate) for i in range(int(trajectory.duration * rate) + 20)])
        assert ((path >= body.lower) & (path <= body.upper)).all(), scene.instruction
        velocity = np.diff(path, axis=0) * rate
        assert (np.abs(velocity) <= SHARE_OF_LIMITS * 1.01 * body.max_velocity).all(), scene.instruction
        acceleration = np.diff(velocity, axis=0) * rate
        assert (np.abs(acceleration) <= body.max_acceleration).all(), scene.instruction
        assert 2.5 <= trajectory.duration <= 5.5
        assert path[0] == pytest.approx(robot.world.joint_positions, abs=1e-9)


def test_too_fast_a_move_is_slowed_down(athena):
    far = athena.default.copy()
    far[athena.index(["waist_yaw"])] = 2.0
    slow = Trajectory(athena.default.copy(), (Move("turn", far, 0.3),)).within(athena)
    path = np.stack([slow.at(t) for t in np.arange(0.0, slow.duration, 0.001)])
    assert slow.duration > 1.0
    assert np.abs(np.diff(path, axis=0)).max() / 0.001 <= 3.0 * SHARE_OF_LIMITS * 1.01


def test_another_objects_demonstration_fails(robot):
    """The experts' own failures fail, and so does the right motion for the wrong object."""
    expert = Expert(robot.world)
    kinds = set()
    for seed in range(10):
        for family in ("touch", "look", "push", "raise"):
            scene = sample_task(family, seed, "train")
            robot.reset(scene)
            trajectory, kind = expert.plan_failure(scene, np.random.default_rng(seed))
            kinds.add(kind)
            if seed < 4:
                assert not act(robot, trajectory), (family, seed, kind)
    assert kinds == {"stop early", "another object"}


def test_success_survives_the_errors_of_a_cloned_policy(robot):
    """With 0.02 rad of constant error in every joint most demonstrations still succeed; with 0.2 rad few do."""
    expert = Expert(robot.world)
    won = {0.02: 0, 0.2: 0}
    for size in won:
        for seed in range(21):
            scene = sample_scene(seed, "train")
            robot.reset(scene)
            trajectory = expert.plan(scene)
            error = np.random.default_rng(seed).normal(0.0, size, robot.embodiment.state_dim)
            while robot.time < trajectory.duration:
                target = trajectory.at(robot.time) + error * min(1.0, robot.time)
                robot.command(np.clip(target, robot.embodiment.lower, robot.embodiment.upper))
            won[size] += robot.success()
    assert won[0.02] >= 19
    assert won[0.2] <= 12


def test_jacobians_equal_finite_differences(robot):
    """Every residual of the inverse kinematics against central differences."""
    robot.reset(sample_task("touch", 0, "train"))
    solver, world = Kinematics(robot.world), robot.world
    rng = np.random.default_rng(0)
    target = np.array([0.42, 0.15, 0.85])
    pose = world.embodiment.default + rng.uniform(-0.2, 0.2, 23)
    for residual in (
        solver.hand_at("left", target),
        solver.forearm_towards("left", target),
        solver.camera_towards(target),
    ):
        solver._place(pose)
        _, jacobian = residual()
        for joint in range(23):
            step = np.zeros(23)
            step[joint] = 1e-6
            solver._place(pose + step)
            ahead = residual()[0]
            solver._place(pose - step)
            behind = residual()[0]
            column = jacobian[:, world.qvel_index[joint]]
            # The rail does not follow the legs on the scratch copy, so legs move nothing above the pelvis.
            assert column == pytest.approx((ahead - behind) / 2e-6, abs=1e-5)


def test_inverse_kinematics_reaches_and_is_smooth(robot):
    """The hand arrives within 5 mm, and neighbouring targets have neighbouring answers."""
    scene = sample_task("touch", 1, "train")
    robot.reset(scene)
    expert, world = Expert(robot.world), robot.world
    data = mujoco.MjData(world.model)
    previous = None
    for y in np.linspace(0.06, 0.28, 23):
        pose = expert.reach("left", (0.42, float(y), 0.88))
        data.qpos[:] = world.data.qpos
        data.qpos[world.gantry_qpos] = world.standing_height
        data.qpos[world.qpos_index] = pose
        mujoco.mj_kinematics(world.model, data)
        assert data.site_xpos[world.hand_sites["left"]] == pytest.approx((0.42, y, 0.88), abs=0.005)
        if previous is not None:
            assert np.abs(pose - previous).max() < 0.15
        previous = pose
