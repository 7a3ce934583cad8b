"""What a recording says of itself is read, wherever its recorder keeps it; nothing that is there is called missing.

Oracles: the words, rates, flags and arrays as this file writes them with json, h5py, pyarrow and struct.
"""

import gc
import io
import json
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from athena_vla.check import CheckConfig, check
from athena_vla.check.units import units_of
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import DatasetError, RecordingError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.common import save_arrays, success_of
from athena_vla.recordings.formats.metadata import rate_in, texts_in
from athena_vla.recordings.formats.tfrecord import build_example, write_record
from athena_vla.recordings.overlaps import groups
from athena_vla.recordings.streams import Clock, Stream
from foreign import LENGTH, mobilitygen, motion, xr_teleoperate
from lerobot_sets import Take, fixed, numbered, write_v21, write_v30
from recordings import clean, write

STEPS = 40
WORDS = "put the black bowl on the plate"


def codes_of(source: Path, **options: Any) -> set[str]:
    return {f.code for f in check(CheckConfig(input=source, **options)).findings}


# --- HDF5 ---


def swing(joints: int = 3, seed: int = 0) -> np.ndarray:
    t = np.arange(STEPS + 1)[:, None] / 20
    return 0.4 * np.sin(2 * np.pi * (0.1 + 0.05 * np.arange(joints)) * t + seed)


