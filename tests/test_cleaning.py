"""Caches go, counted by the sizes of the files that were put there; sets, recordings and what is in use stay."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from athena_vla import cli
from athena_vla.dataset.build import BuildConfig, build, linked_set
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import AthenaError
from athena_vla.files.cleaning import CleanConfig, clean
from recordings import clean as recorded
from recordings import write

HOLDS = """
import sys, time
from pathlib import Path
from athena_vla import files
with files.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def below(folder: Path) -> dict[str, int]:
    return {f.relative_to(folder).as_posix(): f.stat().st_size for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording, a set of it with decoded images, one that links it by itself, and a compiled kernel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write(tmp_path / "rec", *(recorded(i, length=20) for i in range(2)))
    build(BuildConfig(input=tmp_path / "rec", out=tmp_path / "set", robot="toy", horizon=4, workers=1))
    Dataset.open(tmp_path / "set").cache_frames()
    linked_set(tmp_path / "rec", "toy")
    kernels = tmp_path / "cache" / "athena_vla"
    kernels.mkdir(exist_ok=True)
    (kernels / "gemv_kernel-1.so").write_bytes(b"x" * 4321)
    return tmp_path


def test_what_is_only_for_speed_goes_and_is_counted(caches: Path) -> None:
    before = {name: below(caches / name) for name in ("rec", "set", "cache")}
    decoded = {n: size for n, size in before["set"].items() if n.startswith(".cache/")}
    assert decoded
    said = clean(CleanConfig((caches / "set",), dry_run=True))
    assert {name: below(caches / name) for name in before} == before
    assert "would be removed" in str(said)
    done = clean(CleanConfig((caches / "set",)))
    assert done.bytes == said.bytes == sum(decoded.values()) + sum(before["cache"].values())
    assert not below(caches / "cache")
    assert below(caches / "rec") == before["rec"]
    assert below(caches / "set") == {n: size for n, size in before["set"].items() if n not in decoded}
    assert Dataset.open(caches / "set")[0].observation.images  # it is made again
    assert str(clean(CleanConfig())) == "There is no cache to remove."


def test_without_sets_their_decoded_images_stay(caches: Path) -> None:
    before = below(caches / "set")
    clean(CleanConfig())
    assert below(caches / "set") == before


def test_a_cache_that_is_in_use_stays_and_is_named(caches: Path) -> None:
    (used,) = [p for p in (caches / "cache" / "athena" / "sets").iterdir() if p.is_dir()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", HOLDS, str(used)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        done = clean(CleanConfig())
    finally:
        process.kill()
        process.wait()
    assert used.is_dir()
    (kept,) = [c for c in done.caches if c.kept]
    assert kept.path == used
    assert str(process.pid) in kept.kept
    assert done.bytes == 4321
    time.sleep(0.05)
    clean(CleanConfig())
    assert not used.exists()


def test_images_that_are_being_decoded_stay(caches: Path) -> None:
    (decoded,) = (caches / "set" / ".cache").glob("frames-*.npy")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", HOLDS, str(decoded)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        done = clean(CleanConfig((caches / "set",)))
    finally:
        process.kill()
        process.wait()
    assert decoded.is_file()
    assert [c.path for c in done.caches if c.kept] == [caches / "set" / ".cache"]


def test_what_is_no_dataset_is_refused_before_anything_goes(caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = below(caches)
    with pytest.raises(AthenaError, match="rec' is no dataset"):
        clean(CleanConfig((caches / "rec",)))
    with pytest.raises(SystemExit) as end:
        cli.main(["clean", "--sets", str(caches / "rec"), "--json"])
    assert end.value.code == 2
    assert "no dataset" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert below(caches) == before
