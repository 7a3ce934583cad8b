"""What is read is what was recorded: words of the right frames, images of the right rows, and nothing lost unsaid.

Oracles: images that carry their own number, and the rows as they were written.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from athena_vla.check import CheckConfig, check
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import DatasetError, JointMismatch, RecordingError, UnknownName
from athena_vla.recordings.alignment import Alignment, align
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.common import decode_image
from athena_vla.recordings.formats.tfrecord import parse_example, read_record, record_offsets
from athena_vla.recordings.streams import Stream
from athena_vla.recordings.texts import TextSpan
from lerobot_sets import FRONT, NAMES, Take, fixed, number_of, numbered, video, write_v21, write_v30
from recordings import Pixels, clean, write

PICK, PLACE = "pick up the red cube", "put the cube into the bin"
WRITERS = {"v2.1": write_v21, "v3.0": write_v30}


def built(source: Path, out: Path, **options) -> Dataset:
    build(BuildConfig(input=source, out=out, robot="toy", workers=1, horizon=4, **options))
    return Dataset.open(out)


def codes_of(source: Path, **options) -> set[str]:
    return {f.code for f in check(CheckConfig(input=source, pictures=False, **options)).findings}


def two_tasks(count: int = 3) -> list[Take]:
    return [Take(i, tasks=np.repeat([0, 1], [30, 30]).astype(np.int64)) for i in range(count)]


@pytest.mark.parametrize("version", WRITERS)
def test_each_frame_has_the_words_of_its_own_task(tmp_path: Path, version: str) -> None:
    source = WRITERS[version](tmp_path / "in", two_tasks(), [PICK, PLACE])
    episode = open_recording(source).read("0")
    assert episode.texts == (TextSpan(0, 30, (PICK,)), TextSpan(30, 60, (PLACE,)))
    for dataset in (built(source, tmp_path / "set"), built(source, tmp_path / "linked", link=True)):
        assert len(dataset) == 180
        for i in range(len(dataset)):
            sample = dataset[i]
            assert sample.observation.instruction == (PICK if sample.frame < 30 else PLACE)
    again = open_recording(tmp_path / "set").read("1")
    assert again.texts == episode.texts


@pytest.mark.parametrize("target", ["lerobot_v3", "lerobot_v21", "rlds", "isaac_folder"])
def test_successive_words_survive_every_format(tmp_path: Path, target: str) -> None:
    source = write_v21(tmp_path / "in", two_tasks(), [PICK, PLACE])
    convert(ConvertConfig(input=source, out=tmp_path / "out", to=target))  # pyright: ignore[reportArgumentType]
    recording = open_recording(tmp_path / "out")
    episode = recording.read(recording.ids()[0])
    assert episode.texts == (TextSpan(0, 30, (PICK,)), TextSpan(30, 60, (PLACE,)))


def test_other_programs_see_the_words_of_each_step(tmp_path: Path) -> None:
    source = write_v21(tmp_path / "in", two_tasks(1), [PICK, PLACE])
    convert(ConvertConfig(input=source, out=tmp_path / "rlds", to="rlds"))
    file = next((tmp_path / "rlds").rglob("*.tfrecord*"))
    offset, length = record_offsets(file)[0]
    words = parse_example(read_record(file, offset, length, "0"))["steps/language_instruction"]
    assert words == [PICK.encode()] * 30 + [PLACE.encode()] * 30
    convert(ConvertConfig(input=source, out=tmp_path / "v3", to="lerobot_v3"))
    tasks = {
        r["task_index"]: r["__index_level_0__"] for r in pq.read_table(tmp_path / "v3/meta/tasks.parquet").to_pylist()
    }
    column = pq.read_table(tmp_path / "v3/data/chunk-000/file-000.parquet")["task_index"].to_pylist()
    assert [tasks[i] for i in column] == [PICK] * 30 + [PLACE] * 30


def test_alternatives_hold_for_a_frame_together(tmp_path: Path) -> None:
    """Two language columns are two ways to say it, each with its own changes."""
    other = {"annotation.human.action.task_description": pa.array(np.repeat([2, 3], [30, 30]))}
    takes = [Take(i, tasks=np.repeat([0, 1], [30, 30]).astype(np.int64), extra=other) for i in range(2)]
    declared = {k: {"dtype": "int64", "shape": [1], "names": None} for k in other}
    source = write_v21(tmp_path / "in", takes, [PICK, PLACE, "grab the cube", "drop it in the bin"], extra=declared)
    dataset = built(source, tmp_path / "set")
    assert len(dataset) == 240
    said = {(dataset[i].frame < 30, dataset[i].observation.instruction) for i in range(len(dataset))}
    assert said == {(True, PICK), (True, "grab the cube"), (False, PLACE), (False, "drop it in the bin")}


def test_frames_without_words_are_no_samples_unless_words_are_given(tmp_path: Path) -> None:
    episode = clean(0, texts=(TextSpan(0, 20, (PICK,)),))
    source = write(tmp_path / "in", episode, clean(1))
    assert len(built(source, tmp_path / "set")) == 20 + 60
    filled = built(source, tmp_path / "filled", instruction=PLACE)
    assert len(filled) == 120
    mine = [filled[i] for i in range(120) if filled[i].episode == "episode_0000"]
    assert all(s.observation.instruction == (PICK if s.frame < 20 else PLACE) for s in mine)


CUTS = {"head": np.arange(25, 60), "middle": np.r_[0:20, 35:60], "tail": np.arange(0, 45), "none": np.arange(60)}


@pytest.mark.parametrize("version", WRITERS)
@pytest.mark.parametrize("cut", CUTS)
def test_rows_have_the_image_of_their_time(tmp_path: Path, version: str, cut: str) -> None:
    takes = [Take(i, kept=CUTS[cut]) for i in range(3)]
    source = WRITERS[version](tmp_path / "in", takes, [PICK])
    for dataset in (built(source, tmp_path / "set"), built(source, tmp_path / "linked", link=True)):
        for i in range(0, len(dataset), 2):
            sample = dataset[i]
            number, episode = number_of(sample.observation.images["front"])
            assert (number, episode) == (CUTS[cut][sample.frame], int(sample.episode))
    convert(ConvertConfig(input=source, out=tmp_path / "out", to="lerobot_v3"))
    again = open_recording(tmp_path / "out").read("1")
    assert [number_of(again.cameras["front"][k])[0] for k in range(len(again))] == CUTS[cut].tolist()
    notes = {n.code for n in open_recording(source).read("0").notes}
    assert notes == ({"camera.joined_by_time"} if cut in ("head", "middle") else set())
    assert ("camera.joined_by_time" in codes_of(source)) == bool(notes)


def test_stamps_that_meet_no_image_are_said_or_refused(tmp_path: Path) -> None:
    source = write_v21(tmp_path / "in", [Take(0), Take(1)], [PICK])
    for name, stamps, code in (
        ("one late", np.arange(1, 61) / 10, "camera.joined_by_rank"),
        ("another clock", 1.7e5 + np.arange(60) / 10, "camera.joined_by_rank"),
        ("drifting", np.arange(60) / 9.27, "camera.joined_by_rank"),
    ):
        _with_stamps(source, stamps)
        episode = open_recording(source).read("0")
        assert {n.code for n in episode.notes} == {code}, name
        assert [number_of(episode.cameras["front"][k])[0] for k in (0, 30, 59)] == [0, 30, 59], name
        assert code in codes_of(source)
    _with_stamps(source, np.arange(50) / 6.1, 50)
    episode = open_recording(source).read("0")
    assert "front" not in episode.cameras
    assert any("cannot be told" in n.text for n in episode.notes)
    _with_stamps(source, np.r_[np.arange(40), np.arange(40, 60) + 60.0] / 10)  # twenty rows after the film has ended
    source.joinpath("videos/chunk-000", FRONT, "episode_000000.mp4").unlink()
    video(source / f"videos/chunk-000/{FRONT}/episode_000000.mp4", [numbered(i) for i in range(70)])
    assert "camera.pictures_lost" in codes_of(source)


def _with_stamps(source: Path, stamps: np.ndarray, rows: int = 60) -> None:
    path = source / "data/chunk-000/episode_000000.parquet"
    table = Take(0).columns(0) | {"timestamp": pa.array(stamps.astype(np.float32))}
    pq.write_table(pa.table({k: v[:rows] for k, v in table.items()}), path)


def test_a_lost_head_of_images_shifts_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in", clean(0))
    whole = open_recording(source).read("episode_0000").cameras["front"]
    for k in range(25):
        (source / f"episode_0000/images/front/rgb_{k:04d}.png").unlink()
    found = open_recording(source).read("episode_0000").cameras["front"]
    assert all((found[k] == whole[k]).all() for k in range(25, 60))
    with pytest.raises(DatasetError, match="missing"):
        built(source, tmp_path / "set")


def test_actions_spread_over_columns_are_joined_as_declared(tmp_path: Path) -> None:
    takes = [Take(i) for i in range(2)]
    source = write_v21(tmp_path / "in", takes, [PICK])
    info = json.loads((source / "meta/info.json").read_text())
    keys = {"actions.joint.position": (0, 2), "actions.effector.position": (2, 3)}
    keys |= {"observation.states.joint.position": (0, 2), "observation.states.effector.position": (2, 3)}
    for take in takes:
        path = source / f"data/chunk-000/episode_{take.index:06d}.parquet"
        table, motion = pq.read_table(path).drop_columns(["action", "observation.state"]), take.motion()
        for key, (a, b) in reversed(keys.items()):  # the order of columns must not matter
            table = table.append_column(key, fixed((motion[1:] if "action" in key else motion[:-1])[:, a:b]))
        pq.write_table(table, path)
    for key in ("action", "observation.state"):
        del info["features"][key]
    for key, (a, b) in keys.items():
        info["features"][key] = {"dtype": "float32", "shape": [b - a], "names": {"motors": NAMES[a:b]}}
    (source / "meta/info.json").write_text(json.dumps(info))
    for modality in (None, _modality()):
        if modality:
            (source / "meta/modality.json").write_text(json.dumps(modality))
        episode = open_recording(source).read("1")
        assert episode.joint_names == episode.state_names == tuple(NAMES)
        assert np.array_equal(episode.actions, takes[1].motion()[1:])
        assert np.array_equal(episode.states, takes[1].motion()[:-1])


def _modality() -> dict:
    parts = {"hand": ("effector", 1), "arm": ("joint", 2)}
    return {
        kind: {k: {"original_key": f"{column}.{c}.position", "start": 0, "end": n} for k, (c, n) in order}
        for kind, column, order in (
            ("state", "observation.states", sorted(parts.items())),
            ("action", "actions", sorted(parts.items())),
        )
    }


def test_a_label_is_no_instruction_and_a_null_costs_no_episode(tmp_path: Path) -> None:
    labels = {
        "annotation.human.quality": pa.array(np.full(60, 1)),
        "annotation.human.validity": pa.array(np.full(60, 2)),
        "annotation.human.progress": pa.array(np.linspace(0, 1, 60)),
        "next.reward": pa.array([0.0] * 59 + [None], pa.float32()),
        "operator": pa.array(["Ada"] * 60),
    }
    kinds = {k: {"dtype": "int64", "shape": [1], "names": None} for k in list(labels)[:2]}
    source = write_v21(tmp_path / "in", [Take(0, extra=labels)], [PICK, "good", "operator hesitated"], extra=kinds)
    episode = open_recording(source).read("0")
    assert episode.instructions == (PICK,)
    assert episode.segments == ()
    assert [(n.code, n.items) for n in episode.notes] == [("column.unreadable", ("next.reward",))]
    assert "column.unreadable" in codes_of(source)


def test_what_the_table_says_is_what_counts(tmp_path: Path) -> None:
    source = write_v21(tmp_path / "in", [Take(i) for i in range(4)], [PICK])
    lines = (source / "meta/episodes.jsonl").read_text().splitlines(keepends=True)
    (source / "meta/episodes.jsonl").write_text("".join(lines[:2] + lines[3:]))
    recording = open_recording(source)
    assert recording.ids() == ("0", "1", "3")
    assert [n.episode for n in recording.info().notes if n.code == "episode.unlisted"] == ["2"]
    assert "episode.unlisted" in codes_of(source)
    (source / "meta/episodes.jsonl").unlink()
    assert open_recording(source).ids() == ("0", "1", "2", "3")


def test_two_episodes_of_one_number_are_two(tmp_path: Path) -> None:
    """A session that was resumed and counted from 0 again, in files of its own."""
    source = write_v30(tmp_path / "in", [Take(0), Take(1)], [PICK])
    second = write_v30(tmp_path / "more", [Take(0, seed=7), Take(1, seed=8)], [PICK])
    table = pq.read_table(second / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for line in table:
        line |= {"data/file_index": 1, f"videos/{FRONT}/file_index": 1}
        line["dataset_from_index"] += 120
        line["dataset_to_index"] += 120
    pq.write_table(pa.Table.from_pylist(table), source / "meta/episodes/chunk-000/file-001.parquet")
    for folder in ("data/chunk-000", f"videos/{FRONT}/chunk-000"):
        file = next((second / folder).iterdir())
        file.rename(source / folder / file.name.replace("file-000", "file-001"))
    recording = open_recording(source)
    assert recording.ids() == ("0", "1", "2", "3")
    motions = [Take(0), Take(1), Take(0, seed=7), Take(1, seed=8)]
    for name, take in zip(recording.ids(), motions, strict=True):
        assert np.array_equal(recording.read(name).actions, take.motion()[1:])
    assert [n.code for n in recording.info().notes] == ["episode.duplicate_number"] * 2 + ["count.declared"] * 2
    assert "episode.duplicate_number" in codes_of(source)


def test_two_episodes_at_one_stretch_of_video_are_named(tmp_path: Path) -> None:
    wrong = {1: {f"videos/{FRONT}/from_timestamp": 0.0, f"videos/{FRONT}/to_timestamp": 6.0}}
    recording = open_recording(write_v30(tmp_path / "in", [Take(0), Take(1)], [PICK], rows=wrong))
    assert [(n.code, n.episode) for n in recording.info().notes] == [("camera.shared_span", "1")]
    found = check(CheckConfig(input=tmp_path / "in", pictures=False))
    assert [f.code for f in found.findings if f.severity == "error"] == ["camera.shared_span"]


def wide(states: np.ndarray, actions: np.ndarray):
    """A toy episode with more state columns than joints, none of them named."""
    names = tuple(f"state_{i:02d}" for i in range(states.shape[1]))
    return clean(0, length=len(actions), actions=actions, states=states, state_names=names)


def toy_motion(length: int = 60) -> np.ndarray:
    t = np.arange(length)[:, None] / 10
    swing = np.sin(np.array([0.9, 1.3, 1.1]) * t + np.array([0.0, 1.0, 2.0]))
    return np.array([0.1, 0.1, 0.3]) + np.array([0.8, 0.6, 0.4]) * swing


def test_positions_then_velocities_are_told_from_another_order(toy) -> None:
    path = toy_motion(61)
    states, actions = path[:-1], path[1:]
    seen = align(wide(np.c_[states, np.gradient(states, 0.1, axis=0), np.full(60, 0.8)], actions), toy, Alignment())
    assert np.array_equal(seen.states, states.astype(np.float32))
    assert [n.code for n in seen.notes if "unused" in n.code] == ["column.unused"]
    assert seen.notes[-1].items == ("state_03", "state_04", "state_05", "state_06")
    for order in ([2, 0, 1], [0, 2, 1]):
        with pytest.raises(JointMismatch, match=r"state_00 to state_04.*base, shoulder, finger.*--state-joints"):
            align(wide(np.c_[states[:, order], states[:, :2]], actions), toy, Alignment())


def test_a_robot_near_rest_proves_no_order(toy) -> None:
    rest = np.tile(toy.default, (60, 1)) + 0.005 * np.sin(np.arange(60))[:, None]
    with pytest.raises(JointMismatch, match="does not say which is which"):
        align(wide(np.c_[rest, rest], rest), toy, Alignment())


def test_state_joints_name_what_a_file_does_not(tmp_path: Path, toy) -> None:
    path = toy_motion(61)
    order, names = [2, 0, 1], ["finger", "base", "shoulder", "lid"]
    episode = wide(np.c_[path[:-1][:, order], np.ones(60)], path[1:])
    source = write(tmp_path / "in", replace(episode, id="a"), replace(episode, id="b"))
    for folder in source.iterdir():
        meta = json.loads((folder / "metadata.json").read_text())
        del meta["state_names"]
        (folder / "metadata.json").write_text(json.dumps(meta))
    (tmp_path / "names.txt").write_text("\n".join(names))
    dataset = built(source, tmp_path / "set", state_joints=tmp_path / "names.txt")
    assert np.array_equal(dataset[5].observation.state, path[5].astype(np.float32))
    with pytest.raises(RecordingError, match="4 state columns, but --state-joints names 2"):
        open_recording(source, state_joints=("a", "b")).read("a")


def test_what_is_recorded_and_not_used_is_said(tmp_path: Path, toy) -> None:
    path = toy_motion()
    more = np.c_[path, np.linspace(0.7, 0.8, 60), np.zeros(60)]
    names = ("base", "shoulder", "finger", "base_height", "navigate_vx")
    states = np.concatenate([path[:1], path[:-1]]) + 1e-3
    episode = clean(0, actions=more, joint_names=names, states=states, streams={"force": Stream(np.zeros((60, 6)))})
    source = write(tmp_path / "in", episode, replace(episode, id="again"))
    result = build(BuildConfig(input=source, out=tmp_path / "set", robot="toy", workers=1))
    unused = {n.code: n.items for n in result.notes if n.code.endswith("unused")}
    assert unused == {"column.unused": ("base_height", "navigate_vx"), "stream.unused": ("force",)}
    found = {f.code: f for f in check(CheckConfig(input=source, robot="toy")).findings}
    assert found["column.unused"].severity == "warning"
    assert "base_height, navigate_vx" in found["column.unused"].message
    assert found["stream.unused"].severity == "info"
    assert "base_height" in (tmp_path / "set/README.md").read_text()


def two_arms(path: Path, assets: dict[str, int]) -> np.ndarray:
    """Isaac Lab's layout with several articulations; returns the positions [T, all joints] before each action."""
    width = sum(assets.values())
    t = np.arange(81)[:, None] / 60
    q = (0.5 * np.sin(2 * np.pi * (0.3 + 0.05 * np.arange(width)) * t)).astype(np.float32)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Arms", "sim_args": {"dt": 1 / 60, "decimation": 1}})
        demo, at = data.create_group("demo_0"), 0
        demo.attrs["num_samples"] = 80
        demo.create_dataset("actions", data=q[1:])
        for name, count in assets.items():
            part = q[:, at : at + count]
            demo.create_dataset(f"states/articulation/{name}/joint_position", data=part[1:])
            demo.create_dataset(f"initial_state/articulation/{name}/joint_position", data=part[:1])
            at += count
    return q[:-1]


