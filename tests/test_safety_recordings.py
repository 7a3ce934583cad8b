"""The filter changes nothing when nothing is wrong: demonstrations of the simulator, and of a real humanoid."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.control.runtime import RuntimeConfig, run_episode
from athena_vla.control.safety import SafetyFilter
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.recordings.formats import open_recording

pytest.importorskip("mujoco", reason="mujoco is not installed")

Array = np.ndarray


def outside(rows: Array, robot: Embodiment, rate: float) -> dict[str, Array]:
    """Kind -> [n, J]: where the recording itself, from rest at its first row, breaks a limit; by differences alone."""
    path = np.concatenate([rows[:1], rows[:1], rows])
    velocity = np.diff(path, axis=0) * rate
    acceleration, velocity = np.diff(velocity, axis=0) * rate, velocity[1:]
    step = robot.max_acceleration / rate
    n = np.floor(np.abs(velocity) / step)
    end = rows + np.sign(velocity) * (n * np.abs(velocity) - step * n * (n + 1) / 2) / rate
    return {
        "position": (rows > robot.upper) | (rows < robot.lower),
        "velocity": np.abs(velocity) > robot.max_velocity,
        "acceleration": np.abs(acceleration) > robot.max_acceleration,
        "stop": (end > robot.upper) | (end < robot.lower),
    }


def filtered(rows: Array, robot: Embodiment, rate: float) -> tuple[Array, SafetyFilter]:
    guard = SafetyFilter(robot, rate_hz=rate)
    guard.reset(rows[0])
    return np.array([guard.step(row, k / rate) for k, row in enumerate(rows)]), guard


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    from athena_vla.sim.record import RecordConfig, record

    out = tmp_path_factory.mktemp("demonstrations") / "r"
    record(RecordConfig(out=out, episodes=12, workers=1, image_size=8, quiet=True, seed=2))
    recording = open_recording(out)
    return [recording.read(i) for i in recording.ids()]


def test_demonstrations_of_the_simulator_pass_untouched(demonstrations, athena: Embodiment) -> None:
    assert len({e.truth.task["family"] for e in demonstrations}) > 3
    for episode in demonstrations:
        rows = episode.actions.astype(np.float64)
        assert not any(kind.any() for kind in outside(rows, athena, episode.fps).values())
        out, guard = filtered(rows, athena, episode.fps)
        np.testing.assert_allclose(out, rows, rtol=0, atol=1e-12)
        assert guard.summary()["rate"] == 0.0


def test_the_experts_motion_passes_untouched_at_the_motor_rate(athena: Embodiment) -> None:
    from athena_vla.sim.experts import Expert
    from athena_vla.sim.robot import SimRobot
    from athena_vla.sim.tasks import sample_scene

    robot = SimRobot(sample_scene(0, "train"), athena, "rays", (8, 8))
    for number in range(8):
        scene = sample_scene(number, "train")
        robot.reset(scene)
        trajectory = Expert(robot.world).plan(scene)
        times = np.arange(1, round(trajectory.duration * athena.command_hz)) / athena.command_hz
        rows = np.array([trajectory.at(t) for t in times])
        guard = SafetyFilter(athena)
        guard.reset(trajectory.at(0.0))
        out = np.array([guard.step(row, t) for row, t in zip(rows, times, strict=True)])
        np.testing.assert_allclose(out, rows, rtol=0, atol=1e-12)
        assert not guard.interventions


def test_a_demonstration_played_by_the_control_loop_is_not_touched(demonstrations, athena: Embodiment) -> None:
    """Chunks of recorded rows, interpolated to the motor rate: what the loop adds stays inside the limits too."""
    from test_runtime import Puppet

    episode = demonstrations[0]
    rows = episode.actions.astype(np.float64)

    class Recorded:
        def act(self, observation: Observation, /) -> ActionChunk:
            first = round(observation.time * athena.control_hz)
            ahead = rows[np.minimum(first + np.arange(8), len(rows) - 1)]
            return ActionChunk(ahead, athena.joint_names, 1 / athena.control_hz, observation.time)

    puppet = Puppet(athena)
    puppet.q = rows[0].copy()
    guard = SafetyFilter(athena)
    config = RuntimeConfig(owners=dict.fromkeys(athena.groups, "policy"))
    trace = run_episode(puppet, Recorded(), guard, duration=len(rows) / athena.control_hz, config=config)
    assert trace.interventions == {}
    np.testing.assert_array_equal(trace.commands, trace.targets)


def _plain(name: str) -> str:
    """`kLeftShoulderPitch` and `left_shoulder_pitch` as Unitree's own `left_shoulder_pitch_joint`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix("k")).lower()
    return name if name.endswith("_joint") else f"{name}_joint"


def real(folder: Path) -> tuple[Embodiment, list[tuple[float, Array]]]:
    """The part of a G1 that a recording moves, and its episodes as (rate, rows)."""
    whole, recording = embodiment.load("unitree_g1_23dof"), open_recording(folder)
    episodes = [recording.read(i) for i in recording.ids()]
    names = [_plain(n) for n in episodes[0].joint_names]
    robot = replace(whole, joints=tuple(j for j in whole.joints if j.name in names))
    columns = [names.index(n) for n in robot.joint_names]
    return robot, [(e.fps, e.actions[:, columns].astype(np.float64)) for e in episodes]


def test_real_demonstrations_inside_the_limits_pass_untouched(shared: Path) -> None:
    robot, episodes = real(shared / "data" / "g1_inspire_v21")
    assert len(robot.joints) == 10
    assert len(episodes) == 6
    for rate, rows in episodes:
        assert not any(kind.any() for kind in outside(rows, robot, rate).values())
        out, guard = filtered(rows, robot, rate)
        np.testing.assert_allclose(out, rows, rtol=0, atol=1e-12)
        assert not guard.interventions


def test_a_real_recording_beyond_the_limits_is_touched_where_it_breaks_them(shared: Path) -> None:
    """A walking G1 at 50 Hz: most rows ask for more than the 100 rad/s^2 of our description, which is not Unitree's."""
    robot, [(rate, rows)] = real(shared / "data" / "g1_locomanip_arena_v21_novideo")
    assert len(robot.joints) == 23
    broken = outside(rows, robot, rate)
    count = {kind: int(found.any(axis=1).sum()) for kind, found in broken.items()}
    assert count == {"position": 0, "velocity": 0, "acceleration": 798, "stop": 30}
    out, guard = filtered(rows, robot, rate)
    first = int(np.argmax(np.any([found.any(axis=1) for found in broken.values()], axis=0)))
    np.testing.assert_array_equal(out[:first], rows[:first])
    assert set(guard.interventions) <= {"acceleration", "braking"}
    assert not any(kind.any() for name, kind in outside(out, robot, rate * (1 - 1e-12)).items() if name != "stop")
