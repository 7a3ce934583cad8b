"""Every stage that writes, while its file operations fail and while it is killed: the old or the new, and both whole.

A stage is a command of the command line on small material. What it writes when nothing fails is the oracle; a next
start must give the same bytes, and leave nothing else behind.
"""

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from athena_vla import cli, files
from athena_vla.files import faults

QUICK = ("annotate", "convert", "convert_rlds", "join")  # the rest takes minutes
GROWING = ("record",)  # a recording has its name from the first episode on; each episode is whole
KILLS = 20
Content = dict[str, bytes] | None
MEASURED = re.compile(rb'"(minutes|peak_gb)":')  # lines with them are not compared


def content(path: Path) -> Content:
    if not path.exists():
        return None
    found = {f.relative_to(path).as_posix(): f for f in path.rglob("*") if f.is_file()} if path.is_dir() else {"": path}
    return {name: settled(f.read_bytes()) if f.suffix == ".json" else f.read_bytes() for name, f in found.items()}


def settled(text: bytes) -> bytes:
    return b"\n".join(line for line in text.split(b"\n") if not MEASURED.search(line))


def run(words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a command, in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.main(words)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    stages.make_material(folder)
    return folder


def whole(stage: str, material: Path, folder: Path) -> tuple[Content, list[str], int]:
    """What a stage writes, the names beside it, and how many file operations that takes."""
    folder.mkdir()  # the one in which it will fail: outputs name their place
    with faults.failing(0, folder) as fault:
        status, said = run(stages.words(stage, material, folder / "out"))
    assert status == 0, said
    found = content(folder / "out"), sorted(f.name for f in folder.iterdir()), fault.count
    shutil.rmtree(folder)
    return found


def usable_again(stage: str, material: Path, folder: Path, expected: tuple[Content, list[str], int], why: str) -> None:
    """After a failure the name holds nothing or all of it, and the next start gives the same."""
    found = content(folder / "out")
    if stage in GROWING:
        begun = {name: data for name, data in (found or {}).items() if not name.startswith(".")}
        assert all((expected[0] or {})[name] == data for name, data in begun.items()), why
    else:
        assert found is None or found == expected[0], why
    if found == expected[0]:
        shutil.rmtree(folder / "out") if (folder / "out").is_dir() else (folder / "out").unlink()
    status, said = run(stages.words(stage, material, folder / "out"))
    assert status == 0, f"{why}: {said}"
    assert content(folder / "out") == expected[0], why
    assert sorted(f.name for f in folder.iterdir()) == expected[1], why
    assert not files.leftovers(folder / "out"), why


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in stages.STAGES]
)
def test_every_file_operation_of_a_stage_fails_once(stage: str, material: Path, tmp_path: Path) -> None:
    expected = whole(stage, material, tmp_path / "work")
    assert expected[2] > 3
    for at in range(1, expected[2] + 1):
        folder = tmp_path / "work"
        folder.mkdir()
        with faults.failing(at, folder) as fault:
            status, said = run(stages.words(stage, material, folder / "out"))
        assert fault.hit, f"operation {at} of {expected[2]} did not happen"
        assert status in (0, 1, 2)
        if status:
            assert "No space left" in said, f"{fault.hit}: {said}"
            assert "Traceback" not in said
        usable_again(stage, material, folder, expected, fault.hit)
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.STAGES)
def test_killed_at_random_moments_a_stage_loses_nothing(stage: str, material: Path, tmp_path: Path) -> None:
    expected = whole(stage, material, tmp_path / "work")
    chosen = random.Random(stage).sample(range(1, expected[2] + 1), min(KILLS, expected[2]))
    for at in chosen:
        folder = tmp_path / "work"
        folder.mkdir()
        environment = {**os.environ, faults.VARIABLE: f"kill:{at}:{folder}"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        words = [sys.executable, "-m", "athena_vla.cli", *stages.words(stage, material, folder / "out")]
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
        usable_again(stage, material, folder, expected, f"killed at operation {at}")
        shutil.rmtree(folder)