def test_several_articulations_are_chosen_and_not_lost(tmp_path: Path, toy) -> None:
    positions = two_arms(tmp_path / "a.hdf5", {"right": 2, "left": 1})
    names = ("shoulder", "base", "finger")
    episode = open_recording(tmp_path / "a.hdf5", joints=names).read("demo_0")
    assert episode.states.shape == (80, 0)
    assert [(n.code, n.items) for n in episode.notes] == [("articulation.several", ("left", "right"))]
    with pytest.raises(JointMismatch, match=r"left \(1\), right \(2\) are recorded; .*--articulation"):
        align(episode, replace(toy, cameras=()), Alignment())
    assert "articulation.several" in codes_of(tmp_path / "a.hdf5")
    both = open_recording(tmp_path / "a.hdf5", joints=names, articulations=("right", "left")).read("demo_0")
    assert np.array_equal(both.states, positions)
    assert both.state_names == names
    one = open_recording(tmp_path / "a.hdf5", joints=names, articulations=("left",)).read("demo_0")
    assert np.array_equal(one.states, positions[:, 2:])
    with pytest.raises(UnknownName, match="'head'. Known: left, right"):
        open_recording(tmp_path / "a.hdf5", articulations=("head",)).read("demo_0")
    two_arms(tmp_path / "b.hdf5", {"robot": 3, "drawer": 1})  # the robot is called so: nothing to ask
    assert open_recording(tmp_path / "b.hdf5").read("demo_0").states.shape == (80, 3)


