"""ROS 2 bags as recordings: own clocks, joints by name. Oracle: what is written here, by rosbags."""

from pathlib import Path

import numpy as np
import pytest

import athena_vla.embodiment as embodiment
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import DatasetError, RecordingError, UnknownName
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.bags.bag_topics import guessed
from athena_vla.recordings.info import InfoConfig, info
from athena_vla.recordings.reading import Reading
from lerobot_sets import number_of, numbered

pytest.importorskip("rosbags")
from rosbags.rosbag2 import StoragePlugin

from bags import CAMERA_HZ, HZ, JOINTS, ROWS, START, Bag, image, joint_state, swing, text, write


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("raw", [False, True])
def test_topics_become_streams_with_their_own_clocks(tmp_path: Path, plugin: StoragePlugin, raw: bool) -> None:
    write(tmp_path / "take", plugin, raw=raw)
    episode = open_recording(tmp_path / "take").read("take")
    seconds = np.arange(ROWS) / HZ
    q = swing(seconds)
    assert episode.joint_names == tuple(JOINTS)
    np.testing.assert_allclose(episode.states, q, atol=1e-12)
    np.testing.assert_allclose(episode.timestamps, seconds, atol=1e-6)
    assert episode.fps == HZ
    # A row has the command that was in force at its stamp: the one of the row before. Fingers were never commanded.
    np.testing.assert_allclose(episode.actions[1:, 1:], q[:-1, 1:] + 0.01)
    np.testing.assert_allclose(episode.actions[:, 0], q[:, 0])
    assert [n.items for n in episode.notes if n.code == "joint.unmatched"] == [("finger",)]
    expected = np.floor((seconds + 0.02) * CAMERA_HZ + 1e-6).astype(int)
    assert [number_of(episode.cameras["front"][i])[0] for i in range(ROWS)] == expected.tolist()
    assert episode.instructions == ("wave",)
    assert episode.success is True
    wrench = episode.streams["wrench"]
    np.testing.assert_array_equal(wrench.values[:, 0], np.arange(ROWS))
    assert wrench.clock is not None
    np.testing.assert_allclose(wrench.clock.stamps, seconds + 0.003, atol=1e-6)
    assert episode.streams["velocity"].values.shape == (ROWS, 3)
    assert {n.items for n in episode.notes if n.code == "stream.unused"} == {("/front/depth", "/words")}


