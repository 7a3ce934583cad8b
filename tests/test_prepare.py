"""Graphs stored with repacked weights: the same answers, used only where they were made, never half-written."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from athena_vla import onnx_session
from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError, ExportError
from athena_vla.export import ExportConfig, export
from athena_vla.policy import Policy
from athena_vla.prepare import PrepareConfig, prepare
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import observations, write_base


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    base = write_base(root / "base", toy, tokens=True)
    quantize(QuantizeConfig(base.path, root / "int4", method="nearest", sensitivity=False))
    export(ExportConfig(root / "int4", root / "x"))
    return root / "x"


@pytest.fixture
def exported(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "x"))


def opened(monkeypatch) -> list[Path]:
    """Files that sessions are made of from now on."""
    files: list[Path] = []
    inner = onnx_session._open

    def note(file: Path, options) -> object:
        files.append(file)
        return inner(file, options)

    monkeypatch.setattr(onnx_session, "_open", note)
    return files


def test_the_same_answers_from_stored_packed_weights(exported, toy, monkeypatch) -> None:
    frames = observations(toy, 3)
    before = Policy.load(exported).chunks(frames)
    result = prepare(PrepareConfig(exported))
    assert result.compared
    assert set(result.graphs) == {"vision", "words", "language"}
    files = opened(monkeypatch)
    np.testing.assert_array_equal(Policy.load(exported).chunks(frames), before)
    assert {f.parent.name for f in files} == {"prepared"}
    # The repacked weights are in the file: it holds more than what was to be packed.
    packed = sum(v for k, v in sizes(exported / "prepared").items() if k.startswith("language"))
    import onnx

    graph = onnx.load(str(exported / "prepared" / "language.onnx"), load_external_data=False).graph
    keys = {e.key for t in graph.initializer for e in t.external_data}
    assert any(k.startswith("prepacked") for k in keys), keys
    assert packed > sum(int(e.value) for t in graph.initializer for e in t.external_data if e.key == "length")


def sizes(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_size for f in folder.iterdir()}


@pytest.mark.parametrize("key", ["ONNX Runtime", "CPU"])
def test_another_machine_warns_and_runs_as_before(exported, toy, monkeypatch, key) -> None:
    before = Policy.load(exported).chunks(observations(toy, 1))
    prepare(PrepareConfig(exported))
    other = {**onnx_session.machine(), key: "another"}
    monkeypatch.setattr(onnx_session, "machine", lambda: other)
    files = opened(monkeypatch)
    with pytest.warns(UserWarning, match=f"prepared for another {key}: not used. Run `athena prepare` again"):
        after = Policy.load(exported).chunks(observations(toy, 1))
    np.testing.assert_array_equal(after, before)
    assert {f.parent.name for f in files} == {"weights"}


def test_edited_files_are_found_and_prepared_anew(exported) -> None:
    prepare(PrepareConfig(exported))
    file = exported / "prepared" / "language.data"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"prepared/language.data"):
        Bundle.open(exported)
    prepare(PrepareConfig(exported))
    Bundle.open(exported)


def test_a_failure_in_the_middle_leaves_the_bundle_as_it_was(exported, toy, monkeypatch) -> None:
    names = set(sizes(exported))
    before = Policy.load(exported).chunks(observations(toy, 1))
    inner = onnx_session.store

    def full(folder: Path, name: str, settings, out: Path) -> None:
        if name == "language":
            raise OSError(28, "No space left on device")
        inner(folder, name, settings, out)

    with monkeypatch.context() as m:
        m.setattr(onnx_session, "store", full)
        with pytest.raises(OSError, match="No space"):
            prepare(PrepareConfig(exported))
    assert set(sizes(exported)) == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(Policy.load(exported).chunks(observations(toy, 1)), before)


def test_answers_that_differ_are_thrown_away(exported, monkeypatch) -> None:
    answers = iter((np.zeros(1), np.ones(1)))
    monkeypatch.setattr("athena_vla.prepare._answer", lambda bundle, threads: next(answers))
    with pytest.raises(ExportError, match="answer differently; they were removed"):
        prepare(PrepareConfig(exported))
    assert not (exported / "prepared").exists()


def test_only_exported_bundles_are_prepared(made) -> None:
    with pytest.raises(ExportError, match="is quantized, not exported"):
        prepare(PrepareConfig(made.parent / "int4"))


def test_the_record_names_runtime_and_cpu(exported) -> None:
    prepare(PrepareConfig(exported, compare=False))
    record = json.loads((exported / "prepared" / "prepared.json").read_text())
    assert set(record["machine"]) == {"ONNX Runtime", "CPU"}
    assert set(record["files"]) == set(sizes(exported / "prepared")) - {"prepared.json"}
