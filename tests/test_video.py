"""Frames of video files: any order gives what reading in order gives, whoever else reads the same file."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportAttributeAccessIssue=false

import os

import numpy as np
import pytest

from athena_vla.errors import RecordingError
from athena_vla.recordings.media import video
from athena_vla.recordings.media.video import VideoFrames, encode_video
from recordings import clean


@pytest.fixture
def path(tmp_path):
    encode_video(tmp_path / "v.mp4", clean(0, length=90).cameras["front"].images, 10.0)
    return tmp_path / "v.mp4"


def test_two_episodes_of_one_file_read_in_turns_share_its_decoder(path):
    whole = VideoFrames(path)
    ordered = [whole[i].copy() for i in range(90)]
    early, late = VideoFrames(path, 0.0, 4.0), VideoFrames(path, 4.0, 9.0)
    assert (len(early), len(late)) == (40, 50)
    rng = np.random.default_rng(0)
    for i, j in zip(rng.integers(0, 40, 30), rng.integers(0, 50, 30), strict=True):
        assert np.array_equal(early[int(i)], ordered[i])
        assert np.array_equal(late[int(j)], ordered[40 + j])
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns, os.getpid())
    hits = video._decoder.cache_info().hits
    video._decoder(*key)
    assert video._decoder.cache_info().hits == hits + 1


def test_a_frame_in_order_costs_one_decode_and_any_other_at_most_its_group(path, monkeypatch):
    stream = VideoFrames(path)
    stream[0]
    decoder = video._decoder(*stream._file, os.getpid())
    seeks = []

    class Counted:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            if name == "seek":
                seeks.append(name)
            return getattr(self.container, name)

    monkeypatch.setattr(decoder, "container", Counted(decoder.container))
    for i in range(1, 90):
        stream[i]
    assert seeks == []
    _ = stream[4], stream[9], stream[10]
    assert len(seeks) == 2  # back to 4, over a key frame to 9, and on to the next


def test_a_damaged_frame_does_not_cost_the_next(path):
    stream = VideoFrames(path)
    data = bytearray(path.read_bytes())
    places = np.concatenate([[0], np.cumsum(stream.sizes)])
    start = data.index(b"mdat") + 4 + int(places[40])
    data[start : start + int(stream.sizes[40])] = bytes(int(stream.sizes[40]))
    path.write_bytes(bytes(data))
    damaged = VideoFrames(path)
    whole = [damaged[i] for i in (38, 39)]
    with pytest.raises(RecordingError):
        damaged[40]
    assert damaged[44].shape == whole[0].shape


def test_a_forked_child_and_its_parent_do_not_move_each_other(path):
    stream = VideoFrames(path)
    expected = [stream[i].copy() for i in range(90)]
    stream[20]
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(stream[i], expected[i]) for i in range(21, 80))
        os._exit(0 if same else 1)
    assert all(np.array_equal(stream[i], expected[i]) for i in range(21, 80))
    assert os.waitpid(child, 0)[1] == 0