def test_a_camera_that_was_rendered_seldom_is_held_by_step_number(tmp_path: Path) -> None:
    root = tmp_path / "take"
    (root / "state/common").mkdir(parents=True)
    (root / "state/rgb/front").mkdir(parents=True)
    for k, step in enumerate(range(0, 120, 2)):
        np.savez(root / f"state/common/{step:08d}.npz", joint_positions=np.full(3, 0.01 * k))
        if step % 10 == 0:
            Image.fromarray(numbered(step)).save(root / f"state/rgb/front/{step:08d}.png")
    episode = open_recording(root, fps=50.0).read("take")
    seen = [number_of(episode.cameras["front"][k])[0] for k in range(60)]
    assert seen == [2 * k // 10 * 10 for k in range(60)]
    assert "camera.sparse" in codes_of(root)


def test_depth_is_not_colour(tmp_path: Path) -> None:
    """16 bit PNG in millimetres beside a colour camera: named, left out, and never clipped to white."""
    depth = (600 + 20 * np.arange(64)[None] + 10 * np.arange(48)[:, None]).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(depth).save(buffer, "PNG")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": buffer.getvalue(), "path": ""}] * 60, kind)
    key = "observation.images.front_depth"
    for info in ({}, {"info": {"is_depth_map": True}}):
        declared = {key: {"dtype": "image", "shape": [48, 64, 1], "names": ["height", "width", "channels"], **info}}
        root = tmp_path / f"in{len(info)}"
        takes = [Take(i, extra={key: column}) for i in range(2)]
        source = write_v21(root, takes, [PICK], extra=declared)
        episode = open_recording(source).read("0")
        assert list(episode.cameras) == ["front"]
        assert [(n.code, n.items) for n in episode.notes] == [("camera.depth", (key,))]
        assert "camera.depth" in codes_of(source)
    only = write_v21(tmp_path / "only", takes, [PICK], extra=declared, camera=None)
    with pytest.raises(DatasetError, match="no camera 'front'"):
        built(only, tmp_path / "set")
    with pytest.raises(RecordingError, match="more than 8 bits a pixel"):
        decode_image(buffer.getvalue(), "a depth image")


def test_a_recorders_own_text_is_not_trained_on(tmp_path: Path) -> None:
    words = ("pick up the cup", "task description", "so101 teleoperation")
    source = write(tmp_path / "in", clean(0, instructions=words), clean(1, instructions=("step1: do this",)), clean(2))
    result = build(BuildConfig(input=source, out=tmp_path / "set", robot="toy", workers=1))
    dataset = Dataset.open(tmp_path / "set")
    said = {dataset[i].observation.instruction for i in range(len(dataset))}
    assert said == {"pick up the cup", "touch the green box"}
    assert list(result.broken) == ["episode_0001"]
    assert "placeholder 'step1: do this'" in result.broken["episode_0001"]
    assert [n.items for n in result.notes if n.code == "language.placeholder"] == [words[1:]]


def plain(level: int) -> Pixels:
    return Pixels(np.full((60, 48, 64, 3), level, np.uint8))


def deltas_of(index: int):
    episode = clean(index)
    return replace(episode, actions=np.diff(episode.states, axis=0, append=episode.states[-1:]) * 0.8)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (deltas_of, "action.delta"),
        (lambda i: replace(clean(i), actions=clean(i).actions * 5, states=clean(i).states * 5), "joint.outside"),
        (lambda i: clean(i, timestamps=np.arange(60) / 17.0), "clock.rate"),
        (lambda i: replace(clean(i), actions=np.random.default_rng(i).normal(0, 0.3, (60, 3))), "action.unrelated"),
        (
            lambda i: replace(clean(i), cameras={"front": Pixels(np.full((60, 48, 64, 3), 255, np.uint8))}),
            "camera.uniform",
        ),
        (lambda i: replace(clean(i), cameras={"front": Pixels(np.zeros((60, 48, 64, 3), np.uint8))}), "camera.black"),
    ],
)
def test_a_build_refuses_what_a_check_calls_an_error(tmp_path: Path, spoil, code: str) -> None:
    source = write(tmp_path / "in", *(spoil(i) for i in range(3)))
    with pytest.raises(DatasetError, match=rf"{code}.*\n.*--allow {code}"):
        built(source, tmp_path / "set")
    assert not list(tmp_path.glob("*set*")), "nothing is left of a refused build"
    allowed = build(BuildConfig(input=source, out=tmp_path / "set", robot="toy", workers=1, allow=(code,)))
    assert code in {f.code for f in allowed.findings}
    assert code in (tmp_path / "set/README.md").read_text()
    assert any(code in line for line in Dataset.open(tmp_path / "set").told)


