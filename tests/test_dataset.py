"""Building and opening a set: against the recording it came from, for any number of workers, interrupted and broken."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla.dataset.augment import AugmentConfig, augment
from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.dataset.prepare import prepare
from athena_vla.errors import AthenaError, DatasetError
from athena_vla.recordings.formats import open_recording
from recordings import clean, edited, write


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("recordings")
    episodes = [clean(i, length=20 + i) for i in range(9)]
    episodes.append(clean(9, success=False))
    write(root, *episodes)
    (root / "episode_0010").mkdir()
    (root / "episode_0010" / "metadata.json").write_text("{}")
    return root


def config(recordings: Path, out: Path, **changes) -> BuildConfig:
    return BuildConfig(**{"input": recordings, "out": out, "robot": "toy", "horizon": 5, "workers": 1, **changes})


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(config(recordings, out))
    return out


def digests(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file() and ".cache" not in f.parts]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_result_counts_and_names_what_was_left_out(recordings, tmp_path):
    result = build(config(recordings, tmp_path / "set"))
    assert (result.episodes, result.frames) == (9, sum(20 + i for i in range(9)))
    assert result.samples == result.frames
    assert list(result.failed) == ["episode_0009"]
    assert list(result.broken) == ["episode_0010"]
    assert "trajectory.npz" in result.broken["episode_0010"]
    assert len(result.validation_episodes) == 1
    assert set(result.train_episodes).isdisjoint(result.validation_episodes)


def test_samples_are_the_recording(recordings, built):
    dataset = Dataset.open(built)
    recording = open_recording(recordings)
    assert len(dataset) == len(dataset.train) + len(dataset.validation)
    for index in (0, 19, 20, len(dataset) - 1):
        sample = dataset[index]
        episode = recording.read(sample.episode)
        assert np.array_equal(sample.observation.state, episode.states[sample.frame])
        assert np.array_equal(sample.observation.images["front"], episode.cameras["front"][sample.frame])
        assert sample.observation.instruction == episode.instructions[0]
        rows = np.minimum(np.arange(sample.frame, sample.frame + 5), len(episode) - 1)
        assert np.array_equal(sample.chunk, episode.actions[rows])
        assert np.array_equal(sample.valid, np.arange(sample.frame, sample.frame + 5) < len(episode))
        sample.observation.require(dataset.robot)


def test_the_split_is_by_episode_and_statistics_come_from_the_train_split(recordings, built):
    dataset = Dataset.open(built)
    train = {dataset[int(i)].episode for i in dataset.train}
    held_out = {dataset[int(i)].episode for i in dataset.validation}
    assert train.isdisjoint(held_out)
    recording = open_recording(recordings)
    actions = np.concatenate([recording.read(e).actions for e in sorted(train)])
    assert np.allclose(dataset.normalizer.action_low, actions.min(axis=0))
    assert np.allclose(dataset.normalizer.action_high, actions.max(axis=0))


def test_any_number_of_workers_and_a_second_build_give_the_same_bytes(recordings, built, tmp_path):
    build(config(recordings, tmp_path / "two", workers=2))
    shutil.copytree(recordings, tmp_path / "moved")
    again = build(config(tmp_path / "moved", tmp_path / "again"))
    assert digests(tmp_path / "two") == digests(built)
    assert again.hash == Dataset.open(built).hash


@pytest.mark.parametrize("change", [{"horizon": 6}, {"seed": 1, "validation": 0.4}, {"drop_head": 1}])
def test_the_hash_changes_with_what_the_set_teaches(recordings, built, tmp_path, change):
    assert build(config(recordings, tmp_path / "set", **change)).hash != Dataset.open(built).hash


def test_an_interrupted_build_goes_on_and_redoes_nothing(recordings, built, tmp_path, monkeypatch):
    done: list[str] = []

    def dies(job, episode_id):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(episode_id)
        return prepare(job, episode_id)

    monkeypatch.setattr("athena_vla.dataset.prepare.prepare", dies)
    with pytest.raises(KeyboardInterrupt):
        build(config(recordings, tmp_path / "set"))
    assert not (tmp_path / "set").exists()
    monkeypatch.undo()
    result = build(config(recordings, tmp_path / "set"))
    assert result.reused == 4
    assert digests(tmp_path / "set") == digests(built)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_duplicates_stay_on_one_side(tmp_path):
    episodes = [clean(i) for i in range(4)]
    twins = [replace(e, id=f"{e.id}_copy") for e in episodes]
    write(tmp_path / "in", *episodes, *twins)
    for seed in range(5):
        result = build(config(tmp_path / "in", tmp_path / f"set{seed}", validation=0.3, seed=seed))
        sides = dict.fromkeys(result.validation_episodes, "v")
        for e in episodes:
            assert sides.get(e.id) == sides.get(f"{e.id}_copy")


def test_the_set_opens_in_datasets_with_pictures_and_lists(built):
    datasets = pytest.importorskip("datasets")
    files = [str(f) for f in sorted((built / "data").rglob("*.parquet"))]
    table = datasets.Dataset.from_parquet(files, cache_dir=str(built.parent / "cache"))
    ours = Dataset.open(built)
    assert len(table) == len(ours)
    assert np.array_equal(np.asarray(table[7]["observation.images.front"]), ours[7].observation.images["front"])
    assert np.array_equal(np.asarray(table[7]["action"], np.float32), ours[7].chunk[0])


def test_the_set_is_readable_as_a_recording_with_success_and_ids(built):
    recording = open_recording(built)
    info = recording.info()
    assert (info.format, info.version, info.episodes, info.successes) == ("lerobot", "v3.0", 9, 9)
    assert info.joint_names == ("base", "shoulder", "finger")
    assert recording.read("3").origin.recorded_id == "episode_0003"


def test_every_instruction_of_an_episode_is_a_sample(tmp_path):
    write(tmp_path / "in", clean(0, instructions=("touch the red box", "put your hand on the red box")), clean(1))
    result = build(config(tmp_path / "in", tmp_path / "set"))
    assert result.samples == 180
    dataset = Dataset.open(tmp_path / "set")
    assert {dataset[i].observation.instruction for i in range(120)} >= {"put your hand on the red box"}


def test_resampling_takes_the_last_command_of_the_period(tmp_path):
    episode = clean(0, fps=20.0, length=41)
    write(tmp_path / "in", episode, clean(1, fps=20.0, length=41))
    build(config(tmp_path / "in", tmp_path / "set"))
    sample = Dataset.open(tmp_path / "set")[3]
    assert np.array_equal(sample.observation.state, episode.states[6])
    assert np.array_equal(sample.chunk[:3], episode.actions[[7, 9, 11]])
    assert np.array_equal(sample.observation.images["front"], episode.cameras["front"][6])


def test_columns_are_found_by_name_in_any_order(tmp_path):
    order = [2, 0, 1]
    names = ("finger_joint", "base_joint", "shoulder_joint")
    original = clean(0)
    shuffled = replace(original, joint_names=names, actions=original.actions[:, order])
    write(tmp_path / "in", shuffled, clean(1))
    build(config(tmp_path / "in", tmp_path / "set"))
    assert np.array_equal(Dataset.open(tmp_path / "set")[0].chunk[0], original.actions[0])


def test_unnamed_columns_take_the_asserted_robots_order_and_the_notes_say_so(tmp_path):
    for i in range(2):
        folder = write(tmp_path / "in", clean(i)) / f"episode_{i:04d}"
        metadata = json.loads((folder / "metadata.json").read_text())
        del metadata["joint_names"], metadata["state_names"]
        (folder / "metadata.json").write_text(json.dumps(metadata))
    result = build(config(tmp_path / "in", tmp_path / "set"))
    assert any("unnamed" in n.text and "'toy'" in n.text for n in result.notes)
    with pytest.raises(DatasetError, match="23 joints"):
        build(config(tmp_path / "in", tmp_path / "other", robot="athena"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input": Path("nowhere")}, "nothing at"),
        ({"robot": "nobody"}, "no robot 'nobody'"),
        ({"horizon": 0}, "horizon is 0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"strict": True}, "broken"),
        ({"cameras": ("front",)}, "robot_camera=recorded_camera"),
        ({"cameras": ("front=wrist",)}, "no camera 'wrist'"),
    ],
)
def test_what_cannot_be_built_is_a_sentence_and_leaves_nothing(recordings, tmp_path, change, said):
    with pytest.raises(AthenaError, match=said):
        build(config(recordings, tmp_path / "set", **change))
    assert not (tmp_path / "set").exists()


def test_an_existing_target_is_never_overwritten(recordings, built):
    before = digests(built)
    with pytest.raises(DatasetError, match="exists already"):
        build(config(recordings, built))
    assert digests(built) == before


def test_an_edited_or_incomplete_set_is_refused(built, tmp_path):
    shutil.copytree(built, tmp_path / "set")
    sidecar = tmp_path / "set/meta/athena.json"
    raw = json.loads(sidecar.read_text())
    raw["episodes"][0]["split"] = "validation"
    sidecar.write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match="edited"):
        Dataset.open(tmp_path / "set")
    sidecar.unlink()
    with pytest.raises(DatasetError, match="athena data build"):
        Dataset.open(tmp_path / "set")


def test_the_frame_cache_is_built_once_and_resized_on_request(built):
    dataset = Dataset.open(built)
    dataset.cache_frames((24, 32))
    assert dataset[0].observation.images["front"].shape == (24, 32, 3)
    files = sorted((built / ".cache").glob("*24x32*"))
    stamp = files[0].stat().st_mtime_ns
    Dataset.open(built).cache_frames((24, 32))
    assert files[0].stat().st_mtime_ns == stamp


def test_augmentation_is_seeded_moves_both_ways_and_can_be_switched_off():
    image = clean(0).cameras["front"][0]
    off = AugmentConfig(crop_area=1.0, brightness=0.0, contrast=0.0, saturation=0.0)
    assert np.array_equal(augment(image, np.random.default_rng(0), off), image)
    one, two = (augment(image, np.random.default_rng(3), AugmentConfig()) for _ in range(2))
    assert np.array_equal(one, two)
    assert one.shape == image.shape
    # A picture whose pixels name their own place shows where each crop lay: the offsets must not move together.
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[:, None] * 2, np.arange(100) * 2
    crop_only = AugmentConfig(brightness=0.0, contrast=0.0, saturation=0.0)
    corners = [augment(ramp, np.random.default_rng(s), crop_only)[0, 0, :2].astype(int) for s in range(300)]
    assert abs(np.corrcoef(np.array(corners).T)[0, 1]) < 0.2


def test_real_pictures_build_at_two_cores(shared, tmp_path):
    result = build(
        BuildConfig(
            input=shared / "data/athena_isaac_folder_gr1",
            out=tmp_path / "set",
            robot="athena",
            image_size=(56, 56),
            validation=0.5,
            allow=("joint.outside",),  # its elbows are mounted the other way round
        )
    )
    assert (result.episodes, result.frames) == (2, 208 + 164)
    assert any("unnamed" in n.text for n in result.notes)
    assert Dataset.open(tmp_path / "set")[10].observation.images["head"].shape == (56, 56, 3)


def test_fixes_of_a_build_are_asked_for_and_written_on_the_card(tmp_path):
    rows = np.concatenate([np.zeros(25, int), np.arange(60), np.full(25, 59)])
    still = clean(0)
    long = edited(
        still, actions=still.actions[rows], states=still.states[rows], timestamps=np.arange(110) / 10,
        cameras={"front": type(still.cameras["front"])(still.cameras["front"].images[rows])})  # fmt: skip
    root = write(tmp_path / "in", long, replace(long, id="twin"), clean(2))
    assert build(config(root, tmp_path / "plain")).frames == 110 + 110 + 60
    result = build(config(root, tmp_path / "set", fix=("trim-idle", "drop-duplicates")))
    assert result.episodes == 2
    assert 120 <= result.frames < 140
    assert set(result.fixed) == {"episode_0000", "twin"}
    assert "idle frames trimmed" in str(result)
    card = (tmp_path / "set/README.md").read_text()
    assert "## Repairs" in card
    assert "duplicate of episode_0000" in card
    assert json.loads((tmp_path / "set/meta/athena.json").read_text())["fixes"] == dict(result.fixed)
    assert "## Repairs" not in (tmp_path / "plain/README.md").read_text()
    with pytest.raises(AthenaError, match="no fix 'magic'"):
        build(config(root, tmp_path / "x", fix=("magic",)))


def test_a_script_without_a_guard_is_told_so(recordings, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path; from athena_vla.dataset.build import BuildConfig, build; "
        "from athena_vla.errors import DatasetError\n"
        "try:\n"
        f"    build(BuildConfig(input=Path({str(recordings)!r}), out=Path({str(tmp_path / 'set')!r}), robot='toy',"
        " workers=2))\n"
        "except DatasetError as error:\n    print('SAID', error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-500:]
    assert "is being written by the process that started this one" in done.stdout
    assert "__main__" in done.stdout


def test_the_texts_of_segments_are_alternatives_of_their_frames_where_asked_for(tmp_path):
    from athena_vla.recordings.episode import Segment

    marks = (
        Segment(10, 30, "manipulate", "grasp the cup", "human", 1.0),
        Segment(30, 40, "idle", "", "human", 1.0),
        Segment(40, 60, "walk", "walk home", "human", 1.0),
    )
    task = clean(0).instructions[0]
    takes = (replace(edited(clean(i), instructions=(task,)), segments=marks) for i in range(2))
    root = write(tmp_path / "in", *takes)
    for wanted in (False, True):
        out = tmp_path / f"set-{wanted}"
        build(BuildConfig(input=root, out=out, robot="toy", segment_texts=wanted))
        dataset = Dataset.open(out)
        said = {(s.frame, s.observation.instruction) for s in map(dataset.__getitem__, range(len(dataset)))}
        expected = {(t, task) for t in range(60)}
        if wanted:
            expected |= {(t, "grasp the cup") for t in range(10, 30)} | {(t, "walk home") for t in range(40, 60)}
        assert said == expected
