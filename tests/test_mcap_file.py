"""The one MCAP codec: damaged bytes are one sentence, a file cut short gives what is whole, joints go by name."""

import random
from pathlib import Path

import numpy as np
import pytest

import athena_vla.embodiment as embodiment
from athena_vla.check.episode_checks import episode_findings
from athena_vla.control.trace import Trace
from athena_vla.embodiment import ActionChunk, Embodiment, Observation
from athena_vla.errors import RecordingError

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("mcap", reason="mcap is not installed")

import bags
from athena_vla.bags.mcap_file import McapFile, McapWriter
from athena_vla.bags.message_types import known_types
from athena_vla.recordings.formats import open_recording
from athena_vla.ros2.bag import Topics, read_bag, write_bag
from athena_vla.ros2.messages import JointMap

STEPS = 400
STRING = "std_msgs/msg/String"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"


@pytest.fixture(scope="module")
def body() -> Embodiment:
    return embodiment.load("toy")


def deployment(body: Embodiment) -> Trace:
    times = np.arange(STEPS) / body.command_hz
    rows = np.tile(body.default, (STEPS, 1)) + np.linspace(0, 0.1, STEPS)[:, None]
    draw = np.random.default_rng(0)
    seen = tuple(
        Observation({"front": draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)}, body.default, "wave", float(t))
        for t in times[::20]
    )
    chunk = ActionChunk(np.tile(body.default[body.action_index], (8, 1)), body.action_joints, 0.1, 0.0)
    return Trace(
        robot=body.name, joint_names=body.joint_names, units=("rad",) * 3, state_names=body.joint_names,
        instruction="wave", times=times, targets=rows, commands=rows, levels=np.zeros(STEPS, np.int8),
        state_times=times[::20], states=np.tile(body.default, (STEPS // 20, 1)), chunks=(chunk,),
        latencies=np.zeros(1), delays=np.zeros(1), interventions={}, touched_steps=0, deadline_misses=0, overruns=0,
        errors=(), ended_by="duration", frames=seen,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(body: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bag") / "a.mcap"
    return write_bag(path, deployment(body), JointMap(body)).read_bytes()


def test_no_damage_is_anything_but_a_sentence_or_the_right_numbers(body, whole, tmp_path) -> None:
    """Cut anywhere, and bytes changed anywhere: what is read is a prefix of what was written, to the last bit."""
    expected = deployment(body).commands
    draw = random.Random(0)
    read = 0
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.choice((1, 3, 20)) if number % 3 else 0):
            data[draw.randrange(len(data) if number % 3 == 1 else 4000)] = draw.randrange(256)
        (tmp_path / "b.mcap").write_bytes(data)
        try:
            found = read_bag(tmp_path / "b.mcap", JointMap(body)).commands
        except RecordingError:
            continue
        read += 1
        if found:
            np.testing.assert_array_equal(np.stack(found), expected[: len(found)])
    assert read > 30


def test_a_bag_cut_by_a_power_failure_gives_what_is_whole_and_says_where_it_ends(body, tmp_path) -> None:
    path = tmp_path / "c.mcap"
    with McapWriter(path) as bag:  # a chunk a second, as a recorder writes them
        bag._writer._Writer__chunk_size = 20_000  # pyright: ignore[reportPrivateUsage]
        for i, row in enumerate(deployment(body).commands):
            joints = JointMap(body)
            message = joints.trajectory(body.joint_names, row[None], 0.01, i * 0.01)
            bag.put(Topics().command, TRAJECTORY, message, i * 0.01)
    data = path.read_bytes()
    with McapFile(path) as file:
        assert len(file._places) > 3
        assert not file.cut
        last = file._places[-1].offset
    path.write_bytes(data[: last + 40])
    bag = read_bag(path, JointMap(body))
    assert STEPS * 0.5 < len(bag.commands) < STEPS
    np.testing.assert_array_equal(np.stack(bag.commands), deployment(body).commands[: len(bag.commands)])
    assert f"what lies before byte {last} of {last + 40} is read" in bag.cut


def test_a_flipped_bit_in_an_image_is_found_by_the_checksum(body, whole, tmp_path) -> None:
    from mcap.writer import CompressionType, Writer

    path, types = tmp_path / "plain.mcap", known_types()
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE)
        writer.start("ros2")
        schema = writer.register_schema(
            "std_msgs/msg/String", "ros2msg", types.definition("std_msgs/msg/String").encode()
        )
        channel = writer.register_channel("/task", "cdr", schema)
        writer.add_message(channel, 1, types.data("std_msgs/msg/String", {"data": "wave to the camera"}), 1)
        writer.finish()
    with McapFile(path) as file:
        assert [m.message.data for m in file.messages()] == ["wave to the camera"]
    data = bytearray(path.read_bytes())
    at = data.index(b"wave to")
    data[at] ^= 1
    path.write_bytes(data)
    with McapFile(path) as file, pytest.raises(RecordingError, match=r"damaged: the chunk at byte \d+ .*crc"):
        list(file.messages())


def test_a_size_that_cannot_be_is_refused_before_it_is_taken(tmp_path, whole) -> None:
    path = tmp_path / "huge.mcap"
    at = whole.index(b"\x06")  # the first chunk: opcode, length, two times, then the unpacked size
    with_size = bytearray(whole)
    while with_size[at] != 6 or int.from_bytes(with_size[at + 1 : at + 9], "little") > len(whole):
        at = whole.index(b"\x06", at + 1)
    with_size[at + 25 : at + 33] = (2**40).to_bytes(8, "little")
    path.write_bytes(with_size)
    with McapFile(path) as file, pytest.raises(RecordingError, match="chunk"):
        list(file.messages())


def test_commands_of_another_publisher_are_read_by_name(body, tmp_path) -> None:
    joints, row = JointMap(body), np.array([0.0, 0.1, 0.2])
    names = body.joint_names
    path = tmp_path / "x.mcap"
    with McapWriter(path) as bag:
        for i, order in enumerate(((names[1],), names, tuple(reversed(names)), names[:2])):
            values = np.array([row[names.index(n)] + (i == 3) for n in order])
            bag.put(Topics().command, TRAJECTORY, joints.trajectory(order, values[None], 0.005, i), i)
    first, second, third, fourth = read_bag(path, joints).commands
    assert np.isnan(first).tolist() == [True, False, True]
    np.testing.assert_array_equal([second, third], [row, row])
    np.testing.assert_array_equal(fourth, np.array([row[0] + 1, row[1] + 1, row[2]]))


def test_a_message_that_cannot_be_of_this_robot_is_one_sentence(body, tmp_path) -> None:
    path = tmp_path / "other.mcap"
    with McapWriter(path) as bag:
        bag.put(Topics().state, STRING, {"data": "no joints here"}, 2.5)
    with pytest.raises(RecordingError, match=r"message of '/joint_states' at 2.500 s cannot be of 'toy'"):
        read_bag(path, JointMap(body))


def test_what_is_written_is_read_by_another_library(body, whole, tmp_path) -> None:
    decoder = pytest.importorskip("mcap_ros2.decoder", reason="mcap-ros2-support is not installed")
    from mcap.reader import make_reader

    path = tmp_path / "a.mcap"
    path.write_bytes(whole)
    with path.open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[decoder.DecoderFactory()])
        found = [(c.topic, m) for _, c, _, m in reader.iter_decoded_messages()]
    told = [np.array(m.points[0].positions) for topic, m in found if topic == Topics().command]
    np.testing.assert_array_equal(told, deployment(body).commands)
    images = [np.frombuffer(bytes(m.data), np.uint8) for topic, m in found if topic.endswith("image_raw")]
    np.testing.assert_array_equal(images, [f.images["front"].reshape(-1) for f in deployment(body).frames])


def take(body: Embodiment, path: Path) -> Path:
    times = bags.START + np.arange(bags.ROWS) / bags.HZ
    with McapWriter(path) as bag:
        for time, row in zip(times, bags.swing(times - bags.START), strict=True):
            bag.put("/joint_states", "sensor_msgs/msg/JointState", JointMap(body).joint_state(row, time), time)
    return path


def test_a_recording_that_was_cut_is_read_with_a_note_and_a_damaged_one_is_broken(body, tmp_path) -> None:
    file = take(body, tmp_path / "whole.mcap")
    (tmp_path / "one").mkdir()
    data = file.read_bytes()
    cut, damaged = tmp_path / "one" / "cut.mcap", tmp_path / "one" / "damaged.mcap"
    with McapFile(file) as opened:
        assert opened._summary() is not None
        places = opened._places
    assert len(places) == 1  # all of this short take is in one chunk; so a second one follows it, half written
    head = places[0].offset
    end = head + 9 + int.from_bytes(data[head + 1 : head + 9], "little")
    cut.write_bytes(data[:end] + data[head : end - 100])
    damaged.write_bytes(data[: end - 200] + bytes([data[end - 200] ^ 1]) + data[end - 199 :])
    recording = open_recording(tmp_path / "one")
    episode = recording.read("cut")
    assert len(episode) == bags.ROWS
    assert [n.code for n in episode.notes if "cut off" in n.text] == ["episode.cut"]
    with pytest.raises(RecordingError, match="damaged"):
        recording.read("damaged")
    assert "episode.cut" in {f.code for f in episode_findings(episode, None, 8)}


def test_a_bag_in_several_files_is_one_episode(tmp_path) -> None:
    from rosbags.rosbag2 import StoragePlugin

    for part in range(2):
        bag = bags.Bag(tmp_path / f"part{part}", StoragePlugin.MCAP)
        times = bags.START + np.arange(30 * part, 30 * part + 30) / bags.HZ
        for time, row in zip(times, bags.swing(times - bags.START), strict=True):
            bag.add("/joint_states", bags.joint_state(float(time), bags.JOINTS, row), float(time))
        bag.close()
    (tmp_path / "bag").mkdir()
    (tmp_path / "part0" / "metadata.yaml").rename(tmp_path / "bag" / "metadata.yaml")
    for part in (1, 0):
        next((tmp_path / f"part{part}").glob("*.mcap")).rename(tmp_path / "bag" / f"bag_{part}.mcap")
    recording = open_recording(tmp_path / "bag")
    episode = recording.read("bag")
    seconds = np.arange(60) / bags.HZ
    np.testing.assert_allclose(episode.states, bags.swing(seconds), atol=1e-6)


def test_a_stray_bag_of_ros_1_does_not_hide_another_recording(tmp_path) -> None:
    import recordings

    root = recordings.write(tmp_path / "in", recordings.clean(0))
    (root / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    assert open_recording(root).info().format != "ros2_bag"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(RecordingError, match="ROS 1"):
        open_recording(tmp_path / "old")
