"""The test run itself: it ends when a worker dies, whenever that is, and it is red."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("xdist")

DIES = "import os, signal; os.kill(os.getpid(), signal.{signal})"
PASSES = "import pytest\n@pytest.mark.parametrize('i', range(4))\ndef test_fine(i): pass\n"


def run(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    (folder / "conftest.py").write_text("from runner import *\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "ATHENA"))}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "PYTHONFAULTHANDLER": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *words]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done, time.monotonic() - started


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGKILL"])
@pytest.mark.parametrize("when", ["in a test", "after the tests of a file"])
def test_a_worker_that_dies_ends_the_run(tmp_path, signal: str, when: str) -> None:
    for i in range(6):
        (tmp_path / f"test_{i}.py").write_text(PASSES)
    dies = DIES.format(signal=signal)
    if when == "in a test":
        text = f"def test_one(): pass\ndef test_dies(): {dies}\ndef test_after(): pass\n"
    else:
        text = f"import pytest\n@pytest.fixture(autouse=True, scope='module')\ndef _f():\n    yield\n    {dies}\n"
        text += "def test_one(): pass\n"
    (tmp_path / "test_3.py").write_text(text)
    done, seconds = run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert seconds < 60, "it waits for the dead worker"
    assert re.search(r"crashed while running 'test_3.py::test_(dies|one)'|Worker gw\d died", done.stdout)
    assert re.search(r"Worker gw\d died, so the run ended after \d+ tests; the others were not run", done.stdout)


def test_workers_that_live_change_nothing(tmp_path) -> None:
    for i in range(3):
        (tmp_path / f"test_{i}.py").write_text(PASSES)
    done, _ = run(tmp_path)
    assert done.returncode == 0
    assert "12 passed" in done.stdout
    assert "died" not in done.stdout
