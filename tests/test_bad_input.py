"""What goes wrong in deployment, as a stranger meets it: on the command line, one sentence, nothing half-written."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from athena_vla.bundle import Bundle
from athena_vla.cli import main
from athena_vla.export import ExportConfig, export
from athena_vla.merge import MergeConfig, merge
from athena_vla.models.lora import LoraSettings
from athena_vla.quantize import QuantizeConfig, quantize
from small_bundles import write_base, write_finetuned

NX = "jetson-orin-nx-16gb"


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    """A bundle of every stage."""
    where = tmp_path_factory.mktemp("world")
    base = write_base(where / "base", toy)
    write_base(where / "other", toy, seed=5)
    write_finetuned(where / "tuned", base, LoraSettings(rank=4))
    merge(MergeConfig(where / "tuned", where / "merged"))
    quantize(QuantizeConfig(where / "merged", where / "int4", sensitivity=False))
    export(ExportConfig(where / "int4", where / "onnx", engine="onnx"))
    write_base(where / "tokens", toy, tokens=True)
    quantize(QuantizeConfig(where / "tokens", where / "tokens4", sensitivity=False))
    return where


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence the command ends with; before it only progress, which a slow machine shows, may be said."""
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    told = capsys.readouterr()
    assert stop.value.code == 2, told.err
    assert told.out == ""
    *before, last = told.err.splitlines()
    assert all(line.endswith(" for all") for line in before), told.err
    assert last.startswith("athena: ")
    return last


def copied(world: Path, name: str, to: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(world / name, to))


def test_adapter_of_another_base(world, tmp_path, capsys) -> None:
    spoiled = copied(world, "tuned", tmp_path / "tuned")
    manifest = json.loads((spoiled / "manifest.json").read_text())
    (spoiled / "manifest.json").write_text(json.dumps(manifest | {"parent_path": str(world / "other")}))
    for words in (("merge", spoiled, tmp_path / "m"), ("bench", spoiled), ("serve", spoiled)):
        assert "an adapter fits only its own base" in refusal(capsys, *words)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("name", "file"), [("merged", "model.safetensors"), ("onnx", "model.data")])
def test_missing_cut_and_edited_weights(world, tmp_path, capsys, name, file) -> None:
    verbs = [("bench",), ("serve",), ("gates",)] + ([("quantize", tmp_path / "q")] if name == "merged" else [])
    for kind, told in (("missing", "lacks ['weights/"), ("cut", "edited or cut"), ("edited", "edited or cut")):
        spoiled = copied(world, name, tmp_path / kind)
        weights = spoiled / "weights" / file
        if kind == "missing":
            weights.unlink()
        elif kind == "cut":
            os.truncate(weights, weights.stat().st_size - 100)
        else:
            content = bytearray(weights.read_bytes())
            content[-5] ^= 1
            weights.write_bytes(content)
        for verb, *more in verbs:
            assert told in refusal(capsys, verb, spoiled, *more)


@pytest.fixture
def full() -> Iterator[None]:
    """Files may not grow beyond a size: the system itself refuses in the middle of a write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "tuned", "OUT"),
        ("quantize", "merged", "OUT", "--no-sensitivity"),
        ("export", "merged", "OUT"),
        ("export", "int4", "OUT", "--target", NX),
        ("export", "tokens4", "OUT", "--target", "edge-llm"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
@pytest.mark.usefixtures("full")
def test_a_disk_that_is_full_in_the_middle(world, tmp_path, capsys, words) -> None:
    name, source, _, *more = words
    told = refusal(capsys, name, world / source, tmp_path / "out", *more)
    assert "could not be written" in told
    assert "File too large" in told
    kept = list(tmp_path.glob(".out.partial-*/*")) if name == "quantize" else []  # of layers that were finished
    assert {f.suffix for f in kept} <= {".jsonl", ".safetensors"}, "nothing half-written"
    left = [f for f in tmp_path.iterdir() if f not in {k.parent for k in kept}]
    assert not left, "neither under its name nor under a temporary one"


def test_a_full_disk_leaves_what_was_there(world, tmp_path, capsys, request) -> None:
    copied(world, "int4", tmp_path / "out")
    before = Bundle.open(tmp_path / "out").hash
    request.getfixturevalue("full")
    assert "exists already" in refusal(capsys, "export", world / "merged", tmp_path / "out")
    refusal(capsys, "export", world / "merged", tmp_path / "out", "--overwrite")
    assert Bundle.open(tmp_path / "out").hash == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_places_where_nothing_can_be_written(world, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for place, told in (
        ("file", "is not a bundle"),
        ("folder", "is not a bundle"),
        ("file/below", "could not be written"),
    ):
        assert told in refusal(capsys, "export", world / "int4", tmp_path / place)
        assert told in refusal(capsys, "merge", world / "tuned", tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
    bench = ("bench", world / "onnx", "--runs", "100", "--warmup", "10", "--out", tmp_path / "file" / "x.json")
    assert "could not be written" in refusal(capsys, *bench)


def test_names_that_do_not_exist(world, tmp_path, capsys) -> None:
    out = tmp_path / "x"
    assert f"no export target 'orin'. Known: cpu, cuda, {NX}" in refusal(
        capsys, "export", world / "int4", out, "--target", "orin"
    )
    assert f"no device 'orin'. Known: {NX}" in refusal(capsys, "plan", "--device", "orin")
    assert f"There is nothing at '{world / 'nowhere'}' (INPUT of athena export)" in refusal(
        capsys, "export", world / "nowhere", out
    )
    assert "run `athena merge` on it first" in refusal(capsys, "quantize", world / "tuned", out)
    assert "not fine-tuned" in refusal(capsys, "merge", world / "merged", out)
    assert "is not exported" in refusal(capsys, "bench", world / "int4", "--backend", "onnxruntime")
    assert "no torch weights" in refusal(capsys, "bench", world / "onnx", "--backend", "torch")
    assert "10 or more + 100 or more" in refusal(capsys, "bench", world / "onnx", "--runs", "20")
    assert not out.exists()


def test_a_bundle_that_fails_a_gate_is_marked_and_not_served(world, tmp_path, capsys) -> None:
    failing = copied(world, "int4", tmp_path / "int4")
    with pytest.raises(SystemExit) as stop:
        main(["gates", str(failing), "--p95-rad", "0", "--out", str(tmp_path / "report.json")])
    assert stop.value.code == 4
    assert "FAILED error_p95_rad" in capsys.readouterr().out
    assert not json.loads((tmp_path / "report.json").read_text())["passed"]
    assert "marked as failed by its gates ['error_p95_rad'" in refusal(capsys, "serve", failing)


def test_an_unsupported_operator(world, tmp_path, capsys, monkeypatch) -> None:
    import torch

    from athena_vla.export import operators

    monkeypatch.delitem(operators.OPERATORS, torch.ops.aten.silu.default)
    told = refusal(capsys, "export", world / "int4", tmp_path / "x")
    assert "'aten.silu.default' has no ONNX translation" in told
    assert not list(tmp_path.iterdir())
