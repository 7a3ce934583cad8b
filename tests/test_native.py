"""Code that is compiled on this machine runs in child processes, so that its faults are failures and end no worker."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SWITCHED_ON = {"ATHENA_GEMV_KERNEL": "1"}
FILES = sorted(HERE.glob("native_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_in_a_process_of_its_own(file: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | SWITCHED_ON
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    ended = f"ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"status {done.returncode}"
    assert done.returncode == 0, f"{ended}\n{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout, done.stdout
