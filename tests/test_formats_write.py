"""Conversion between all formats: numbers bit for bit, pictures pixel for pixel, and a whole result or none."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

import itertools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from athena_vla.errors import AthenaError, RecordingError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.tfrecord import build_example, masked_crc, parse_example, record_offsets
from athena_vla.recordings.media.video import VideoFrames, copy_video, encode_video
from recordings import clean, edited, write

TARGETS = ("lerobot_v3", "lerobot_v21", "rlds", "isaac_folder")
SOURCES = (
    "athena_isaac_folder_gr1",
    "isaaclab_hdf5/franka_stack_mimic_annotated.hdf5",
    "isaaclab_arena_layout_camera/derived_gr1_camera.hdf5",
    "rlds_bridge_octo_debug",
    "g1_locomanip_arena_v21_novideo",
)


def assert_same(a, b) -> None:
    for name in ("actions", "states", "timestamps"):
        mine, other = getattr(a, name), getattr(b, name)
        assert mine.dtype == other.dtype
        assert mine.tobytes() == np.ascontiguousarray(other).tobytes(), name
    for name in ("joint_names", "state_names", "instructions", "success", "segments"):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.cameras) == list(b.cameras)
    for camera in a.cameras:
        for frame in {0, len(a) // 2, len(a) - 1}:
            assert np.array_equal(a.cameras[camera][frame], b.cameras[camera][frame])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_real_recordings_survive_every_format_bit_for_bit(shared, tmp_path, source, target):
    before = open_recording(shared / "data" / source)
    result = convert(ConvertConfig(input=shared / "data" / source, out=tmp_path / "out", to=target))
    after = open_recording(tmp_path / "out")
    assert not result.broken
    assert len(after.ids()) == len(before.ids())
    for old, new in list(zip(before.ids(), after.ids(), strict=True))[:3]:
        a, b = before.read(old), after.read(new)
        assert_same(a, b)
        for name, stream in a.streams.items():
            assert b.streams[name].values.reshape(-1).tolist() == stream.values.reshape(-1).tolist(), name


def test_a_chain_through_all_formats_ends_where_it_began(tmp_path):
    path = write(tmp_path / "start", clean(0), clean(1))
    start = open_recording(path)
    for step, target in enumerate(("lerobot_v3", "rlds", "lerobot_v21", "isaac_folder")):
        convert(ConvertConfig(input=path, out=tmp_path / str(step), to=target))
        path = tmp_path / str(step)
    end = open_recording(path)
    for a, b in zip(start.ids(), end.ids(), strict=True):
        assert_same(start.read(a), end.read(b))


def test_video_is_copied_not_encoded_again(shared, tmp_path):
    source = open_recording(shared / "data/gr1_native_v30").read("1").cameras["ego_view"]
    assert isinstance(source, VideoFrames)
    assert copy_video(source, tmp_path / "copy.mp4")
    copy = VideoFrames(tmp_path / "copy.mp4")
    assert len(copy) == len(source) == 470
    assert copy.codec == source.codec
    assert all(np.array_equal(copy[i], source[i]) for i in (0, 1, 77, 469))
    assert copy.seconds[0] == 0


@pytest.mark.slow
def test_the_golden_pair_by_our_own_conversion(shared, tmp_path):
    convert(ConvertConfig(input=shared / "data/g1_inspire_v21", out=tmp_path / "v30", to="lerobot_v3"))
    mine, theirs = open_recording(tmp_path / "v30"), open_recording(shared / "data/g1_inspire_v30")
    for index in theirs.ids():
        a, b = theirs.read(index), mine.read(index)
        assert a.actions.tobytes() == np.ascontiguousarray(b.actions).tobytes()
        for frame in (0, len(a) // 2, len(a) - 1):
            assert np.array_equal(a.cameras["cam_high"][frame], b.cameras["cam_high"][frame])


def test_encoded_video_is_close_to_its_pictures_and_the_same_every_time(tmp_path):
    images = clean(0).cameras["front"].images
    for name in ("a.mp4", "b.mp4"):
        encode_video(tmp_path / name, images, 10.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    again = VideoFrames(tmp_path / "a.mp4")
    assert len(again) == len(images)
    assert np.abs(again[30].astype(int) - images[30]).mean() < 20  # pure colour noise, which 4:2:0 cannot keep
    with pytest.raises(RecordingError, match="even"):
        encode_video(tmp_path / "c.mp4", images[:, :-1], 10.0)


def test_v21_has_what_gr00t_and_openpi_read(tmp_path, shared):
    convert(ConvertConfig(input=shared / "data/g1_locomanip_arena_v21_novideo", out=tmp_path / "g1", to="lerobot_v21"))
    meta = tmp_path / "g1/meta"
    slices = json.loads((meta / "modality.json").read_text())
    assert slices["state"]["left_leg"] == {"start": 0, "end": 6}
    assert slices["state"]["right_arm"] == {"start": 29, "end": 36}
    covered = sorted((p["start"], p["end"]) for p in slices["action"].values())
    assert covered[0][0] == 0
    assert covered[-1][1] == 43
    assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
    assert {p.name for p in meta.iterdir()} >= {"info.json", "episodes.jsonl", "tasks.jsonl", "episodes_stats.jsonl"}
    table = pq.read_table(tmp_path / "g1/data/chunk-000/episode_000000.parquet")
    tasks = {
        json.loads(x)["task_index"]: json.loads(x)["task"] for x in (meta / "tasks.jsonl").read_text().splitlines()
    }
    assert tasks[table["annotation.human.action.task_description"][0].as_py()].startswith("Pick up the brown box")
    assert table["frame_index"].to_pylist() == list(range(852))


def test_segments_become_language_and_annotation_columns(tmp_path):
    from dataclasses import replace

    from athena_vla.recordings.episode import Segment

    spans = (Segment(0, 20, "prepare", "reach", "human", 1.0), Segment(20, 60, "manipulate", "lift", "human", 1.0))
    path = write(tmp_path / "in", replace(clean(0), segments=spans))
    convert(ConvertConfig(input=path, out=tmp_path / "v3", language_columns=True))
    column = pq.read_table(tmp_path / "v3/data/chunk-000/file-000.parquet")["language_persistent"].to_pylist()
    assert [(u["content"], u["style"], round(u["timestamp"], 3)) for u in column[0]] == [
        ("reach", "subtask", 0.0), ("lift", "subtask", 2.0)]  # fmt: skip
    assert column[0] == column[59]
    (tmp_path / "v3/meta/athena_recording.json").unlink()
    again = open_recording(tmp_path / "v3").read("0")
    assert [(s.start, s.stop, s.text) for s in again.segments] == [(0, 20, "reach"), (20, 60, "lift")]
    convert(ConvertConfig(input=path, out=tmp_path / "v21", to="lerobot_v21"))
    labels = pq.read_table(tmp_path / "v21/data/chunk-000/episode_000000.parquet")["annotation.human.action.segment"]
    assert len(set(labels.to_pylist()[:20])) == 1
    assert labels[0] != labels[59]


@pytest.mark.parametrize("target", TARGETS)
def test_one_broken_episode_costs_only_itself_and_strict_costs_all(tmp_path, target):
    root = write(tmp_path / "in", clean(0), clean(1), clean(2))
    (root / "episode_0001/trajectory.npz").write_bytes(b"PK")
    result = convert(ConvertConfig(input=root, out=tmp_path / "out", to=target))
    assert (result.episodes, list(result.broken)) == (2, ["episode_0001"])
    with pytest.raises(RecordingError, match="strict"):
        convert(ConvertConfig(input=root, out=tmp_path / "strict", to=target, strict=True))
    assert not (tmp_path / "strict").exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_fixes_are_explicit_and_recorded(tmp_path):
    from dataclasses import replace

    rows = np.concatenate([np.zeros(25, int), np.arange(60), np.full(25, 59)])
    still = clean(0)
    long = edited(
        still, actions=still.actions[rows], states=still.states[rows], timestamps=np.arange(110) / 10,
        cameras={"front": type(still.cameras["front"])(still.cameras["front"].images[rows])})  # fmt: skip
    root = write(tmp_path / "in", long, replace(long, id="twin"), clean(2, success=False))
    fix = ("trim-idle", "drop-failed", "drop-duplicates")
    result = convert(ConvertConfig(input=root, out=tmp_path / "out", fix=fix))
    assert result.episodes == 1
    assert 60 <= result.frames < 75
    assert set(result.fixed) == {"episode_0000", "episode_0002", "twin"}
    recorded = json.loads((tmp_path / "out/meta/athena_recording.json").read_text())["fixes"]
    assert recorded == {k: list(v) for k, v in result.fixed.items()}
    with pytest.raises(AthenaError, match="no fix 'magic'"):
        convert(ConvertConfig(input=root, out=tmp_path / "x", fix=("magic",)))


def slow_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_mask_of_a_record_against_the_check_value_and_a_slow_reference():
    def masked(crc: int) -> int:  # TFRecord: rotated right by 15 bits, plus a constant
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    assert masked_crc(b"123456789") == masked(0xE3069283)  # RFC 3720
    rng = np.random.default_rng(0)
    for size in (0, 1, 2047, 8 * 2048 + 1):
        data = rng.bytes(size)
        assert masked_crc(data) == masked_crc(memoryview(data)) == masked(slow_crc(data))


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.binary(max_size=30), max_size=4),
    integers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
    floats=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
)
def test_examples_round_trip(texts, integers, floats):
    built = build_example({"t": texts, "i": np.array(integers, np.int64), "f": np.array(floats, np.float32)})
    parsed = parse_example(built)
    assert parsed["i"].tolist() == integers
    assert parsed["f"].tolist() == np.array(floats, np.float32).tolist()
    assert parsed.get("t", []) == texts


def test_one_flipped_byte_in_a_record_is_noticed(shared, tmp_path):
    shutil.copytree(shared / "data/rlds_bridge_octo_debug", tmp_path / "set")
    file = next((tmp_path / "set").rglob("*.tfrecord*"))
    offset, length = record_offsets(file)[3]
    data = bytearray(file.read_bytes())
    data[offset + length // 2] ^= 1
    file.write_bytes(bytes(data))
    recording = open_recording(tmp_path / "set")
    assert recording.info().episodes == 24
    with pytest.raises(RecordingError, match="CRC"):
        recording.read("train_00003")
