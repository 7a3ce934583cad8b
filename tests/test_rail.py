"""The robot on a rail: channels that are no joints, in the simulator, from recording to closed loop."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.errors import InvalidObservation
from athena_vla.recordings.formats import open_recording
from athena_vla.sim.demonstrate import demonstrate
from athena_vla.sim.rail import on_rail, scene_of
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.task_language import held_out_objects
from athena_vla.sim.tasks import sample_scene

RAIL = embodiment.load("athena_rail")
HEIGHT, RATE = 23, 24  # columns of a command


@pytest.fixture(scope="module")
def sim() -> SimRobot:
    return SimRobot(scene_of(RAIL, 0, "train"), RAIL, image_size=(48, 48))


def test_athena_without_a_rail_has_the_scenes_it_always_had() -> None:
    athena = embodiment.load("athena")
    assert not on_rail(athena)
    assert [scene_of(athena, i, s) for s in ("train", "test", "base") for i in range(20)] == [
        sample_scene(i, s) for s in ("train", "test", "base") for i in range(20)
    ]


def test_the_body_on_the_rail_is_athenas(sim: SimRobot) -> None:
    athena = embodiment.load("athena")
    assert [dataclasses.replace(j, owner="policy") for j in RAIL.joints] == [
        dataclasses.replace(j, owner="policy") for j in athena.joints
    ]
    assert RAIL.command_names[23:] == ("base_height", "yaw_rate")
    assert RAIL.state_names[23:] == ("base_height",)
    assert (RAIL.action_dim, RAIL.command_dim, RAIL.state_dim) == (13, 25, 24)


def test_the_heading_is_the_integral_of_the_yaw_rate_and_the_height_is_what_was_commanded(sim: SimRobot) -> None:
    sim.reset(scene_of(RAIL, 3, "train"))
    command = RAIL.command_columns.default.copy()
    for k in range(400):
        t = (k + 1) / 200
        command[RATE] = 0.4 * np.sin(np.pi * t / 2)  # its integral over 2 s: 0.4 * 4 / pi
        command[HEIGHT] = 0.72 - 0.1 * t / 2
        sim.command(command)
    command[RATE] = 0.0
    for _ in range(200):
        sim.command(command)
    assert sim.world.heading == pytest.approx(0.4 * 4 / np.pi, abs=2e-3)
    assert sim.observe().state[23] == pytest.approx(0.62, abs=2e-3)
    rest = sim.world.heading
    for _ in range(200):
        sim.command(command)  # a rate of zero is standing still
    assert sim.world.heading == pytest.approx(rest, abs=1e-4)


def test_a_command_without_the_channels_is_refused_with_their_names(sim: SimRobot) -> None:
    with pytest.raises(InvalidObservation, match="lack base_height, yaw_rate"):
        sim.command(np.zeros(23))


def test_the_expert_kneels_before_the_object_it_is_told_and_failures_fail(sim: SimRobot) -> None:
    done = [demonstrate(sim, scene_of(RAIL, i, "train" if i % 2 else "test"), noise=0.01) for i in range(12)]
    assert all(e.marks.success for e in done)
    failed = [demonstrate(sim, scene_of(RAIL, i, "train"), failures=1.0) for i in range(12)]
    assert not any(e.marks.success for e in failed)
    assert {e.truth.failed_on_purpose for e in failed if e.truth} == {"stop early", "another object"}
    kinds = {e.truth.judged for e in failed if e.truth}
    assert kinds == {"not reached", "another object"}


def test_test_scenes_have_objects_that_training_never_kneels_before() -> None:
    def pairs(split: embodiment.Any) -> set[tuple[str, str]]:
        scenes = [scene_of(RAIL, i, split) for i in range(60)]
        return {(s.target.colour, s.target.shape) for s in scenes if s.target}

    reserved = held_out_objects("kneel")
    assert len(reserved) == 3
    assert pairs("test") <= reserved
    assert not pairs("train") & reserved


def test_a_recorded_velocity_is_what_turns_the_robot(tmp_path: Path, sim: SimRobot) -> None:
    """The recorded yaw rate of each frame, summed, is the heading at the end; heights are the measured ones."""
    from athena_vla.sim.record import RecordConfig, record

    record(RecordConfig(out=tmp_path / "rec", episodes=2, robot="athena_rail", failures=0.0, workers=1, image_size=48))
    recording = open_recording(tmp_path / "rec")
    for i, name in enumerate(recording.ids()):
        episode = recording.read(name)
        assert episode.joint_names[23:] == ("base_height", "yaw_rate")
        target = scene_of(RAIL, i, "train").target
        assert target is not None
        # Recorded rates are those at the end of each control step: their sum is the right-hand rule of the integral.
        turned = float(episode.actions[:, RATE].sum()) / RAIL.control_hz
        assert turned == pytest.approx(np.arctan2(target.y, target.x), abs=0.05)
        heights = episode.states[:, list(episode.state_names).index("base_height")]
        assert abs(heights[-1] - episode.actions[-1, HEIGHT]) < 5e-3


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_recordings_to_a_policy_that_kneels(tmp_path: Path) -> None:
    """Record, build, train, merge, quantise, export, gates, closed loop and server, with two channels all the way."""
    from athena_vla.bundle import Bundle
    from athena_vla.dataset.build import BuildConfig, build
    from athena_vla.evaluate import EvaluateConfig, Loop, evaluate
    from athena_vla.export import ExportConfig, export
    from athena_vla.finetune import PRESETS, finetune
    from athena_vla.merge import MergeConfig, merge
    from athena_vla.policy import Policy
    from athena_vla.quantize import QuantizeConfig, quantize
    from athena_vla.sim.record import RecordConfig, record
    from athena_vla.wire.client import RemotePolicy
    from athena_vla.wire.server import PolicyServer, background

    record(RecordConfig(out=tmp_path / "rec", episodes=80, robot="athena_rail"))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="athena_rail"))
    preset = dataclasses.replace(PRESETS["demo"], data=tmp_path / "set", out=tmp_path / "tuned", max_steps=150)
    finetune(dataclasses.replace(preset, evaluate_every=150, warmup_steps=30))
    merge(MergeConfig(input=tmp_path / "tuned", out=tmp_path / "merged"))
    quantize(QuantizeConfig(input=tmp_path / "merged", out=tmp_path / "int8", bits=8, data=tmp_path / "set"))
    exported = export(ExportConfig(input=tmp_path / "int8", out=tmp_path / "onnx")).path
    bundle = Bundle.open(exported)
    assert bundle.robot.command_names[23:] == ("base_height", "yaw_rate")
    told = json.loads((bundle.path / "deployment_config.json").read_text())
    assert told["robot"]["joints"][-2:] == ["base_height", "yaw_rate"]
    result = evaluate(
        EvaluateConfig(
            bundle=bundle.path, data=tmp_path / "set", out=tmp_path / "ev", ablations=False, loop=Loop(episodes=40)
        )
    )
    tuned, hold = result.closed["policy"], result.closed["hold"]
    assert tuned.violations == 0
    assert tuned.success.low > 0.6
    assert hold.success.success == 0.0
    assert result.closed["replay"].success.high < tuned.success.low  # it looks
    assert {"base_height", "yaw_rate"} <= set(result.open.joints if result.open else ())
    policy = Policy.load(bundle.path)
    sim = SimRobot(scene_of(RAIL, 1, "test"), RAIL)
    seen = sim.observe()
    with (
        background(PolicyServer(policy, RAIL, metadata={})) as server,
        RemotePolicy(f"ws://127.0.0.1:{server.port}", RAIL) as remote,
    ):
        chunk = remote.act(seen)
    assert chunk.joint_names[-2:] == ("base_height", "yaw_rate")
    assert chunk.positions.shape == (bundle.spec.horizon, 13)


def test_an_incident_with_channels_becomes_a_page_an_episode_and_a_bag(tmp_path: Path) -> None:
    """What the black box kept of a run with channels is read back whole, and the recording is one to build from."""
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    from athena_vla.drive.driving import DriveConfig, drive
    from athena_vla.incident import IncidentConfig, incident
    from athena_vla.ros2.bag import read_bag
    from athena_vla.ros2.messages import JointMap

    box = tmp_path / "box"
    options = ("robot=athena_rail", "size=48")
    drive(DriveConfig(option=options, duration=2.0, real_time=False, black_box=box))
    made = incident(IncidentConfig(box=box / "athena_rail", out=tmp_path / "incident"))
    assert Path(made.page).is_file()
    [name] = (recording := open_recording(tmp_path / "incident" / "episode")).ids()
    episode = recording.read(name)
    assert episode.joint_names == RAIL.command_names
    assert episode.state_names == RAIL.state_names
    bag = read_bag(made.bag, JointMap(RAIL))
    assert np.array(bag.commands).shape[1] == 25
    assert bag.observations[0].state.shape == (24,)
