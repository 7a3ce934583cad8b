"""Opening a bundle of several weight files: nothing held but what is being read; and the stages that take a device."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from athena_vla.bench import BenchConfig
from athena_vla.bundle import Bundle
from athena_vla.evaluate.commands import CompareConfig, EvaluateConfig
from athena_vla.export import ExportConfig, GateConfig
from athena_vla.finetune import FinetuneConfig
from athena_vla.merge import MergeConfig
from athena_vla.models.weights.store import StoreWriter
from athena_vla.policy import Policy
from athena_vla.quantize import QuantizeConfig
from athena_vla.serve import ServeBundleConfig
from small_bundles import small_model, write_model

STATUS = Path("/proc/self/status")
SHARD = 16_000_000  # [bytes]
CHILD = """
import sys, threading, time
from pathlib import Path
from athena_vla.bundle import Bundle
import athena_vla.models.openvla_chunk, athena_vla.models.weights.opening
def anonymous():
    return next(int(x.split()[1]) * 1024 for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
bundle = Bundle.open(sys.argv[1])
bundle.meta_model()  # what torch and the family load for themselves
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
model = bundle.model("cpu")
done = True
thread.join()
print(max(peak, anonymous()) - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def sharded(path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of some 70 MB in files of 16 MB."""
    import small_bundles

    monkeypatch.setattr(small_bundles, "BODY", small_bundles.BODY | {"width": 512, "mlp_width": 1536, "layers": 5})
    monkeypatch.setattr(small_bundles, "StoreWriter", lambda folder: StoreWriter(folder, SHARD))
    return write_model(path, toy, small_model(toy))


@pytest.mark.skipif(not STATUS.is_file(), reason="needs Linux's account of anonymous memory")
def test_opening_holds_no_more_than_a_file(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = sharded(tmp_path / "b", toy, monkeypatch)
    sizes = [f.stat().st_size for f in (bundle.path / "weights").glob("*.safetensors")]
    assert len(sizes) > 2
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    anonymous, weights = map(int, done.stdout.split())
    assert weights > 2 * max(sizes), "a copy of the weights would show"
    assert anonymous <= 1.2 * max(sizes)


def test_weights_of_several_files_are_those_of_the_files(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = sharded(tmp_path / "b", toy, monkeypatch)
    store, state = bundle.store(), bundle.model().state_dict()
    assert set(state) == set(store.names)
    assert all(torch.equal(state[n], store.stored(n)) for n in store.names)
    golden = bundle.golden
    assert abs(Policy.of(bundle, "torch").chunks(golden.observations) - golden.chunks).max() < 1e-5


def test_every_stage_that_runs_a_model_takes_a_device() -> None:
    stages = (
        ServeBundleConfig,
        BenchConfig,
        EvaluateConfig,
        CompareConfig,
        GateConfig,
        MergeConfig,
        QuantizeConfig,
        ExportConfig,
        FinetuneConfig,
    )
    for stage in stages:
        field = stage.__dataclass_fields__.get("device")
        assert field is not None, stage.__name__
        assert field.default == "auto", stage.__name__
    for function in (Policy.load, Policy.of):
        assert inspect.signature(function).parameters["device"].default == "auto"
