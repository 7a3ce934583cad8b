"""`make bench` runs every script without arguments: what cannot be measured here says so and is no failure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NEEDS = {
    "bench_gpu_deploy": "CUDA",
    "bench_gpu_models": "CUDA",
    "bench_gpu_train": "CUDA",
    "bench_load_7b": "checkpoint",
    "bench_train_7b": "checkpoint",
    "bench_7b_cpu": "--checkpoint",
}


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_what_cannot_be_measured_here_is_skipped_with_a_sentence(name: str) -> None:
    if NEEDS[name] == "CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device: it would be measured")
    done = run(name)
    assert done.returncode == 0, done.stderr
    assert "not run" in done.stdout
    assert NEEDS[name] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("bench_gpu_train", ["--steps", "1"]), ("bench_gpu_models", ["--repeats", "2"])]
)
def test_gpu_scripts_run_whole_at_small_sizes(tmp_path, name, words) -> None:
    """Every line but those that need CUDA, so that the first hour on a GPU is not spent on slips."""
    done = run(name, "--tiny", "--out", str(tmp_path / "out.json"), *words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert "not a measurement" in report["what"]
    rows = report["rows"] if "rows" in report else report["families"]
    assert len(rows) >= 3
    seconds = [r["seconds_per_step"] if "rows" in report else r["decode_eager"]["median_s"] for r in rows.values()]
    assert all(s > 0 for s in seconds)


@pytest.mark.slow
def test_the_gpu_script_runs_through_on_a_small_model() -> None:
    """What needs a card is tried on the CPU first: every part runs, and nothing is written or called a measurement."""
    file = BENCHMARKS / "gpu_deploy.json"
    before = file.read_bytes() if file.is_file() else None
    done = run("bench_gpu_deploy", "--dry")
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["kind"] == "dry run, nothing measured"
    assert set(report["chunk"]["stages_ms"]) == {"vision", "language", "head"}
    assert report["decode"]["int4"]["bytes"] < report["decode"]["bf16"]["bytes"]
    assert report["transformers"]["generate_ms"]["n"] == 2
    assert (file.read_bytes() if file.is_file() else None) == before


def test_bytes_of_a_token_at_full_size(monkeypatch) -> None:
    """Int4 weights of the decoder in groups of 128: 3.34 GB; the cache in 16 bits: half a megabyte a row."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import seven_b_engines
    from athena_vla.models import sizes

    class Bundle:
        spec = sizes.full_size("openvla", action_dim=23, state_dim=23)

    assert seven_b_engines.bytes_per_token(Bundle) == pytest.approx(3.34e9 + 524_288 * 298 + 2e6, rel=2e-3)
