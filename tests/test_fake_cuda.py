"""The product on a card that computes nothing (tests/fake_cuda): devices and types fit, and nobody waits for the card.

One process runs every pass. What it cannot show is speed, numbers, NCCL and the kernels of other libraries.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).with_name("fake_cuda")
FAMILIES = ("openvla", "openvla_chunk", "openvla_oft")
# Kernels of a forward and a backward pass over two layers and both towers, in bf16: 3% above what was counted.
MOST_KERNELS = {
    "train openvla humanoid_default bf16": 2400,
    "train openvla dora bf16": 3125,
    "train openvla_chunk rtx4090 bf16": 2450,
    "train openvla_oft rtx4090 bf16": 2480,
    "train openvla_oft humanoid_default bf16": 2480,
}
ONE_WAIT = {"copied to the host": 1}  # for the actions


@pytest.fixture(scope="module")
def passes() -> dict[str, dict[str, Any]]:
    pytest.importorskip("torch")
    if shutil.which("g++") is None:
        pytest.skip("needs g++: the card is 40 lines of C++")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "passes.py")], capture_output=True, text=True, check=False, timeout=500
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"pass"')]
    assert lines, done.stderr[-2000:]
    return {line["pass"]: line for line in lines}


def test_every_pass_runs(passes) -> None:
    """No tensor on the wrong device, none of a type that its partner does not take."""
    failed = {n: f"{p['failed']}\n{p['at']}" for n, p in passes.items() if "failed" in p}
    assert not failed, "\n".join(f"{n}: {why}" for n, why in failed.items())
    assert len(passes) >= 25


def test_a_training_pass_never_waits_for_the_card(passes) -> None:
    training = {n: p for n, p in passes.items() if n.startswith("train")}
    assert len(training) >= 9
    assert {n: p["waits"] for n, p in training.items() if p["waits"]} == {}
    assert {n: p["without_gradient"] for n, p in training.items() if p["without_gradient"]} == {}


def test_a_training_pass_launches_no_more_kernels_than_it_did(passes) -> None:
    assert {n: passes[n]["kernels"] for n, most in MOST_KERNELS.items() if passes[n]["kernels"] > most} == {}


def test_the_planner_promises_no_less_memory_than_a_pass_takes(passes) -> None:
    """Within a tenth; that it plans more, for families with many rows, is said in docs/benchmarks.md."""
    for name, found in passes.items():
        if name.startswith("train") and name.endswith("bf16"):
            assert found["planned_gb"] > 0.9 * found["peak_gb"], name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["act {} base", "act {} lora", "packed {}"])
def test_acting_waits_once_for_its_actions(passes, family, kind) -> None:
    """Also where 23 tokens are decoded one after the other; and everything lies on the card, heads included."""
    found = passes[kind.format(family)]
    assert found["devices"] == ["cuda:0"]
    assert found["waits"] == ONE_WAIT


@pytest.mark.parametrize("method", ["gptq", "clip", "nearest"])
def test_codes_are_chosen_where_the_weights_are(passes, method) -> None:
    assert passes[f"quantise {method}"]["devices"] == ["cuda:0"]
    assert passes[f"quantise {method}"]["layers"] == 14


def test_an_optimiser_comes_back_where_its_step_reads_it(passes) -> None:
    """Counter, then moments: a fused step reads its counter on the card, a plain one on the host."""
    assert passes["resume"]["fused"] == ["cuda", "cuda", "cuda"]
    assert passes["resume"]["plain"] == ["cpu", "cuda", "cuda"]
