"""An exported bundle is opened, acted with, served and timed where torch cannot be imported, with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from athena_vla.bundle import Bundle
from athena_vla.export import ExportConfig, export
from athena_vla.policy import Policy
from small_bundles import small_model, write_model

CHILD = Path(__file__).with_name("without_torch.py")
ROOT = CHILD.parents[1]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, toy: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("without")
    for name, tokens in (("chunk", False), ("tokens", True)):
        model = small_model(toy, tokens=tokens)
        with torch.no_grad():  # a fresh decoder hardly mixes: its tokens would be the same for every frame
            for key, weight in model.named_parameters():
                if tokens and key.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(30)
        write_model(folder / f"{name}-base", toy, model)
        export(ExportConfig(input=folder / f"{name}-base", out=folder / name, compare=False))
    return {name: folder / name for name in ("chunk", "tokens")}


def child(python: str, path: Path, out: Path, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [python, str(CHILD), str(path), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(record: dict[str, Any], out: Path, path: Path) -> None:
    """Bit for bit what this process, which has torch, answers with the same engine."""
    assert record["imported"] == []
    assert record["taken"]["engine"] == "onnxruntime"
    here = Policy.load(path, "onnxruntime", device="cpu").chunks(Bundle.open(path).golden.observations)
    with np.load(out) as answers:
        np.testing.assert_array_equal(answers["chunks"], here)
        np.testing.assert_array_equal(answers["served"], here)
    assert record["replay_max_rad"] < 1e-4, "the golden chunks are torch's"
    assert record["bench_action_ms"] > 0


@pytest.mark.parametrize("family", ["chunk", "tokens"])
def test_it_acts_serves_and_benches_without_torch(exported: dict[str, Path], tmp_path: Path, family: str) -> None:
    out = tmp_path / "answers.npz"
    source = str(ROOT / "src")
    check(child(sys.executable, exported[family], out, PYTHONPATH=source), out, exported[family])


@pytest.mark.slow
def test_a_wheel_without_torch_serves(exported: dict[str, Path], tmp_path: Path) -> None:
    """The wheel with the extras `runtime` and `serve` in an environment of its own: nothing in it brings torch."""
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)]
    made = subprocess.run(build, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no wheel can be built here: {made.stderr.splitlines()[-1:]}")
    place = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    wheel = next(wheels.glob("*.whl"))
    pip, limits = str(place / "bin" / "pip"), str(ROOT / "constraints.txt")
    install = [pip, "install", "-q", "-c", limits, f"{wheel}[runtime,serve]"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[-1:]}")
    python = str(place / "bin" / "python")
    absent = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert absent.returncode == 1, "the extra brings torch"
    out = tmp_path / "answers.npz"
    check(child(python, exported["chunk"], out, PYTHONPATH=""), out, exported["chunk"])
