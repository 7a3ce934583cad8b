"""Triton's kernels on quantised weights: their numbers in the interpreter, and machine code for every card we name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux on x86-64 and arm64 alone")
PRODUCTS, LAYERS = "triton_kernels.py", "triton_layers.py"


def run(script: str, mode: str) -> dict[str, Any]:
    """In a process of its own: whether kernels are interpreted is settled when Triton is imported."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), mode],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_products_are_those_of_the_dequantised_weight() -> None:
    found = run(PRODUCTS, "numbers")
    assert len(found["products"]) == 28
    assert max(found["products"].values()) < 2e-6, found["products"]
    assert all(found["unpacked"].values()), "bit by bit what de-quantising gives"


def test_every_kernel_compiles_for_every_card() -> None:
    """Without a card and without a driver: what a card would be given is machine code already."""
    found = run(PRODUCTS, "compile")
    assert len(found) == 5 * 2 * 3
    assert min(found.values()) > 5_000
    assert max(found.values()) < 400_000


def test_layers_on_a_card_are_the_layers_as_written() -> None:
    """Whole sequences and single rows behind a cache, float weights and codes; joined weights stay what they were."""
    found = run(LAYERS, "numbers")
    assert len(found) == 3 * (1 + 2 + 2) + 1
    assert {n for n, v in found.items() if v is True} == {n for n in found if n.endswith("weights")}
    assert max(v for v in found.values() if v is not True) < 1e-5, found


def test_kernels_between_products_compile_for_every_card() -> None:
    found = run(LAYERS, "compile")
    assert len(found) == 5 * 5
    assert min(found.values()) > 5_000
