"""Training on a recording in place: foreign LeRobot sets and others, against what a full build gives."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportAttributeAccessIssue=false

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla import embodiment
from athena_vla.dataset import dataset as dataset_module
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.errors import AthenaError, DatasetError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from recordings import Pixels, clean, edited, write

TWO_CAMERAS = """
name = "two_eyes"
source = "tests"
control_hz = 10
command_hz = 100
""" + "".join(
    f'[[camera]]\nname = "{name}"\nwidth = 64\nheight = 48\nfps = 10\nfov_deg = 60\nmount = "world"\n'
    for name in ("front", "wrist")
) + "".join(
    f'[[joint]]\nname = "{name}"\ngroup = "arm"\nlower = -2.0\nupper = 2.0\nmax_velocity = 9.0\n'
    f"max_acceleration = 90.0\nmax_jerk = 900.0\n"
    for name in ("base", "shoulder", "finger")
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["lerobot_v3", "lerobot_v21"])
def foreign(request, tmp_path) -> Path:
    """A LeRobot set with video as others write it: without our sidecar."""
    write(tmp_path / "in", *(clean(i, length=20 + i) for i in range(4)))
    convert(ConvertConfig(input=tmp_path / "in", out=tmp_path / "set", to=request.param, video=True))
    (tmp_path / "set/meta/athena_recording.json").unlink()
    return tmp_path / "set"


def test_samples_of_a_foreign_set_are_its_frames(foreign, cache):
    before = {f: f.stat().st_mtime_ns for f in foreign.rglob("*")}
    dataset = Dataset.open(foreign, robot="toy", horizon=5)
    recording = open_recording(foreign)
    assert len(dataset) == sum(20 + i for i in range(4))
    for index in (0, 19, 20, len(dataset) - 1):
        sample = dataset[index]
        episode = recording.read(sample.episode)
        assert np.array_equal(sample.observation.images["front"], episode.cameras["front"][sample.frame])
        assert np.array_equal(sample.observation.state, episode.states[sample.frame])
        rows = np.minimum(np.arange(sample.frame, sample.frame + 5), len(episode) - 1)
        assert np.array_equal(sample.chunk, episode.actions[rows])
        assert np.array_equal(sample.valid, np.arange(sample.frame, sample.frame + 5) < len(episode))
    assert {f: f.stat().st_mtime_ns for f in foreign.rglob("*")} == before
    assert dataset.path.is_relative_to(cache)


def test_it_teaches_what_a_build_teaches_and_is_made_once(foreign, tmp_path, monkeypatch):
    linked = Dataset.open(foreign, robot="toy", horizon=5)
    build(BuildConfig(input=foreign, out=tmp_path / "built", robot="toy", horizon=5, workers=1))
    built = Dataset.open(tmp_path / "built")
    assert np.array_equal(linked.train, built.train)
    assert linked.normalizer.to_dict() == built.normalizer.to_dict()
    for index in (0, 7, 25):
        a, b = linked[index], built[index]
        assert np.array_equal(a.observation.images["front"], b.observation.images["front"])
        assert np.array_equal(a.chunk, b.chunk)
    monkeypatch.setattr("athena_vla.dataset.build.run_jobs", lambda *a: pytest.fail("prepared twice"))
    assert Dataset.open(foreign, robot="toy", horizon=5).hash == linked.hash


def test_a_changed_recording_or_robot_is_another_set(foreign):
    first = Dataset.open(foreign, robot="toy", horizon=5)
    assert Dataset.open(foreign, robot="toy", horizon=6).path != first.path
    info = foreign / "meta/info.json"
    info.write_text(info.read_text() + " ")
    assert Dataset.open(foreign, robot="toy", horizon=5).path != first.path


def test_without_room_for_a_cache_pictures_are_decoded_once_when_asked_for(foreign, monkeypatch):
    monkeypatch.setattr(dataset_module, "DISK_SHARE", -1.0)
    dataset = Dataset.open(foreign, robot="toy", horizon=5)
    order = np.random.default_rng(0).permutation(len(dataset))[:40]
    whole = [dataset[int(i)].observation.images["front"] for i in order]
    assert dataset.store.decodes == 40
    for i in order[-5:]:
        dataset[int(i)]
    assert dataset.store.decodes == 40
    assert not list(dataset.path.rglob("frames-*.npy"))
    monkeypatch.setattr(dataset_module, "DISK_SHARE", 1.0)
    cached = Dataset.open(foreign, robot="toy", horizon=5)
    for i, image in zip(order, whole, strict=True):
        assert np.array_equal(cached[int(i)].observation.images["front"], image)


def test_the_same_frame_in_other_words_is_not_decoded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "DISK_SHARE", -1.0)
    words = ("touch the red box", "put your hand on the red box")
    write(tmp_path / "in", clean(0, instructions=words), clean(1))
    dataset = Dataset.open(tmp_path / "in", robot="toy")
    step = [int(i) for i in np.flatnonzero(dataset.frame_of_sample == 3)]
    assert len(step) == 2
    assert {dataset[i].observation.instruction for i in step} == set(words)
    assert dataset.store.decodes == 1


def test_several_cameras_by_name(tmp_path):
    (tmp_path / "robot.toml").write_text(TWO_CAMERAS)
    episode = clean(0)
    other = Pixels(255 - episode.cameras["front"].images)
    write(tmp_path / "in", *(replace(clean(i), cameras={**clean(i).cameras, "wrist": other}) for i in range(2)))
    convert(ConvertConfig(input=tmp_path / "in", out=tmp_path / "set", to="lerobot_v3"))
    dataset = Dataset.open(tmp_path / "set", robot=str(tmp_path / "robot.toml"))
    images = dataset[11].observation.images
    assert np.array_equal(images["front"], episode.cameras["front"][11])
    assert np.array_equal(images["wrist"], other[11])


def test_fixes_and_resampling_still_find_their_pictures(tmp_path):
    rows = np.concatenate([np.zeros(25, int), np.arange(60)])
    still = clean(0)
    late = edited(
        still, actions=still.actions[rows], states=still.states[rows], timestamps=np.arange(85) / 20, fps=20.0,
        cameras={"front": Pixels(still.cameras["front"].images[rows])})  # fmt: skip
    root = write(tmp_path / "in", late, clean(1, timestamps=np.arange(60) / 20, fps=20.0))
    options = {"input": root, "robot": "toy", "workers": 1, "fix": ("trim-idle", "drop-first-frame")}
    build(BuildConfig(out=tmp_path / "linked", link=True, **options))
    build(BuildConfig(out=tmp_path / "built", **options))
    a, b = Dataset.open(tmp_path / "linked"), Dataset.open(tmp_path / "built")
    assert len(a) == len(b) < 70
    for i in (0, 5, len(a) - 1):
        assert np.array_equal(a[i].observation.images["front"], b[i].observation.images["front"])


def test_a_linked_set_whose_recording_moved_or_changed_is_a_sentence(tmp_path):
    root = write(tmp_path / "in", clean(0), clean(1))
    build(BuildConfig(input=root, out=tmp_path / "set", robot="toy", link=True, workers=1))
    shutil.rmtree(root / "episode_0001")
    dataset = Dataset.open(tmp_path / "set")
    with pytest.raises(AthenaError, match="episode_0001"):
        dataset[70]
    shutil.rmtree(root)
    with pytest.raises(AthenaError, match="nothing at"):
        Dataset.open(tmp_path / "set")[0]


def test_a_recording_without_a_robot_is_refused_with_both_ways_out(foreign):
    with pytest.raises(DatasetError, match="athena data build.*--robot"):
        Dataset.open(foreign)
    with pytest.raises(DatasetError, match="nothing at"):
        Dataset.open(foreign / "nowhere", robot="toy")
    with pytest.raises(AthenaError, match="no robot"):
        Dataset.open(foreign, robot="nobody")


def test_a_real_foreign_set_trains_in_place(shared, tmp_path):
    source = shared / "data/g1_locomanip_arena_v21_novideo"
    names = open_recording(source).info().joint_names
    assert len(names) == 43
    real = shared / "data/g1_inspire_v30"
    first = open_recording(real).read("0")
    text = TWO_CAMERAS.split("[[camera]]")[0].replace("control_hz = 10", "control_hz = 15").replace("= 100", "= 150")
    text += '[[camera]]\nname = "head"\nwidth = 224\nheight = 168\nfps = 30\nfov_deg = 60\nmount = "world"\n'
    for name in first.joint_names:
        text += f'[[joint]]\nname = "{name}"\ngroup = "arm"\nlower = -3.1\nupper = 3.1\nmax_velocity = 9.0\n'
        text += "max_acceleration = 90.0\nmax_jerk = 900.0\n"
    (tmp_path / "g1.toml").write_text(text)
    robot = embodiment.load(str(tmp_path / "g1.toml"))
    dataset = Dataset.open(real, robot=str(tmp_path / "g1.toml"))
    assert dataset.robot == robot
    assert len(dataset.episodes) == 6
    dataset._cache_fits = False  # a training on more pictures than the disk could hold decoded
    sample = dataset[40]
    assert np.array_equal(sample.observation.images["head"], first.cameras["cam_high"][80])
    assert np.array_equal(sample.chunk[0], first.actions[81])
