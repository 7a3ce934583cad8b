"""Step times from a few layers: exact where a step is a straight line in its layers, and said where they come from."""

import dataclasses

import pytest
import torch

from athena_vla.errors import UnknownName
from athena_vla.finetune.finetune_config import FinetuneConfig
from athena_vla.models import lora, openvla_chunk
from athena_vla.models.lora import LoraSettings
from athena_vla.plan import DEVICES, PlanConfig, plan, probe
from athena_vla.plan.probe import Probe, StepTime, _Shallow
from athena_vla.plan.training import TrainingMemory
from small_bundles import write_base

CPU = torch.device("cpu")


def model(**sizes):
    with torch.device("meta"):
        spec = openvla_chunk.tiny_spec(action_dim=3, state_dim=3, image_size=32, **sizes)
        return openvla_chunk.OpenVLAChunk.from_spec(spec, {})


class Linear:
    """A model whose step takes exactly so long per layer and block."""

    def __init__(self, layers: int, first: int, second: int) -> None:
        self.per_sample = 0.5 + 0.02 * layers + 0.003 * first + 0.004 * second
        self.update = 0.01 + 0.001 * layers
        self.count = 0

    def prepare(self, count: int, prompt: int, *, cached: bool, checkpointing: bool) -> None:
        self.count, self.factor = count, 4 / 3 if checkpointing else 1.0

    def step(self) -> StepTime:
        return StepTime(self.per_sample * self.count * self.factor, self.update)

    def release(self) -> None:
        self.count = 0


@pytest.fixture
def linear(monkeypatch) -> None:
    monkeypatch.setattr(probe, "LONG_ENOUGH", 0.0)
    monkeypatch.setattr(probe, "_Shallow", lambda like, layers, blocks, *rest, wide: Linear(layers, *blocks))


def test_what_a_layer_adds_is_carried_on_to_the_depth(linear) -> None:
    deep = model(layers=9, tower_blocks=5)
    found = Probe(deep, FinetuneConfig(), CPU, cached=False, wide=True).time(4, checkpointing=False)
    assert found.forward_backward == pytest.approx(4 * (0.5 + 0.02 * 9 + 0.003 * 5 + 0.004 * 5))
    assert found.update == pytest.approx(0.01 + 0.001 * 9)
    assert found.step(16) == pytest.approx(16 * found.forward_backward + found.update), "one update per step"
    cached = Probe(deep, FinetuneConfig(), CPU, cached=True, wide=True)
    cached.time(4, checkpointing=False)
    assert [part for part, _, _ in cached._models] == ["", "layers"], "towers do not run where features are cached"
    shallow = Probe(model(layers=2, tower_blocks=1), FinetuneConfig(), CPU, cached=False, wide=True)
    assert shallow.time(1, checkpointing=False).forward_backward == pytest.approx(0.5 + 0.02 * 2 + 0.003 + 0.004)


def row(batch: int, *, fits: bool = True, checkpointing: bool = False) -> TrainingMemory:
    parts = dict.fromkeys(("weights_gb", "states_gb", "activations_gb", "overhead_gb"), 0.0)
    limit = 1.0 if fits else -1.0
    return TrainingMemory(batch, 16 // batch, checkpointing, **parts, trainable=1, limit_gb=limit, step_seconds=(1, 2))


def test_what_the_budget_does_not_allow_is_scaled_and_what_does_not_fit_is_not_run(linear) -> None:
    rows = [row(2), row(16, fits=False), row(8), row(1), row(4, checkpointing=True)]
    timed = Probe(model(layers=3), FinetuneConfig(), CPU, cached=True, wide=True, budget=0.0).timed(rows)
    assert [r.time_from for r in timed] == ["timed", "roofline", "timed at 2", "timed", "timed"]
    assert timed[1].step_seconds == (1, 2)
    assert timed[2].step_seconds == timed[0].step_seconds, "as many samples per step, at the same time per sample"
    roomy = Probe(model(layers=3), FinetuneConfig(), CPU, cached=True, wide=True, budget=1e9).timed(rows)
    assert roomy[2].time_from == "timed"
    assert "timed at 2" in timed[2].cells()


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 4},
        {"method": "full", "precision": "fp32"},
        {"rank": 2, "dora": True, "dropout": 0.1},
        {"rank": 2, "vision": True},
    ],
)
def test_real_layers_are_trained_with_everything_that_trains(changes) -> None:
    deep = model(layers=3, tower_blocks=2)
    config = FinetuneConfig(**changes)
    timing = Probe(deep, config, CPU, cached="vision" not in changes, wide=True)
    found = timing.time(2, checkpointing=True)
    assert 0 < found.update < 10
    assert 0 < found.forward_backward < 10
    assert timing.spent > found.forward_backward
    whole = _Shallow(deep, 3, [2, 2], config, CPU, wide=True)
    trains = lora.attach(openvla_chunk.OpenVLAChunk.from_spec(deep.spec, {}), LoraSettings(**config.lora())).trainable
    assert sum(p.numel() for p in whole.parameters.values()) == trains


def test_plan_for_this_machine_says_that_the_time_was_taken_here(tmp_path, toy, monkeypatch) -> None:
    monkeypatch.setattr(probe, "LONG_ENOUGH", 0.0)
    base = write_base(tmp_path / "b", toy)
    config = PlanConfig(model=str(base.path), robot="toy", gpu="here", preset="demo", change="batch=4,rank=2")
    training = plan(config).training
    assert training is not None
    assert training.asked.time_from == "timed"
    assert all(r.time_from.startswith("timed") for r in training.rows)
    assert any(r.batch == 4 and not r.checkpointing for r in training.rows), "what was asked for stands in the table"
    assert "trained on this machine just now" in str(training)
    arithmetic = plan(dataclasses.replace(config, probe=False)).training
    assert arithmetic is not None
    assert {r.time_from for r in arithmetic.rows} == {"roofline"}
    assert "trained on this machine" not in str(arithmetic)
    with pytest.raises(UnknownName, match="here"):
        plan(PlanConfig(gpu="there"))


def test_a_card_of_the_table_is_recognised_by_its_drivers_name(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for driver, name in (
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", ""),
        ("NVIDIA GeForce RTX 4080 SUPER", ""),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", ""),
        ("NVIDIA RTX 6000 Ada Generation", ""),
        ("NVIDIA A100-SXM4-40GB", ""),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda driver=driver: driver)
        assert [n for n in DEVICES if probe.is_here(n)] == [name][: bool(name)]