def hdf5(path: Path, attributes: dict[str, Any], demo: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for key, value in attributes.items():
            data.attrs[key] = value
        group = data.create_group("demo_0")
        for key, value in demo.items():
            group.attrs[key] = value
        path_of = swing()
        group["actions"], group["obs/robot0_joint_pos"] = path_of[1:], path_of[:-1]
        group["dones"] = np.zeros(STEPS)
        for key, value in arrays.items():
            group[key] = value
    return path


@pytest.mark.parametrize(
    ("attributes", "demo"),
    [
        ({"problem_info": json.dumps({"language_instruction": WORDS})}, {}),
        ({}, {"ep_meta": json.dumps({"layout_id": 3, "lang": WORDS})}),
        ({"env_args": json.dumps({"env_kwargs": {"language": WORDS}})}, {}),
        ({"language_instruction": WORDS.encode()}, {}),
        ({"lang": "another task of the file"}, {"task_description": WORDS}),
    ],
)
def test_words_of_an_hdf5_file_are_found_where_they_are(tmp_path: Path, attributes, demo) -> None:
    assert open_recording(hdf5(tmp_path / "a.hdf5", attributes, demo, {})).read("demo_0").instructions == (WORDS,)


def test_words_that_are_stored_as_an_array(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "a.hdf5", {}, {}, {"language_instruction": np.array([WORDS.encode()] * STEPS, "S80")})
    assert open_recording(source).read("demo_0").instructions == (WORDS,)


@pytest.mark.parametrize("where", [{"env_kwargs": {"control_freq": 20}}, {"fps": 20.0}, {"sim": {"control_hz": 20}}])
def test_the_rate_of_an_environment_is_the_rate_of_its_rows(tmp_path: Path, where: dict) -> None:
    found = open_recording(hdf5(tmp_path / "a.hdf5", {"env_args": json.dumps(where)}, {}, {})).info()
    assert (found.fps, found.duration) == (20.0, STEPS / 20)


@pytest.mark.parametrize("key", ["robot0_joint_pos", "joint_states", "joint_position", "qpos", "joint_positions"])
def test_joint_positions_have_several_names(tmp_path: Path, key: str) -> None:
    source = hdf5(tmp_path / "a.hdf5", {}, {}, {})
    with h5py.File(source, "a") as file:
        demo = file["data/demo_0"]
        assert isinstance(demo, h5py.Group)
        values = np.asarray(demo["obs/robot0_joint_pos"])
        del demo["obs/robot0_joint_pos"]
        demo[f"obs/{key}"] = values
    np.testing.assert_array_equal(open_recording(source).read("demo_0").states, swing()[:-1])


def test_two_robots_are_asked_for_or_joined_in_the_named_order(tmp_path: Path) -> None:
    other = swing(2, seed=1)[:-1]
    source = hdf5(tmp_path / "a.hdf5", {}, {}, {"obs/robot1_joint_pos": other})
    assert "articulation.several" in {n.code for n in open_recording(source).read("demo_0").notes}
    both = open_recording(source, articulations=("robot1", "robot0")).read("demo_0")
    np.testing.assert_array_equal(both.states, np.concatenate([other, swing()[:-1]], axis=1))


def test_every_array_of_a_demo_is_used_or_named(tmp_path: Path) -> None:
    """By h5py's own listing: what the episode does not hold stands in its notes."""
    rng = np.random.default_rng(0)
    arrays = {
        "obs/gripper_states": rng.normal(size=(STEPS, 2)),
        "obs/ee_states": rng.normal(size=(STEPS, 6)),
        "obs/front_image": rng.integers(0, 255, (STEPS, 32, 32, 3)).astype(np.uint8),
        "obs/front_depth": rng.random((STEPS, 32, 32, 1)).astype(np.float32),
        "obs/wrist_depth": rng.integers(0, 4000, (STEPS, 32, 32)).astype(np.uint16),
        "obs/front_segmentation": rng.integers(0, 9, (STEPS, 32, 32, 3)).astype(np.uint8),
        "states": rng.normal(size=(STEPS, 31)),
        "odd": rng.normal(size=7),
    }
    source = hdf5(tmp_path / "a.hdf5", {}, {}, arrays)
    episode = open_recording(source).read("demo_0")
    said = {name for n in episode.notes for name in n.items}
    assert {n.items[0] for n in episode.notes if n.code == "camera.depth"} == {"obs/front_depth", "obs/wrist_depth"}
    listed: list[str] = []
    with h5py.File(source) as file:
        file["data/demo_0"].visititems(lambda name, item: listed.append(name) if hasattr(item, "shape") else None)  # pyright: ignore[reportAttributeAccessIssue]
    taken = {"actions", "obs/robot0_joint_pos", "obs/front_image"}
    assert set(listed) == taken | said | set(episode.streams)
    assert set(episode.cameras) == {"front_image"}
    assert {"camera.depth", "stream.unused"} <= codes_of(source)


def test_sixteen_bits_a_colour_keep_their_colours(tmp_path: Path) -> None:
    deep = (np.arange(STEPS * 16 * 16 * 3) % 256).astype(np.uint16).reshape(STEPS, 16, 16, 3) * 257
    source = hdf5(tmp_path / "a.hdf5", {}, {}, {"obs/front_image": deep})
    frame = open_recording(source).read("demo_0").cameras["front_image"][5]
    np.testing.assert_array_equal(frame, (deep[5] // 257).astype(np.uint8))


def test_an_object_of_attributes_is_looked_through_and_not_trusted() -> None:
    assert texts_in({"task": "", "a": "{broken", "b": b'{"instruction": " go "}', "c": {"d": {"lang": "home"}}}) == [
        "go",
        "home",
    ]
    assert texts_in({"task": "x" * 5000, "task_index": 3}) == []
    assert rate_in({"control_freq": np.int64(20)}) == 20.0
    assert rate_in({"fps": True}, {"fps": -1}, {"fps": float("nan")}) is None


# --- success ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [("success", True), (b"failure", False), ("True", True), (np.bool_(False), False), (1, True), (0.0, False),
     (np.array([0, 0, 1]), True), (np.zeros(3), False), ("maybe", None), (None, None), (0.5, None), ([], None)],
)  # fmt: skip
def test_a_success_flag_is_read_however_it_is_stored(value: object, expected: bool | None) -> None:
    assert success_of(value) is expected


@pytest.mark.parametrize("column", ["next.success", "is_episode_successful"])
def test_a_column_that_says_success_is_no_stream(tmp_path: Path, column: str) -> None:
    def flag(value: bool) -> dict[str, Any]:
        return {column: pa.array(np.full(60, value))}

    extra = {column: {"dtype": "bool", "shape": [1], "names": None}}
    source = write_v30(tmp_path / "in", [Take(0, extra=flag(True)), Take(1, extra=flag(False))], [WORDS], extra=extra)
    recording = open_recording(source)
    assert [recording.read(i).success for i in "01"] == [True, False]
    assert column not in recording.read("0").streams
    assert recording.info().successes == 1


# --- LeRobot's tables ---


@pytest.mark.parametrize("how", ["absent", "null"])
def test_an_episode_table_without_places_is_no_traceback(tmp_path: Path, how: str) -> None:
    source = write_v30(tmp_path / "in", [Take(0), Take(1)], [WORDS])
    file = source / "meta/episodes/chunk-000/file-000.parquet"
    lines = pq.read_table(file).to_pylist()
    for line in lines:
        for key in ("data/chunk_index", "data/file_index"):
            if how == "null":
                line[key] = None
            else:
                line.pop(key)
    pq.write_table(pa.Table.from_pylist(lines), file)
    recording = open_recording(source)
    assert recording.info().episodes == 2
    np.testing.assert_array_equal(recording.read("1").actions, Take(1).motion()[1:])


def test_a_video_without_a_place_is_a_missing_camera(tmp_path: Path) -> None:
    key = "videos/observation.images.front/from_timestamp"
    source = write_v30(tmp_path / "in", [Take(0)], [WORDS], rows={0: {key: None}})
    assert "camera.missing" in codes_of(source)


@pytest.mark.parametrize("template", ["data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
                                      "data/{split}/episode_{episode_index:06d}.parquet"])  # fmt: skip
def test_a_foreign_template_hides_no_file(tmp_path: Path, template: str) -> None:
    source = write_v21(tmp_path / "in", [Take(0), Take(1)], [WORDS])
    info = json.loads((source / "meta/info.json").read_text())
    info["data_path"] = template
    (source / "meta/info.json").write_text(json.dumps(info))
    recording = open_recording(source)
    assert recording.info().episodes == 2
    np.testing.assert_array_equal(recording.read("1").actions, Take(1).motion()[1:])


def test_the_text_of_a_task_is_its_own_column(tmp_path: Path) -> None:
    source = write_v30(tmp_path / "in", [Take(0)], [WORDS])
    table = pa.table({"category": ["kitchen"], "task_index": [0], "task": [WORDS]})
    pq.write_table(table, source / "meta/tasks.parquet")
    assert open_recording(source).read("0").instructions == (WORDS,)


def test_subtasks_become_segments_and_survive_a_conversion(tmp_path: Path) -> None:
    steps = np.repeat([0, 1, 2], [20, 25, 15]).astype(np.int64)
    source = write_v30(
        tmp_path / "in",
        [Take(0, extra={"subtask_index": pa.array(steps)})],
        [WORDS],
        extra={"subtask_index": {"dtype": "int64", "shape": [1], "names": None}},
    )
    names = ["approach the bowl", "grasp the bowl", "place the bowl"]
    pq.write_table(pa.table({"subtask_index": [0, 1, 2], "subtask": names}), source / "meta/subtasks.parquet")
    convert(ConvertConfig(input=source, out=tmp_path / "out", to="lerobot_v3"))
    for recording in (open_recording(source), open_recording(tmp_path / "out")):
        episode = recording.read("0")
        assert [(s.start, s.stop, s.text, s.source) for s in episode.segments] == [
            (0, 20, names[0], "human"),
            (20, 45, names[1], "human"),
            (45, 60, names[2], "human"),
        ]
        assert episode.instructions == (WORDS,)
    assert by_the_rule_of_lerobot(tmp_path / "out") == [names[i] for i in steps]


def by_the_rule_of_lerobot(root: Path) -> list[str]:
    """The subtask of each row as lerobot 0.4 looks it up: the index of the row at that place."""
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(root / "meta/subtasks.parquet")
    rows = pq.read_table(sorted(root.glob("data/*/*.parquet"))[0])["subtask_index"].to_pylist()
    return [table.iloc[i].name for i in rows]


def test_segments_become_a_table_of_subtasks(tmp_path: Path) -> None:
    """Of frames of which nothing is said LeRobot's own look-up finds nothing, not the last subtask."""
    source = write_v30(tmp_path / "in", [Take(0), Take(1)], [WORDS])
    said = {"kind": "manipulate", "source": "human", "confidence": 1.0}
    spans = [[(5, 20, "reach"), (30, 60, "lift")], [(0, 10, "lift")]]
    content = {
        str(n): {"segments": [{"start": a, "stop": b, "text": text, **said} for a, b, text in each]}
        for n, each in enumerate(spans)
    }
    (tmp_path / "segments.json").write_text(json.dumps({"version": 1, "episodes": content}))
    convert(ConvertConfig(input=source, out=tmp_path / "out", annotations=tmp_path / "segments.json"))
    assert by_the_rule_of_lerobot(tmp_path / "out") == (
        [""] * 5 + ["reach"] * 15 + [""] * 10 + ["lift"] * 30 + ["lift"] * 10 + [""] * 50
    )
    again = convert(ConvertConfig(input=tmp_path / "out", out=tmp_path / "again"))
    assert again.notes == ()
    for root in ("out", "again"):
        read = [open_recording(tmp_path / root).read(i).segments for i in ("0", "1")]
        assert [[(s.start, s.stop, s.text) for s in each] for each in read] == spans
        (tmp_path / root / "meta/athena_recording.json").unlink()  # by the table alone
        read = [open_recording(tmp_path / root).read(i).segments for i in ("0", "1")]
        assert [[(s.start, s.stop, s.text) for s in each] for each in read] == spans
    assert "subtask_index" not in open_recording(tmp_path / "again").read("0").streams


def test_segments_without_a_column_are_said(tmp_path: Path) -> None:
    source = write_v30(tmp_path / "in", [Take(0), Take(1)], [WORDS])
    convert(ConvertConfig(input=source, out=tmp_path / "set"))
    side = tmp_path / "set/meta/athena_recording.json"
    content = json.loads(side.read_text())
    segment = {"start": 3, "stop": 9, "kind": "walk", "text": "walk", "source": "human", "confidence": 1.0}
    content["episodes"][1]["segments"] = [segment]
    side.write_text(json.dumps(content))
    done = convert(ConvertConfig(input=tmp_path / "set", out=tmp_path / "out"))
    assert any("segments of episode 1" in note and "sidecar" in note for note in done.notes)
    assert not (tmp_path / "out/meta/subtasks.parquet").exists()
    assert open_recording(tmp_path / "out").read("1").segments[0].text == "walk"


def test_another_version_is_said_for_what_it_is(tmp_path: Path) -> None:
    source = write_v30(tmp_path / "in", [Take(0)], [WORDS])
    info = json.loads((source / "meta/info.json").read_text())
    (source / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v3.1"}))
    with pytest.raises(RecordingError, match=r"'v3.1'.*v3.0.*newer"):
        open_recording(source)
    (source / "meta/info.json").write_text(json.dumps({"env_name": "Isaac-Stack", "fps": 20}))
    with pytest.raises(RecordingError, match=r"no LeRobot set.*env_name"):
        open_recording(source)


def test_two_episodes_of_one_video_are_not_built(tmp_path: Path) -> None:
    video = "videos/observation.images.front/"
    rows = {1: {f"{video}from_timestamp": 0.0, f"{video}to_timestamp": 6.0}}
    source = write_v30(tmp_path / "in", [Take(0), Take(1)], [WORDS], rows=rows)
    with pytest.raises(DatasetError, match="camera.shared_span"):
        build(BuildConfig(input=source, out=tmp_path / "set", robot="toy", workers=1))


# --- RLDS ---


def rlds(root: Path, files: dict[str, int], features: dict[str, Any], example: dict[str, Any]) -> Path:
    """`files` name -> records, each of them `example`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_info.json").write_text(json.dumps({"name": "x", "version": "1.0.0", "fileFormat": "tfrecord"}))
    steps = {"sequence": {"feature": {"featuresDict": {"features": features}}}}
    (root / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": steps}}}))
    data = build_example(example)
    for name, count in files.items():
        with open(root / name, "wb") as file:
            for _ in range(count):
                write_record(file, data)
    return root


def tensor(width: int) -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(width)]}, "dtype": "float32"}}


def test_records_of_a_split_are_counted_by_its_name(tmp_path: Path) -> None:
    example = {"steps/is_first": np.ones(2, np.int64)}
    files = {"x-train.tfrecord-00000-of-00002": 3, "x-train.tfrecord-00001-of-00002": 2,
             "x-train_extra.tfrecord-00000-of-00001": 4}  # fmt: skip
    ids = open_recording(rlds(tmp_path, files, {}, example)).ids()
    assert sorted(ids) == [*(f"train_{i:05d}" for i in range(5)), *(f"train_extra_{i:05d}" for i in range(4))]


def test_opening_many_records_is_linear(tmp_path: Path) -> None:
    """A quadratic opening needs sixteen times as long for four times the records; a linear one four."""
    example = {"steps/is_first": np.ones(2, np.int64)}
    spent = []
    for count in (10_000, 40_000):
        folder = rlds(tmp_path / str(count), {"x-train.tfrecord": count}, {}, example)
        gc.collect()
        gc.disable()  # a collection walks through all that the other tests of this process left, half a second of it
        try:
            began = time.process_time()
            assert len(open_recording(folder).ids()) == count
            spent.append(time.process_time() - began)
        finally:
            gc.enable()
    assert spent[1] < 9 * spent[0] + 0.2, spent


def png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_a_droid_record_is_read_whole(tmp_path: Path) -> None:
    positions = swing()[:-1].astype(np.float32)
    texts = [b"pick up the cup", b"grab the cup", b"lift the mug"]
    features = {
        "action": tensor(3), "observation/joint_position": tensor(3), "observation/gripper_position": tensor(1),
        "observation/exterior_image_1_left": {"image": {"dtype": "uint8"}},
        "observation/depth": {"image": {"dtype": "uint16"}},
        "note_of_operator": {"text": {}},
        **{f"language_instruction{s}": {"text": {}} for s in ("", "_2", "_3")},
    }  # fmt: skip
    nested: dict[str, Any] = {}
    for key, value in features.items():
        head, _, tail = key.partition("/")
        if tail:
            nested.setdefault(head, {"featuresDict": {"features": {}}})["featuresDict"]["features"][tail] = value
        else:
            nested[key] = value
    example: dict[str, Any] = {
        "steps/is_first": np.r_[1, np.zeros(STEPS - 1)].astype(np.int64),
        "steps/action": positions.reshape(-1),
        "steps/observation/joint_position": positions.reshape(-1),
        "steps/observation/gripper_position": np.linspace(0, 1, STEPS).astype(np.float32),
        "steps/observation/exterior_image_1_left": [png(numbered(i)) for i in range(STEPS)],
        "steps/observation/depth": [png(np.full((48, 64), 1000 + i, np.uint16)) for i in range(STEPS)],
        "steps/note_of_operator": [b"hesitated"] * STEPS,
        "episode_metadata/success": np.array([1], np.int64),
        "episode_metadata/file_path": [b"somewhere"],
    }
    for suffix, text in zip(("", "_2", "_3"), texts, strict=True):
        example[f"steps/language_instruction{suffix}"] = [text] * STEPS
    source = rlds(tmp_path, {"x-train.tfrecord": 1}, nested, example)
    episode = open_recording(source, fps=15).read("train_00000")
    np.testing.assert_array_equal(episode.states, positions)
    assert set(episode.instructions) == {t.decode() for t in texts}
    assert episode.success is True
    assert set(episode.cameras) == {"exterior_image_1_left"}
    assert set(episode.streams) == {"gripper_position"}
    said = {name for n in episode.notes for name in n.items}
    assert said == {"observation/depth", "note_of_operator", "episode_metadata/file_path"}


# --- units ---


def column(low: float, high: float) -> np.ndarray:
    return (low + high) / 2 + (high - low) / 2 * np.sin(np.linspace(0, 20, 400))


@pytest.mark.parametrize(
    ("columns", "units"),
    [
        ([("pan", -100, 80), ("lift", -100, 100), ("gripper", 0, 100)], ["percent"] * 3),
        ([("pan", -110, 90), ("lift", -95, 95), ("gripper", 0, 100)], ["degrees", "degrees", "percent"]),
        ([("pan", -60, 40), ("lift", -30, 50)], ["degrees?", "degrees?"]),
        ([("elbow", -1.2, 2.0), ("left_hand_thumb", 0, 250)], ["", "ticks"]),
        ([("elbow", -1.2, 2.0), ("right_gripper", 0, 100)], ["", "percent"]),
        ([("elbow", 1000, 3000), ("wrist", 1900, 2100)], ["ticks", "ticks"]),
        ([("elbow", -1.2, 2.0), ("wrist", -3.1, 3.1)], ["", ""]),
    ],
)
def test_units_are_told_column_by_column(columns: Sequence[tuple[str, float, float]], units: list[str]) -> None:
    values = np.stack([column(low, high) for _, low, high in columns], axis=1)
    assert units_of([n for n, _, _ in columns], values, [True] * len(columns)) == units


# --- cuts of one take ---


@pytest.mark.parametrize("offset", [20, 23, 45])
def test_cuts_of_one_take_stay_on_one_side(tmp_path: Path, offset: int) -> None:
    """Eight takes, each cut into two episodes that overlap; oracle: frames that are equal on both sides."""
    takes = []
    for take in range(8):
        whole = Take(0, length=120, seed=take).motion()
        for part, start in enumerate((0, offset)):
            piece = whole[start : start + 61]
            extra = {"observation.state": fixed(piece[:-1]), "action": fixed(piece[1:])}
            takes.append(Take(2 * take + part, extra=extra))
    source = write_v30(tmp_path / "in", takes, [WORDS])
    build(BuildConfig(input=source, out=tmp_path / "set", robot="toy", workers=1, validation=0.3, horizon=4))
    dataset = Dataset.open(tmp_path / "set")
    trained = {dataset[i].observation.state.tobytes() for i in dataset.train}
    assert len(dataset.validation)
    assert not any(dataset[i].observation.state.tobytes() in trained for i in dataset.validation)
    assert "episode.overlap" in codes_of(source)


def test_a_common_rest_joins_nobody() -> None:
    from athena_vla.recordings.overlaps import fingerprints

    def episode(seed: int) -> np.ndarray:
        return np.concatenate([np.zeros((30, 3)), np.cumsum(np.random.default_rng(seed).normal(size=(50, 3)), axis=0)])

    found = {str(i): fingerprints(episode(i), episode(i)) for i in range(5)}
    assert groups(found) == {str(i): str(i) for i in range(5)}


# --- every format names what it does not read ---


def said_of(source: Path) -> tuple[set[str], set[str]]:
    """(streams that are kept, names in the notes) of the first episode."""
    recording = open_recording(source)
    episode = recording.read(recording.ids()[0])
    return set(episode.streams), {name for n in episode.notes for name in n.items}


def test_xr_rows_keep_their_numbers_and_name_the_rest(tmp_path: Path) -> None:
    source = xr_teleoperate(tmp_path)
    file = source / "episode_0001/data.json"
    raw = json.loads(file.read_text())
    for i, row in enumerate(raw["data"]):
        row["states"]["left_arm"]["qvel"] = [0.1 * i, 0.2]
        row["tactiles"] = {"left": [1.0] * (i % 3)}  # changes its length
        row["depths"] = {"depth_0": f"depths/{i:06d}.png"}
        row["audios"] = {"mic": f"audios/{i}.npy"}
    file.write_text(json.dumps(raw))
    streams, said = said_of(source)
    assert streams == {"states/left_arm/qvel"}
    assert said == {"tactiles/left", "depth_0", "audios/mic"}
    values = open_recording(source).read("episode_0001").streams["states/left_arm/qvel"].values
    np.testing.assert_allclose(values[:, 0], 0.1 * np.arange(LENGTH))


def test_states_of_mobilitygen_are_kept_and_its_depth_is_named(tmp_path: Path) -> None:
    source = mobilitygen(tmp_path / "a")
    for i, file in enumerate(sorted((source / "state/common").glob("*.npz"))):
        positions = np.load(file)["joint_positions"]
        odd = np.zeros(1 + i % 2)
        np.savez(file, joint_positions=positions, pose=np.array([i, 0.0, 1.0]), odd=odd, name=np.array("x"))
    (source / "state/depth/front").mkdir(parents=True)
    (source / "state/segmentation/front").mkdir(parents=True)
    streams, said = said_of(source)
    assert streams == {"pose"}
    assert said == {"odd", "name", "depth", "segmentation"}


def test_arrays_of_a_motion_and_of_a_folder_are_kept_or_named(tmp_path: Path) -> None:
    source = motion(tmp_path / "m")
    arrays = dict(np.load(source / "walk.npz"))
    np.savez(source / "walk.npz", **arrays, dof_velocities=np.zeros((LENGTH, 2)), body_names=np.array(["a"]))
    assert said_of(source) == ({"dof_velocities"}, {"body_names"})
    write(tmp_path / "f", clean(0))
    file = tmp_path / "f/episode_0000/trajectory.npz"
    arrays = dict(np.load(file))
    np.savez(file, **arrays, force=np.ones(60), odd=np.zeros(7))
    assert said_of(tmp_path / "f") == ({"force"}, {"odd"})


def test_depth_images_of_a_folder_are_no_camera(tmp_path: Path) -> None:
    write(tmp_path / "in", clean(0))
    folder = tmp_path / "in/episode_0000/images/second"
    folder.mkdir()
    for i in range(60):
        Image.fromarray(np.full((48, 64), 700 + i, np.uint16)).save(folder / f"rgb_{i:04d}.png")
    episode = open_recording(tmp_path / "in").read("episode_0000")
    assert "second" not in episode.cameras
    assert [n.items for n in episode.notes if n.code == "camera.depth"] == [("second",)]


@pytest.mark.parametrize(("name", "code"), [("head_depth", "camera.depth"), ("front_segmentation", "stream.unused")])
def test_a_stream_that_is_called_depth_is_no_camera(tmp_path: Path, name: str, code: str) -> None:
    """Eight bits a pixel and no flag: some recorders store depth as a grey video."""
    key = f"observation.images.{name}"
    source = write_v21(tmp_path / "in", [Take(0)], [WORDS], camera=key)
    episode = open_recording(source).read("0")
    assert not episode.cameras
    assert [n.code for n in episode.notes if key in n.items] == [code]


@pytest.mark.parametrize("target", ["lerobot_v3", "lerobot_v21", "rlds", "isaac_folder"])
def test_a_conversion_keeps_or_names_a_stream_with_its_own_clock(tmp_path: Path, target: Any) -> None:
    force = Stream(np.arange(300.0).reshape(300, 1), Clock(np.arange(300) / 50, 50.0))
    write(tmp_path / "in", replace(clean(0), streams={"force": force}))
    done = convert(ConvertConfig(input=tmp_path / "in", out=tmp_path / "out", to=target))
    named = any("force" in note for note in done.notes)
    recording = open_recording(tmp_path / "out")
    kept = "force" in recording.read(recording.ids()[0]).streams
    assert (kept, named) == ((True, False) if target == "isaac_folder" else (False, True))


def test_an_npz_holds_what_it_was_given_and_nothing_that_would_be_pickled(tmp_path: Path) -> None:
    """With numpy before 2.1 `savez(allow_pickle=False)` writes an array of that name."""
    save_arrays(tmp_path / "a.npz", {"x": np.arange(3), "words": np.array(["a", "b"])})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["words", "x"]
    with pytest.raises(RecordingError, match="'y' holds objects"):
        save_arrays(tmp_path / "b.npz", {"y": np.array([{}], dtype=object)})
    assert not (tmp_path / "b.npz").exists()


def test_what_holds_for_all_episodes_is_said_in_full(tmp_path: Path) -> None:
    """Two depth cameras and a segmentation in every episode are three findings, not the first of each code."""
    names = ["head_depth", "wrist_depth"]
    for take in range(3):
        write(tmp_path / "in", clean(take))
        for name in names:
            folder = tmp_path / f"in/episode_{take:04d}/images/{name}"
            folder.mkdir()
            for i in range(60):
                Image.fromarray(np.full((8, 8), 700 + i, np.uint16)).save(folder / f"rgb_{i:04d}.png")
    found = [f for f in check(CheckConfig(input=tmp_path / "in")).findings if f.code == "camera.depth"]
    assert [f.episode for f in found] == [None, None]
    for name in names:
        assert any(name in f.message and "all 3 episodes" in f.message for f in found)


def test_two_findings_of_half_the_episodes_are_not_all() -> None:
    from athena_vla.check.checking import merged
    from athena_vla.check.findings import finding

    twice = [finding("camera.depth", f"'{n}' holds depth.", e) for e in ("0", "1") for n in "ab"]
    assert [f.episode for f in merged(twice, 4)] == ["0", "0", "1", "1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for the memory")
def test_sixty_thousand_records_open_in_seconds(tmp_path: Path) -> None:
    """12 GB of records whose payloads are holes in their files: opening reads the headers, and nothing else."""
    records, size, shards = 60_000, 200_000, 60
    root = rlds(tmp_path / "set", {}, {"is_first": {"tensor": {"dtype": "bool"}}}, {})
    head = struct.pack("<Q", size)
    crc = google_crc32c.value(head)
    head += struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
    for shard in range(shards):
        with open(root / f"x-train.tfrecord-{shard:05d}-of-{shards:05d}", "wb") as file:
            for _ in range(records // shards):
                file.write(head)
                file.seek(size, 1)
                file.write(bytes(4))
    before, began = resident(), time.process_time()
    recording = open_recording(root)
    assert len(recording.ids()) == records
    assert time.process_time() - began <= 5.0
    assert resident() - before < 200, "MiB: where each record lies is kept, what it holds is not"


def resident() -> float:
    """[MiB]"""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
