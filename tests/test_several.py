"""Several recordings as one set, some episodes of one, and what two sets differ in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from athena_vla.check.selecting import SelectConfig, select
from athena_vla.cli.arguments import in_order
from athena_vla.cli.table import COMMANDS
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.dataset.diff import DiffConfig, diff
from athena_vla.errors import DatasetError, RecordingError, UnknownName
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.marks import Mark, Marks, SourceSpan
from athena_vla.recordings.merging import MergeConfig, merge
from lerobot_sets import Take, write_v30
from recordings import clean, write


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Three episodes in the folder layout, and two in LeRobot's with the same names of columns."""
    write(tmp_path / "a", clean(0), clean(1), clean(2))
    write_v30(tmp_path / "b", [Take(0), Take(1)], ["put the cube into the bin"])
    return tmp_path / "a", tmp_path / "b"


def test_two_recordings_of_two_formats_become_one_set(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Oracle: each recording built alone; one normaliser covers both, and every episode says where it is from."""
    a, b = two
    shared = {"robot": "toy", "workers": 1, "horizon": 4, "validation": 0.0}
    build(BuildConfig(input=a, also=(b,), out=tmp_path / "both", **shared))  # pyright: ignore[reportArgumentType]
    both = Dataset.open(tmp_path / "both")
    alone = []
    for name, source in (("a", a), ("b", b)):
        build(BuildConfig(input=source, out=tmp_path / f"only_{name}", **shared))  # pyright: ignore[reportArgumentType]
        alone.append(Dataset.open(tmp_path / f"only_{name}"))
    assert [e["id"] for e in both.episodes] == [f"a/{e['id']}" for e in alone[0].episodes] + ["b/0", "b/1"]
    chunks = np.concatenate([[d[i].chunk for i in range(len(d))] for d in alone])
    np.testing.assert_array_equal([both[i].chunk for i in range(len(both))], chunks)
    low = np.minimum(*(d.normalizer.action_low for d in alone))
    np.testing.assert_allclose(both.normalizer.action_low, low, atol=1e-6)
    card = (tmp_path / "both/README.md").read_text()
    assert "a (3 episodes), b (2 episodes)" in card


def test_excluded_episodes_are_no_part_and_stand_on_the_card(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    config = BuildConfig(
        input=a, also=(b,), out=tmp_path / "set", robot="toy", workers=1, exclude=("episode_0001", "b/0")
    )
    build(config)
    assert [e["id"] for e in Dataset.open(tmp_path / "set").episodes] == ["a/episode_0000", "a/episode_0002", "b/1"]
    assert "Left out by hand: episode_0001, b/0" in (tmp_path / "set/README.md").read_text()
    with pytest.raises(UnknownName, match="episode_0009"):
        build(replace(config, out=tmp_path / "other", exclude=("episode_0009",)))


def test_one_recording_twice_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="twice"):
        build(BuildConfig(input=two[0], also=(two[0],), out=tmp_path / "set", robot="toy"))
    with pytest.raises(DatasetError, match="--link"):
        build(BuildConfig(input=two[0], also=(two[1],), out=tmp_path / "set", robot="toy", link=True))


def test_two_recordings_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("x", "y"):
        write(tmp_path / place / "take", clean(len(place)))
    build(BuildConfig(input=tmp_path / "x/take", also=(tmp_path / "y/take",), out=tmp_path / "set", robot="toy",
                      validation=0.0, workers=1))  # fmt: skip
    names = [e["id"].partition("/")[0] for e in Dataset.open(tmp_path / "set").episodes]
    assert names == ["take", "take-2"]


def test_the_command_line_takes_recordings_before_the_set() -> None:
    command = COMMANDS["data build"]
    assert in_order(command, ["A", "B", "C", "OUT", "--robot", "r"]) == [
        "A", "OUT", "--robot", "r", "--also", "B", "C",
    ]  # fmt: skip
    assert in_order(command, ["A", "OUT", "--robot", "r"]) == ["A", "OUT", "--robot", "r"]


@pytest.mark.parametrize("target", ["lerobot_v3", "lerobot_v21", "rlds", "isaac_folder"])
def test_merged_recordings_hold_the_episodes_of_all(tmp_path: Path, target: str) -> None:
    write(tmp_path / "a", clean(0), clean(1))
    write(tmp_path / "b", clean(2))
    merge(MergeConfig(input=tmp_path / "a", also=(tmp_path / "b",), out=tmp_path / "all", to=target))  # pyright: ignore[reportArgumentType]
    recording = open_recording(tmp_path / "all")
    merged = [recording.read(i) for i in recording.ids()]
    for found, expected in zip(merged, (clean(0), clean(1), clean(2)), strict=True):
        np.testing.assert_array_equal(found.actions, expected.actions)
        assert found.instructions == expected.instructions


def test_recordings_of_two_robots_or_rates_are_not_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", clean(0))
    write(tmp_path / "b", replace(clean(1), joint_names=("x", "y", "z")))
    with pytest.raises(RecordingError, match=r"action columns are .*'x'"):
        merge(MergeConfig(input=tmp_path / "a", also=(tmp_path / "b",), out=tmp_path / "all"))
    with pytest.raises(RecordingError, match="alone"):
        merge(MergeConfig(input=tmp_path / "a", out=tmp_path / "all"))
    assert not (tmp_path / "all").exists()


def test_episodes_are_selected_by_what_they_are(tmp_path: Path) -> None:
    jumping = clean(1).actions.copy()
    jumping[30] += 0.9
    write(
        tmp_path / "in",
        replace(clean(0), marks=Marks(True)),
        replace(clean(1), actions=jumping, marks=Marks(True)),
        replace(clean(2), marks=Marks(False)),
        replace(clean(3), marks=Marks(None)),
    )

    def kept(**options: object) -> list[str]:
        config = SelectConfig(input=tmp_path / "in", out=tmp_path / "out", dry_run=True, **options)  # pyright: ignore[reportArgumentType]
        return [i[-1] for i in select(config).kept]

    assert kept() == ["0", "1", "2", "3"]
    assert kept(without=("joint.jump",)) == ["0", "2", "3"]
    assert kept(success="yes") == ["0", "1"]
    assert kept(success="no") == ["2"]
    assert kept(success="unsaid") == ["3"]
    assert kept(exclude=("episode_0000",)) == ["1", "2", "3"]
    assert kept(least_frames=60) == ["0", "1", "2", "3"]
    same = [str(i) for i in range(4) if clean(i).instructions == clean(0).instructions]
    assert kept(words=clean(0).instructions[0].upper()) == same
    assert 0 < len(same) < 4
    for wrong in ({"least_frames": 61}, {"most_frames": 59}, {"words": "no such words"}):
        with pytest.raises(RecordingError, match="Not one of the 4"):
            kept(**wrong)
    with pytest.raises(UnknownName, match=r"joint\.jump"):
        kept(without=("joint.jumps",))
    with pytest.raises(UnknownName, match="episode_0000"):
        kept(exclude=("episode_7",))
    with pytest.raises(RecordingError, match="regular expression"):
        kept(words="(")
    assert not (tmp_path / "out").exists()
    select(SelectConfig(input=tmp_path / "in", out=tmp_path / "out", success="yes"))
    assert len(open_recording(tmp_path / "out").ids()) == 2


def test_marks_survive_a_build_and_a_conversion(tmp_path: Path) -> None:
    sources = (SourceSpan("policy", 0, 20), SourceSpan("human", 20, 60))
    marks = Marks(True, (Mark("correction", 20, 40, "regrasp"),), sources)
    write(tmp_path / "in", replace(clean(0), marks=marks))
    convert(ConvertConfig(input=tmp_path / "in", out=tmp_path / "out", to="lerobot_v3"))
    assert open_recording(tmp_path / "out").read("0").marks == marks
    build(BuildConfig(input=tmp_path / "out", out=tmp_path / "set", robot="toy", workers=1, validation=0.0))
    assert Dataset.open(tmp_path / "set").episodes[0]["marks"] == marks.to_dict()


def test_a_diff_names_what_changed(two: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = two
    build(BuildConfig(input=a, out=tmp_path / "one", robot="toy", workers=1, validation=0.0))
    build(BuildConfig(input=a, out=tmp_path / "same", robot="toy", workers=1, validation=0.0))
    changed = clean(1).actions * np.float32(0.5)
    write(tmp_path / "c", clean(0), replace(clean(1), actions=changed), clean(3))
    (tmp_path / "c").rename(tmp_path / "a2")
    build(BuildConfig(input=tmp_path / "a2", out=tmp_path / "two", robot="toy", workers=1, validation=0.0, horizon=4))
    equal = diff(DiffConfig(a=tmp_path / "one", b=tmp_path / "same"))
    assert (equal.same_hash, equal.exit_status) == (True, 0)
    found = diff(DiffConfig(a=tmp_path / "one", b=tmp_path / "two"))
    assert found.exit_status == 1
    assert found.settings["horizon"] == ("8", "4")
    assert found.added == ("episode_0003",)
    assert found.removed == ("episode_0002",)
    assert list(found.changed) == ["episode_0001"]
    assert "motion" in found.changed["episode_0001"]
    assert "episode_0003" in str(found)
    with pytest.raises(DatasetError, match="no built set"):
        diff(DiffConfig(a=a, b=b))


@pytest.mark.parametrize("stage", ["build", "convert"])
def test_a_recording_larger_than_the_free_disk_is_refused_before_the_first_byte(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=64 * 2**20 + 1000))
    before = sorted(tmp_path.rglob("*"))
    start = {
        "build": lambda: build(BuildConfig(input=two[0], out=tmp_path / "set", robot="toy", workers=1)),
        "convert": lambda: convert(ConvertConfig(input=two[0], out=tmp_path / "set")),
    }[stage]
    with pytest.raises((DatasetError, RecordingError), match=r"needs about .*free\. Make room"):
        start()
    assert sorted(tmp_path.rglob("*")) == before
    build(BuildConfig(input=two[0], out=tmp_path / "set", robot="toy", workers=1, image_size=(16, 16)))


def test_an_episode_is_named_by_its_number_too() -> None:
    from athena_vla.errors import UnknownName
    from athena_vla.recordings.several import chosen, episodes_named

    ids = [f"episode_{i:04d}" for i in range(400)]
    assert chosen(ids, ["3", "episode_0005", "399"]) == [i for n, i in enumerate(ids) if n not in (3, 5, 399)]
    assert episodes_named(["a/demo_7", "b/demo_7", "b/demo_70"], "7", "episode") == ["a/demo_7", "b/demo_7"]
    assert episodes_named(["7", "demo_7"], "7", "episode") == ["7"], "a name goes before a number"
    with pytest.raises(UnknownName) as told:
        chosen(ids, ["400"])
    said = str(told.value)
    assert "episode_0039 and 360 more" in said
    assert len(said) < 1000, "a message that lists thousands of names is not read"
