"""A bundle's manifest: typed, read in both formats, and a sentence for whatever lies in it."""

import copy
import dataclasses
import hashlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from athena_vla.bundle import Bundle
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, BundleError
from athena_vla.manifest import FileEntry, Manifest
from athena_vla.serve import open_policy
from small_bundles import write_base

WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, float("nan"), "", "x", [], {}, ["x"], {"x": 1}, 10**30, -0.5, "../../etc/passwd", [[1]],
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy: Embodiment) -> Path:
    return write_base(tmp_path_factory.mktemp("manifest") / "base", toy).path


@pytest.fixture
def spoiled(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "spoiled"))


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "manifest.json").read_text())


def write(path: Path, raw: Any) -> None:
    (path / "manifest.json").write_text(json.dumps(raw))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    changed = copy.copy(value)
    changed[at[0]] = put(changed[at[0]], at[1:], new)
    return changed


def test_a_new_bundle_lists_sizes_and_hashes(base: Path) -> None:
    raw = manifest_of(base)
    assert raw["format"] == 2
    for path, entry in raw["files"].items():
        data = (base / path).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_format_1_is_read_and_keeps_its_hash(spoiled: Path) -> None:
    raw = manifest_of(spoiled)
    old = raw | {"format": 1, "files": {p: e["sha256"] for p, e in raw["files"].items()}}
    write(spoiled, old)
    bundle = Bundle.open(spoiled)
    assert bundle.manifest.files["golden.npz"] == FileEntry(raw["files"]["golden.npz"]["sha256"], None)
    # The hash of format 1, spelled out: an adapter names its parent by it.
    text = json.dumps(old | {"gates": {}}, sort_keys=True)
    assert bundle.hash == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert bundle.manifest.to_dict() == old


def test_a_manifest_survives_its_round_trip(base: Path) -> None:
    manifest = Bundle.open(base).manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), "x") == manifest


def test_every_mistyped_manifest_gets_a_sentence(spoiled: Path) -> None:
    good = manifest_of(spoiled)
    tried = [(at, new) for at in places(good) for new in WRONG]
    random.Random(1).shuffle(tried)
    sentences = []
    for at, new in tried[:1200]:
        write(spoiled, put(good, at, new))
        try:
            bundle = Bundle.open(spoiled, verify=False)
            _ = bundle.robot, bundle.normalizer, bundle.spec, bundle.hash
        except AthenaError as error:
            sentences.append(str(error))
    assert len(sentences) > 400
    assert all(sentences)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Manifest)])
def test_no_entry_may_be_a_list(spoiled: Path, name: str) -> None:
    write(spoiled, manifest_of(spoiled) | {name: [[1]]})
    with pytest.raises(BundleError):
        Bundle.open(spoiled, verify=False)


@pytest.mark.slow
def test_no_mistyped_manifest_is_served_with_an_exception(spoiled: Path) -> None:
    good = manifest_of(spoiled)
    tried = [(at, new) for at in places(good) for new in WRONG]
    random.Random(2).shuffle(tried)
    for at, new in tried[:400]:
        write(spoiled, put(good, at, new))
        try:
            open_policy(spoiled)
        except AthenaError:
            continue


@pytest.mark.parametrize("raw", [[], "x", 3, None, {"format": 3}, {"format": "2"}, {"format": True}])
def test_what_is_no_manifest_is_refused(spoiled: Path, raw: Any) -> None:
    write(spoiled, raw)
    with pytest.raises(BundleError, match=r"no table of entries|this version reads formats 1, 2"):
        Bundle.open(spoiled)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "weights/../../x", "a\\b", ""])
def test_no_listed_path_leaves_the_bundle(spoiled: Path, path: str) -> None:
    raw = manifest_of(spoiled)
    raw["files"][path] = {"sha256": "0" * 64, "bytes": 1}
    write(spoiled, raw)
    with pytest.raises(BundleError, match="no path inside the bundle"):
        Bundle.open(spoiled)


def test_a_link_out_of_the_bundle_is_refused(spoiled: Path) -> None:
    outside = spoiled.parent / "golden.npz"
    shutil.move(spoiled / "golden.npz", outside)
    (spoiled / "golden.npz").symlink_to(outside)
    with pytest.raises(BundleError, match="links to somewhere else"):
        Bundle.open(spoiled)


def test_files_that_nobody_listed_are_refused(spoiled: Path) -> None:
    """An index of shards beside the hashed file would decide which weights are loaded."""
    weights = load_file(next((spoiled / "weights").glob("*.safetensors")))
    save_file(weights, spoiled.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "../../outside.safetensors")}
    (spoiled / "weights" / "another.index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match=r"'weights/another.index.json'.*does not list"):
        Bundle.open(spoiled)


def test_a_golden_file_that_unpacks_to_a_gigabyte_is_refused(spoiled: Path) -> None:
    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (1_000_000_000,)}
    np.lib.format.write_array_header_1_0(header, claim)
    with (
        zipfile.ZipFile(spoiled / "golden.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("image.front.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(100):
            file.write(bytes(10_000_000))
    raw, data = manifest_of(spoiled), (spoiled / "golden.npz").read_bytes()
    raw["files"]["golden.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write(spoiled, raw)
    with pytest.raises(AthenaError, match="unpacks to"):
        _ = Bundle.open(spoiled).golden