def test_a_folder_of_bags_is_built_and_a_file_alone_is_read(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write(tmp_path / "bags" / f"take_{number}")
    recording = open_recording(tmp_path / "bags")
    assert recording.ids() == ("take_1", "take_2", "take_10")
    single = next((tmp_path / "bags/take_1").glob("*.mcap"))
    assert open_recording(single).read(single.stem).fps == HZ
    found = info(InfoConfig(input=tmp_path / "bags"))
    assert (found.info.episodes, found.info.successes) == (3, 3)
    assert 'state = "/joint_states"' in str(found)
    build(
        BuildConfig(
            input=tmp_path / "bags", out=tmp_path / "set", robot="toy", workers=1, horizon=4, validation=0.0
        )
    )  # fmt: skip
    dataset = Dataset.open(tmp_path / "set")
    state = dataset[3].observation.state  # base, shoulder, finger at 10 Hz
    np.testing.assert_allclose(state, swing(np.array([0.3]))[0][[1, 2, 0]], atol=1e-6)
    convert(ConvertConfig(input=tmp_path / "bags", out=tmp_path / "folder", to="isaac_folder"))
    again = open_recording(tmp_path / "folder").read("take_1")
    np.testing.assert_array_equal(again.actions, recording.read("take_1").actions)


def test_without_commands_the_next_positions_are_targets(tmp_path: Path) -> None:
    write(tmp_path / "take", targets=False)
    episode = open_recording(tmp_path / "take").read("take")
    np.testing.assert_array_equal(episode.actions[:-1], episode.states[1:])
    assert "action.next_positions" in {n.code for n in episode.notes}


def test_two_publishers_of_one_topic_are_joined_by_name(tmp_path: Path) -> None:
    bag = Bag(tmp_path / "take")
    for i in range(20):
        t = START + i / 10
        bag.add("/joint_states", joint_state(t, ["gripper"], np.array([0.01 * i])), t)
        bag.add("/joint_states", joint_state(t + 0.02, ["a", "b"], np.array([i, 2.0 * i])), t + 0.02)
    bag.close()
    episode = open_recording(tmp_path / "take").read("take")
    assert episode.joint_names == ("gripper", "a", "b")
    np.testing.assert_allclose(episode.states, [[0.01 * i, i, 2.0 * i] for i in range(20)])


def test_topics_are_guessed_or_said(tmp_path: Path) -> None:
    state, path = "sensor_msgs/msg/JointState", tmp_path / "topics.toml"
    assert guessed({"/a/joint_states": state, "/a/joint_command": state}, "x").targets == ("/a/joint_command",)
    with pytest.raises(RecordingError, match=r"/left/states, /right/states.*--topics"):
        guessed({"/left/states": state, "/right/states": state}, "x")
    with pytest.raises(RecordingError, match=r"none.*--topics"):
        guessed({}, "x")
    write(tmp_path / "take")
    reading = Reading(topics=path)
    path.write_text('state = "/joint_states"\n[cameras]\nhead = "/front/image_raw"\n')
    episode = reading.open(tmp_path / "take").read("take")
    assert list(episode.cameras) == ["head"]
    assert episode.instructions == ()
    for content, error, said in (
        ('state = "/states"', UnknownName, "/joint_states"),
        ('stat = "/joint_states"', UnknownName, "state"),
        ('state = "/task"', RecordingError, "expected sensor_msgs/msg/JointState"),
        ("state = 3", RecordingError, "must say"),
        ("state = ", RecordingError, "no TOML"),
    ):
        path.write_text(content)
        with pytest.raises(error, match=said):
            reading.open(tmp_path / "take").read("take")


def test_other_bags_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(100))
    with pytest.raises(RecordingError, match=r"ROS 1.*rosbags-convert"):
        open_recording(tmp_path / "old.bag")
    write(tmp_path / "take")
    file = next((tmp_path / "take").glob("*.mcap"))
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordingError, match=r"take|mcap"):
        open_recording(tmp_path / "take").read("take")


def test_a_linked_set_of_a_bag_cannot_forget_its_topics(tmp_path: Path) -> None:
    write(tmp_path / "take")
    (tmp_path / "topics.toml").write_text('state = "/joint_states"\n')
    with pytest.raises(DatasetError, match="--topics"):
        build(
            BuildConfig(
                input=tmp_path / "take", out=tmp_path / "set", robot="toy", link=True, topics=tmp_path / "topics.toml"
            )
        )


def test_two_cameras_of_different_rates_each_show_the_last_image_before_the_row(tmp_path: Path) -> None:
    """From the recording through the build: an image carries its number, its time times its camera's rate."""
    rates = {"front": 15, "side": 8}
    for take in range(2):
        bag = Bag(tmp_path / "bags" / f"take_{take}")
        for i in range(ROWS):
            row = swing(np.array([i / HZ + take]))[0]
            bag.add("/joint_states", joint_state(START + i / HZ, JOINTS, row), START + i / HZ)
        for name, rate in rates.items():
            for k in range(ROWS // HZ * rate):
                bag.add(f"/{name}/image_raw", image(START + k / rate, numbered(k)), START + k / rate)
        bag.add("/task", text("wave"), START)
        bag.close()
    robot = tmp_path / "two.toml"
    toy = (Path(embodiment.__file__).parent / "robots/toy.toml").read_text()
    front = toy[toy.index("[[camera]]") : toy.index("[[joint]]")]
    robot.write_text(toy.replace("[[joint]]", front.replace('"front"', '"side"') + "[[joint]]", 1))
    build(BuildConfig(input=tmp_path / "bags", out=tmp_path / "set", robot=str(robot), workers=1, validation=0.0))
    dataset = Dataset.open(tmp_path / "set")
    steps = ROWS * 10 // HZ  # at 10 Hz
    for i in range(2 * steps):
        sample = dataset[i]
        for name, rate in rates.items():
            expected = int(np.floor(sample.frame / 10 * rate + 1e-6))
            assert number_of(sample.observation.images[name])[0] == expected, (i, name)
