"""Damaged recordings through check, build, convert, annotate: a sentence or a whole result; good episodes survive."""

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from athena_vla.annotate.annotating import AnnotateConfig, annotate
from athena_vla.check import CheckConfig, check
from athena_vla.check.lags import AlignConfig, align
from athena_vla.dataset.build import BuildConfig, build
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import AthenaError, DatasetError, RecordingError
from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.info import InfoConfig, info
from athena_vla.view import ViewConfig, view
from recordings import clean, write

KINDS = ("isaac_folder", "lerobot_v21", "lerobot_v3", "rlds")


def recording(folder: Path, kind: str, video: bool = False) -> Path:
    write(folder / "in", *(clean(i, length=20) for i in range(3)))
    if kind == "isaac_folder":
        return folder / "in"
    convert(ConvertConfig(input=folder / "in", out=folder / "set", to=kind, video=video))  # pyright: ignore[reportArgumentType]
    return folder / "set"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_ends_in_a_sentence_or_a_whole_result(tmp_path, kind, seed):
    root = recording(tmp_path, kind)
    rng = np.random.default_rng(seed)
    files = sorted(f for f in root.rglob("*") if f.is_file() and f.stat().st_size)
    for file in rng.permutation(np.array(files, object))[:4]:
        data = bytearray(file.read_bytes())
        for place in rng.integers(0, len(data), 6):
            data[place] = int(rng.integers(0, 256))
        file.write_bytes(bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.5 else data))
    assert check(CheckConfig(input=root, robot="toy")).exit_status in (0, 1, 2)
    for stage, out in (
        (lambda: info(InfoConfig(input=root)), None),
        (lambda: align(AlignConfig(input=root)), None),
        (lambda: annotate(AnnotateConfig(input=root, out=tmp_path / "a.json")), tmp_path / "a.json"),
        (lambda: view(ViewConfig(input=root, out=tmp_path / "v", show="pages")), tmp_path / "v"),
        (lambda: build(BuildConfig(input=root, out=tmp_path / "b", robot="toy", workers=1)), tmp_path / "b"),
        (lambda: convert(ConvertConfig(input=root, out=tmp_path / "c", to="lerobot_v21")), tmp_path / "c"),
    ):
        sentence = ""
        try:
            stage()
        except AthenaError as error:
            sentence = str(error)
        assert not sentence or len(sentence) > 20
        assert out is None or out.exists() != bool(sentence)
    if (tmp_path / "b").exists():
        dataset = Dataset.open(tmp_path / "b")
        assert dataset[len(dataset) - 1].observation.images
    if (tmp_path / "c").exists():
        assert all(e.timestamps.size for e in open_recording(tmp_path / "c").episodes())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["lerobot_v21", "lerobot_v3"])
def test_a_cut_video_costs_its_own_episode(tmp_path, kind, share):
    root = recording(tmp_path, kind, video=True)
    video = sorted(root.rglob("*.mp4"))[1]
    data = video.read_bytes()
    video.write_bytes(data[: int(share * len(data))])
    report = check(CheckConfig(input=root, robot="toy"))
    bad = {f.episode for f in report.findings if f.severity == "error"}
    assert bad == {"1"}
    result = build(BuildConfig(input=root, out=tmp_path / "b", robot="toy", workers=1))
    assert list(result.broken) == ["1"]
    assert result.episodes == 2
    with pytest.raises(DatasetError, match="strict"):
        build(BuildConfig(input=root, out=tmp_path / "s", robot="toy", workers=1, strict=True))
    assert not (tmp_path / "s").exists()


def test_an_hdf5_file_that_claims_a_trillion_frames_costs_nothing(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo.create_dataset("actions", (10**12, 23), "f4", chunks=(100, 23))
        good = file.create_group("data/demo_1")
        good["actions"] = np.zeros((20, 23), np.float32)
        good["obs/joint_pos"] = np.random.default_rng(0).normal(size=(20, 23)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    recorded = open_recording(tmp_path / "a.hdf5")
    with pytest.raises(RecordingError, match=r"claims|damaged"):
        recorded.read("demo_0")
    assert len(recorded.read("demo_1")) == 20
    report = check(CheckConfig(input=tmp_path / "a.hdf5"))
    assert report.episodes == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # [KiB]


def test_a_table_that_claims_a_trillion_frames_and_paths_out_of_the_set(tmp_path):
    root = recording(tmp_path, "lerobot_v21")
    raw = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**raw, "total_frames": 10**12, "total_episodes": 10**12}))
    lines = [json.loads(x) for x in (root / "meta/episodes.jsonl").read_text().splitlines()]
    lines[0]["length"] = 10**12
    (root / "meta/episodes.jsonl").write_text("\n".join(json.dumps(x) for x in lines))
    assert info(InfoConfig(input=root)).info.frames == 60
    assert {"metadata.count", "metadata.length"} <= {f.code for f in check(CheckConfig(input=root)).findings}
    (root / "meta/info.json").write_text(json.dumps({**raw, "data_path": "../{episode_index}.parquet"}))
    with pytest.raises(AthenaError, match="outside"):
        build(BuildConfig(input=root, out=tmp_path / "b", robot="toy", workers=1))
