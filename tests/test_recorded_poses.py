"""The filter on recorded poses: what an actor asks for is bounded, counted by arithmetic of the test's own."""

import numpy as np
import pytest

from athena_vla.control import runtime
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.evaluate.baselines import Hostile
from athena_vla.evaluate.recorded_poses import SECONDS, RecordedBody, follow
from athena_vla.recordings.episode import Sample


class Toward:
    """Asks for one pose."""

    def __init__(self, robot: Embodiment, pose: np.ndarray) -> None:
        self.robot, self.pose = robot, pose

    def act(self, observation: Observation, /) -> ActionChunk:
        rows = np.tile(self.pose[self.robot.action_index], (8, 1))
        return ActionChunk(rows, self.robot.action_joints, 1 / self.robot.control_hz)


def sample_at(robot: Embodiment, state: np.ndarray) -> Sample:
    image = np.zeros((8, 8, 3), np.uint8)
    seen = Observation({c.name: image for c in robot.cameras}, state, "go")
    return Sample(seen, np.zeros((8, len(robot.action_joints)), np.float32), np.ones(8, bool), "0", 0)


def test_every_command_from_every_pose_keeps_the_limits(toy: Embodiment, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    kept = runtime.run_episode

    def remember(*arguments, **options):
        traces.append(kept(*arguments, **options))
        return traces[-1]

    monkeypatch.setattr("athena_vla.evaluate.recorded_poses.run_episode", remember)
    middle = (toy.lower + toy.upper) / 2
    poses = [middle, 0.9 * toy.upper + 0.1 * middle]
    rows = follow("hostile", Hostile(toy), [sample_at(toy, p) for p in poses], toy)
    assert [r.violations for r in rows] == [0, 0]
    assert all(r.touched > 0 for r in rows)
    for trace, pose in zip(traces, poses, strict=True):
        path = np.concatenate([pose[None], pose[None], trace.commands])
        assert len(trace.commands) >= SECONDS * toy.command_hz
        assert (path <= toy.upper + 1e-9).all()
        assert (path >= toy.lower - 1e-9).all()
        speed = np.diff(path, axis=0) * toy.command_hz
        assert (np.abs(speed) <= toy.max_velocity * (1 + 1e-6)).all()
        assert (np.abs(np.diff(speed, axis=0)) * toy.command_hz <= toy.max_acceleration * (1 + 1e-6)).all()


def test_a_wish_within_the_limits_is_reached(toy: Embodiment) -> None:
    middle = (toy.lower + toy.upper) / 2
    goal = middle + 0.05 * (toy.upper - middle)
    body = RecordedBody(toy, sample_at(toy, middle))
    rows = follow("toward", Toward(toy, goal), [body.sample], toy)
    assert rows[0].violations == 0
    assert rows[0].errors == ()


def test_channels_start_where_they_were_recorded_and_stay_bounded() -> None:
    from channels import robot

    body = robot()  # base_height is measured, yaw_rate and grip are not, wrist_force is measured only
    state = np.array([0.1, 0.2, 0.1, 0.55, 7.0])
    recorded = RecordedBody(body, sample_at(body, state))
    np.testing.assert_allclose(recorded.told, [0.1, 0.2, 0.1, 0.55, 0.0, 1.0])
    recorded.command(np.array([0.2, 0.3, 0.2, 0.6, 0.4, 0.5]))
    np.testing.assert_allclose(recorded.observe().state, [0.2, 0.3, 0.2, 0.6, 7.0])
    rows = follow("hostile", Hostile(body), [sample_at(body, state)], body)
    assert rows[0].violations == 0
    assert rows[0].commands > 0
    assert {"base_height", "yaw_rate"} <= set().union(*map(set, rows[0].interventions_by_joint.values()))
