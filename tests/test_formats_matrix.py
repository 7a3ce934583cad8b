"""Every format that is read into every format that is written, and back: numbers bit for bit."""
# Every recording of a known format says which; the general type does not.
# pyright: reportAttributeAccessIssue=false

import json

import numpy as np
import pytest

from athena_vla.errors import RecordingError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats import FORMATS, open_recording
from athena_vla.recordings.media.video import VideoFrames
from foreign import FOREIGN, build

TARGETS = ("lerobot_v3", "lerobot_v21", "rlds", "isaac_folder")


def assert_same(a: Episode, b: Episode, streams: bool) -> None:
    for name in ("actions", "states", "timestamps"):
        mine, other = getattr(a, name), getattr(b, name)
        assert mine.dtype == other.dtype, name
        assert np.ascontiguousarray(mine).tobytes() == np.ascontiguousarray(other).tobytes(), name
    for name in ("joint_names", "state_names", "instructions", "success", "segments"):
        assert getattr(a, name) == getattr(b, name), name
    assert set(a.cameras) == set(b.cameras)
    for camera, stream in a.cameras.items():
        for frame in {0, len(a) // 2, len(a) - 1}:
            assert np.array_equal(stream[frame], b.cameras[camera][frame])
    for name, stream in a.streams.items() if streams else ():
        other = b.streams[name].values
        assert stream.values.tolist() == other.reshape(stream.values.shape).tolist(), name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FOREIGN)
def test_there_and_back(tmp_path, name, target):
    before = open_recording(build(name, tmp_path))
    if (name, target) == ("replicator", "isaac_folder"):
        with pytest.raises(RecordingError, match="has no actions, which the folder layout needs"):
            convert(ConvertConfig(input=before.path, out=tmp_path / "out", to=target))
        assert not (tmp_path / "out").exists()
        return
    result = convert(ConvertConfig(input=before.path, out=tmp_path / "out", to=target))
    after = open_recording(tmp_path / "out")
    assert not result.broken
    assert len(after.ids()) == len(before.ids()) == result.episodes
    for a, b in zip(before.ids(), after.ids(), strict=True):
        old, new = before.read(a), after.read(b)
        assert_same(old, new, streams=target != "isaac_folder")
        for camera, stream in old.cameras.items():
            if isinstance(stream, VideoFrames) and target.startswith("lerobot"):
                assert isinstance(new.cameras[camera], VideoFrames)  # packets copied: pixels were compared above


def test_every_format_of_the_table_is_in_the_matrix(tmp_path):
    assert {open_recording(build(n, tmp_path / n.replace(" ", "_"))).format for n in FOREIGN} == set(FORMATS)


def test_camera_terms_of_isaac_lab_are_pictures_however_they_were_normalised(tmp_path):
    recording = open_recording(build("isaaclab", tmp_path))
    cameras = recording.read("demo_0").cameras
    assert set(cameras) == {"table_cam", "wrist_cam", "bright_cam", "head"}
    for frame in (0, 11, 23):
        true = cameras["table_cam"][frame]
        assert np.array_equal(cameras["bright_cam"][frame], true)
        # Isaac Lab takes the mean away, and nobody can bring it back: contrast survives, brightness does not.
        shifted = cameras["wrist_cam"][frame].astype(int) - (true - true.mean(axis=(0, 1)) + 127.5)
        inside = (cameras["wrist_cam"][frame] > 0) & (cameras["wrist_cam"][frame] < 255)
        assert np.abs(shifted)[inside].max() <= 1
        assert np.array_equal(cameras["head"][frame], true[::2, ::2])


def test_masks_of_robomimic_are_splits(tmp_path):
    from athena_vla.check.splits import declared_splits

    recording = open_recording(build("robomimic", tmp_path))
    assert declared_splits(recording) == {"train": ["demo_0"], "valid": ["demo_1"]}
    assert [n for n in (n.text for n in recording.info().notes) if "mask" in n] == [
        "mask 'train' names 1 demos", "mask 'valid' names 1 demos"]  # fmt: skip


def test_render_products_of_replicator_are_cameras(tmp_path):
    info = open_recording(build("replicator", tmp_path)).info()
    assert info.cameras == {"cam_left": (16, 24), "cam_right": (16, 24)}
    assert (info.episodes, info.frames) == (1, 24)


def test_the_quality_of_video_that_was_encoded_is_stated(tmp_path):
    path = build("lerobot v3.0, video and language", tmp_path)
    feature = json.loads((path / "meta/info.json").read_text())["features"]["observation.images.front"]
    assert (feature["info"]["video.codec"], feature["info"]["video.crf"], feature["info"]["video.g"]) == ("h264", 18, 2)
    convert(ConvertConfig(input=path, out=tmp_path / "copied"))
    feature = json.loads((tmp_path / "copied/meta/info.json").read_text())["features"]["observation.images.front"]
    assert "video.crf" not in feature["info"]  # packets copied: their quality was somebody else's choice
