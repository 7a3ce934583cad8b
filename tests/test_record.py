"""The recorder: layout, same bytes for any number of workers, resuming, and refusing what cannot work."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from athena_vla.embodiment import load
from athena_vla.errors import SimulationError, UnknownName
from athena_vla.recordings.formats.isaac_folder import OpenOptions, open_path
from athena_vla.sim.demonstrate import demonstrate, disturbance
from athena_vla.sim.record import RecordConfig, record
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.tasks import sample_scene, sample_task

SMALL = RecordConfig(episodes=4, workers=1, image_size=24, quiet=True, seed=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    out = tmp_path_factory.mktemp("recording") / "r"
    return record(replace(SMALL, out=out))


def test_the_layout_is_the_users(recording):
    robot = load("athena")
    assert (recording.episodes, recording.reused) == (4, 0)
    for number in range(4):
        folder = recording.path / f"episode_{number:04d}"
        arrays = np.load(folder / "trajectory.npz", allow_pickle=False)
        length = len(arrays["actions"])
        assert arrays["actions"].shape == (length, 23)
        assert arrays["observations"].shape == (length, 46)
        pictures = sorted((folder / "images").glob("rgb_*.png"))
        assert [p.name for p in pictures] == [f"rgb_{i:04d}.png" for i in range(length)]
        assert Image.open(pictures[0]).size == (24, 24)
        assert np.diff(arrays["timestamps"]) == pytest.approx(1 / robot.control_hz)
        assert 25 <= length <= 50
        meta = json.loads((folder / "metadata.json").read_text())
        assert meta["joint_names"] == list(robot.joint_names)
        assert meta["task_description"] == meta["instructions"][0]
        assert isinstance(meta["success"], bool)
        assert meta["fps"] == robot.control_hz
        signals = meta["extras"]["simulator"]
        assert len(signals["hand_contact"]) == len(signals["object_positions"]) == length
        assert signals["phases"][0]["start"] == 0.0


def test_it_reads_back_as_an_episode(recording):
    found = open_path(recording.path, OpenOptions())
    assert len(found.ids()) == 4
    episode = found.read("episode_0001")
    assert episode.joint_names == load("athena").joint_names
    assert len(episode.cameras["head"]) == len(episode)
    assert episode.states.shape[1] == 46


def test_an_action_is_the_next_steps_target(recording):
    """The joints arrive at the recorded target one control step later, but for servo lag and disturbance."""
    episode = open_path(recording.path, OpenOptions()).read("episode_0000")
    error = np.abs(episode.states[1:, :23] - episode.actions[:-1])
    assert np.median(error) < 0.02
    assert error.max() < 0.25
    assert np.abs(episode.states[:-1, :23] - episode.actions[:-1]).mean() > error.mean()


def test_same_bytes_for_any_number_of_workers(recording, tmp_path):
    again = record(replace(SMALL, out=tmp_path / "two", workers=2))
    assert contents(again.path) == contents(recording.path)


def test_finished_episodes_are_kept_and_missing_ones_redone(tmp_path):
    import shutil

    settings = replace(SMALL, episodes=3, out=tmp_path / "r")
    first = record(settings)
    before = contents(first.path)
    shutil.rmtree(first.path / "episode_0001")
    (first.path / ".episode_0001-half").mkdir()  # what an interruption leaves
    stamp = (first.path / "episode_0000" / "trajectory.npz").stat().st_mtime_ns
    second = record(settings)
    assert second.reused == 2
    assert second.successes == first.successes
    assert contents(second.path) == before
    assert (first.path / "episode_0000" / "trajectory.npz").stat().st_mtime_ns == stamp
    longer = record(replace(settings, episodes=4))
    assert (longer.reused, longer.episodes) == (3, 4)


def test_another_recording_is_not_mixed_in(tmp_path):
    settings = replace(SMALL, episodes=1, out=tmp_path / "r")
    record(settings)
    with pytest.raises(SimulationError, match="holds another recording"):
        record(replace(settings, seed=4))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("")
    with pytest.raises(SimulationError, match="not a recording of ours"):
        record(replace(settings, out=other))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episodes": 0}, "Cannot record 0 episodes"),
        ({"failures": 1.5}, "share from 0 to 1"),
        ({"image_size": 4}, "too small"),
        ({"workers": 0}, "1 or more"),
        ({"seed": -1}, "must not be negative"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, change, words):
    with pytest.raises(SimulationError, match=words):
        record(replace(SMALL, out=tmp_path / "r", **change))
    assert not (tmp_path / "r").exists()


def test_unknown_split_and_renderer(tmp_path):
    with pytest.raises(UnknownName, match="train, test, base"):
        record(replace(SMALL, out=tmp_path / "r", split="validation"))
    with pytest.raises(UnknownName, match="rays"):
        record(replace(SMALL, out=tmp_path / "r", renderer="vulkan"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(SimulationError, match="Make room"):
        record(replace(SMALL, out=tmp_path / "r"))


def test_an_error_while_writing_keeps_what_is_whole(tmp_path, monkeypatch):
    from athena_vla.sim import record as module

    real, calls = module.write_episode, []

    def full(root, episode):
        calls.append(episode.id)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(root, episode)

    monkeypatch.setattr(module, "write_episode", full)
    with pytest.raises(SimulationError, match="after 1 of 4 episodes: .*No space left"):
        record(replace(SMALL, out=tmp_path / "r"))
    assert [f.name for f in (tmp_path / "r").iterdir() if f.is_dir()] == ["episode_0000"]


def test_failures_on_purpose_are_recorded_as_failures():
    robot = SimRobot(sample_scene(0, "train"), image_size=(8, 8))
    episode = demonstrate(robot, sample_task("touch", 2, "train"), failures=1.0)
    assert episode.success is False
    assert episode.truth is not None
    assert episode.truth.failed_on_purpose in ("stop early", "another object")
    good = demonstrate(robot, sample_task("touch", 2, "train"))
    assert good.success is True
    assert good.truth is not None
    assert good.truth.success_time is not None
    assert good.truth.success_time > 1.0
    assert good.truth.contacts["hand_contact"].any() or good.truth.judged == "success"


def test_disturbances_are_bounded_and_slow(athena):
    wander = disturbance(np.random.default_rng(0), 0.01, 23)
    path = np.stack([wander(i / 200) for i in range(800)])
    assert np.abs(path).max() <= 0.02
    assert np.abs(path[0]).max() == 0.0
    assert (np.abs(np.diff(path, 2, axis=0)) * 200**2 < 0.2 * athena.max_acceleration).all()


def test_the_recorders_own_episodes_raise_no_warning(tmp_path: Path) -> None:
    """A finding above info on clean recordings would teach people to look away."""
    from athena_vla.check import CheckConfig, check

    record(RecordConfig(out=tmp_path / "rec", episodes=16, workers=1, image_size=32))
    found = check(CheckConfig(input=tmp_path / "rec", robot="athena")).findings
    assert [str(f.code) for f in found if f.severity != "info"] == []
