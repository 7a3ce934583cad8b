"""Triton's kernels on quantised weights: their numbers in the interpreter, and machine code for every card we name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 and arm64 alone")
SCRIPT = Path(__file__).with_name("triton_kernels.py")


def run(mode: str) -> dict[str, Any]:
    """In a process of its own: whether kernels are interpreted is settled when Triton is imported."""
    done = subprocess.run([sys.executable, str(SCRIPT), mode], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_products_are_those_of_the_dequantised_weight() -> None:
    found = run("numbers")
    assert len(found["products"]) == 28
    assert max(found["products"].values()) < 2e-6, found["products"]
    assert all(found["unpacked"].values()), "bit by bit what de-quantising gives"


def test_every_kernel_compiles_for_every_card() -> None:
    """Without a card and without a driver: what a card would be given is machine code already."""
    found = run("compile")
    assert len(found) == 5 * 2 * 3
    assert min(found.values()) > 5_000
    assert max(found.values()) < 400_000
