"""The running average: the numbers of its definition, in the bundle, in evaluations and through an interruption."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from athena_vla.dataset.dataset import BuildConfig, Dataset, build
from athena_vla.errors import AthenaError
from athena_vla.finetune import FinetuneConfig, base, finetune
from athena_vla.finetune import checkpoint as checkpoints
from athena_vla.finetune.checkpoint_config import CheckpointConfig
from athena_vla.finetune.written import bundle_of_checkpoint
from athena_vla.models import lora
from recordings import clean, write
from small_bundles import small_run, write_base

DECAY = 0.8


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy) -> Path:
    root = tmp_path_factory.mktemp("average")
    write(root / "rec", *(clean(i, length=14) for i in range(6)))
    build(BuildConfig(input=root / "rec", out=root / "set", robot="toy", horizon=4, workers=1, validation=0.2))
    write_base(root / "base", toy)
    return root


def config(world: Path, out: Path, **changes) -> FinetuneConfig:
    fields = {"model": str(world / "base"), "data": world / "set", "out": out, "learning_rate": 1e-2, "warmup_steps": 0}
    fields |= {"max_steps": 6, "evaluate_every": 3, "checkpoint_every": 1, "keep": 9, "select": "last", "device": "cpu"}
    return small_run(**{**fields, "ema": DECAY, "augment": False, **changes})


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "weights" / "adapter.safetensors")


def test_the_average_is_what_its_definition_says(world, tmp_path) -> None:
    cfg = config(world, tmp_path / "x")
    begin = base.start(cfg, Dataset.open(world / "set"))
    expected = {n: t.clone().double() for n, t in lora.state(begin.model).items()}
    finetune(cfg)
    folder = cfg.run_folder / "checkpoints"
    for done in range(1, 7):
        found, _ = checkpoints.load(folder, done)
        share = min(DECAY, (1 + done) / (10 + done))
        expected = {n: share * e + (1 - share) * found.weights[n].double() for n, e in expected.items()}
        for name, value in found.average.items():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    last, _ = checkpoints.load(folder, 6)
    assert any(not torch.equal(last.average[n], last.weights[n]) for n in last.weights)
    written = adapter(tmp_path / "x")
    assert all(torch.equal(written[n], last.average[n]) for n in written), "the bundle is the average"


def test_evaluations_measure_the_average_and_training_does_not_feel_them(world, tmp_path) -> None:
    often = finetune(config(world, tmp_path / "often", evaluate_every=1))
    seldom = finetune(config(world, tmp_path / "seldom", evaluate_every=6))
    answers = adapter(tmp_path / "often"), adapter(tmp_path / "seldom")
    assert all(torch.equal(answers[0][n], answers[1][n]) for n in answers[0])
    assert often.validation["loss"] == seldom.validation["loss"]
    plain = finetune(config(world, tmp_path / "plain", ema=0.0))
    assert plain.validation["loss"] != often.validation["loss"]
    weights = [checkpoints.load(tmp_path / f"{n}.run" / "checkpoints", 6)[0].weights for n in ("often", "plain")]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0]), "the same training, with and without"
    assert not list((tmp_path / "plain.run").rglob("average.safetensors"))


def test_an_interrupted_run_goes_on_bit_by_bit(world, tmp_path, interrupted_at_step) -> None:
    finetune(config(world, tmp_path / "whole"))
    interrupted_at_step(4, config(world, tmp_path / "cut"))
    finetune(config(world, tmp_path / "cut"))
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert all(torch.equal(whole[n], cut[n]) for n in whole)
    with pytest.raises(AthenaError, match="another run"):
        finetune(config(world, tmp_path / "cut", ema=0.9, max_steps=8))


def test_a_bundle_of_a_checkpoint_is_its_average(world, tmp_path) -> None:
    cfg = config(world, tmp_path / "x")
    finetune(cfg)
    bundle_of_checkpoint(CheckpointConfig(run=cfg.run_folder, step=3, out=tmp_path / "three"))
    found, _ = checkpoints.load(cfg.run_folder / "checkpoints", 3)
    written = adapter(tmp_path / "three")
    assert all(torch.equal(written[n], found.average[n]) for n in written)


def test_the_best_step_is_that_of_the_average(world, tmp_path) -> None:
    cfg = config(world, tmp_path / "x", select="best", evaluate_every=1)
    result = finetune(cfg)
    found, _ = checkpoints.load(cfg.run_folder / "checkpoints", result.chosen_step)
    written = adapter(tmp_path / "x")
    assert all(torch.equal(written[n], found.average[n]) for n in written)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(decay) -> None:
    with pytest.raises(AthenaError, match="--ema must"):
        FinetuneConfig(ema=decay)