def test_a_dry_run_says_what_a_build_would_do_and_writes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in", clean(0), clean(1), clean(2, success=False))
    options = {"input": source, "out": tmp_path / "set", "robot": "toy", "workers": 1}
    dry = build(BuildConfig(**options, dry_run=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    assert "--dry-run" in str(dry)
    real = build(BuildConfig(**options))
    for name in ("episodes", "frames", "samples", "train_episodes", "failed", "notes", "findings"):
        assert getattr(dry, name) == getattr(real, name), name
    with pytest.raises(UnknownName, match="code of a finding 'typo'"):
        build(BuildConfig(**{**options, "out": tmp_path / "other"}, allow=("typo",)))


def test_training_in_place_says_what_a_build_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    takes = [Take(i) for i in range(4)]
    source = write_v21(tmp_path / "in", takes, [PICK])
    (source / f"videos/chunk-000/{FRONT}/episode_000001.mp4").unlink()
    for _ in range(2):  # built, and found again
        told = Dataset.open(source, robot="toy", horizon=4).told
        assert any(line.startswith("episode 1 is left out, it is broken:") for line in told)
        assert any("action.next_state" in line for line in told)


def test_rows_faster_than_their_camera_are_not_taken_for_the_cameras_rate(tmp_path: Path) -> None:
    """60 rows a second, each image stored twice: the rate that the file declares is the camera's."""
    folder = tmp_path / "in" / "episode_0000"
    (folder / "colors").mkdir(parents=True)
    rows = []
    for i in range(80):
        name = f"colors/{i:06d}.png"
        Image.fromarray(numbered(i // 2)).save(folder / name)
        arm = {"left_arm": {"qpos": [0.01 * i, 0.02 * i, 0.1]}}
        rows.append({"idx": i, "colors": {"color_0": name}, "states": arm, "actions": arm})
    info = {"version": "1.0", "image": {"fps": 30}}
    raw = {"info": info, "text": {"goal": PICK, "desc": "", "steps": ""}, "data": rows}
    (folder / "data.json").write_text(json.dumps(raw))
    said = [n for n in open_recording(tmp_path / "in").read("episode_0000").notes if n.code == "clock.guessed"]
    assert [n.items for n in said] == [("color_0",)]
    assert "--fps 60" in said[0].text
    asserted = open_recording(tmp_path / "in", fps=60).read("episode_0000")
    assert asserted.fps == 60
    assert not asserted.notes
