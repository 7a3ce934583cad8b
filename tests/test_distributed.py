"""Several processes: two gloo processes on this CPU must do what one process does, and only one of them writes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import BuildConfig, build
from athena_vla.errors import TrainingError
from athena_vla.finetune import FinetuneConfig, finetune
from athena_vla.finetune.log import read
from recordings import clean, write
from small_bundles import write_base

pytestmark = pytest.mark.slow  # each starts two processes that import torch


@pytest.fixture(scope="module")
def base_config(tmp_path_factory, toy) -> FinetuneConfig:
    root = tmp_path_factory.mktemp("world")
    write(root / "rec", *(clean(i, length=12) for i in range(4)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=1, workers=1, validation=0.25))
    write_base(root / "base", toy)
    return FinetuneConfig(
        model=str(root / "base"),
        data=root / "set",
        out=root / "unused",
        rank=4,
        learning_rate=1e-2,
        warmup_steps=0,
        batch=4,
        accumulation=2,
        max_steps=4,
        evaluate_every=4,
        precision="fp32",
        augment=False,
        log_every=1,
        tensorboard=False,
        progress=False,
        select="last",
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "weights" / "adapter.safetensors")


@pytest.mark.parametrize(
    ("sharding", "quantization", "ema"),
    [("ddp", "none", 0.0), ("ddp", "none", 0.9), ("fsdp2", "none", 0.0), ("fsdp2", "none", 0.9), ("fsdp2", "nf4", 0.0)],
)
def test_two_processes_equal_one(base_config, tmp_path, sharding, quantization, ema):
    """Horizon 1: every row is valid, so the mean over processes is the mean over samples."""
    one = dataclasses.replace(base_config, out=tmp_path / "one", quantization=quantization, ema=ema)
    two = dataclasses.replace(one, out=tmp_path / "two", batch=2, processes=2, sharding=sharding)
    finetune(one)
    result = finetune(two)
    a, b = weights(one.out), weights(two.out)
    assert a.keys() == b.keys()
    moved = max(float((a[k] - v).abs().max()) for k, v in b.items())
    # Adam divides small gradients by their size: rounding of another order of sums shows at this learning rate.
    assert moved < 2e-4
    fresh = weights(finetune(dataclasses.replace(one, out=tmp_path / "short", max_steps=1)).bundle)
    assert max(float((a[k] - v).abs().max()) for k, v in fresh.items()) > 1e-2
    assert result.steps == 4
    assert Bundle.open(two.out).manifest.config["processes"] == 2
    lines = [x["step"] for x in read(two.run_folder / "log.jsonl") if "loss" in x]
    assert lines == [1, 2, 3, 4]  # one process wrote
    assert json.loads((two.run_folder / "result.json").read_text())["trainable"] == result.trainable


def test_torchrun_on_the_command_line_is_recognised(base_config, tmp_path):
    one = dataclasses.replace(base_config, out=tmp_path / "one", max_steps=2, evaluate_every=2)
    finetune(one)
    words = [
        *("--model", one.model, "--data", str(one.data), "--out", str(tmp_path / "two"), "--rank", "4"),
        *("--learning-rate", "1e-2", "--warmup-steps", "0", "--batch", "2", "--accumulation", "2", "--max-steps", "2"),
        *("--evaluate-every", "2", "--precision", "fp32", "--no-augment", "--select", "last", "--no-tensorboard"),
        *("--device", "cpu", "--no-progress"),
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "athena_vla.cli"]
    done = subprocess.run(
        [sys.executable, *torchrun, "train", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = weights(one.out), weights(tmp_path / "two")
    assert max(float((a[k] - v).abs().max()) for k, v in b.items()) < 2e-4
    assert done.stderr.count("trainable ") == 1, "one process speaks"


def test_an_error_in_a_process_is_its_own_sentence(base_config, tmp_path):
    bad = dataclasses.replace(base_config, out=tmp_path / "bad", processes=2, targets=("c_attn",))
    with pytest.raises(TrainingError, match="There is no LoRA target 'c_attn'"):
        finetune(bad)
    assert not bad.out.exists()
