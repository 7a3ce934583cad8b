"""Predictions against published measurements, within their intervals; counts against closed formulas; memory."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from athena_vla.errors import UnknownName
from athena_vla.finetune import PRESETS
from athena_vla.models import lora, sizes
from athena_vla.models.lora import LoraSettings
from athena_vla.models.released import released_weights as checkpoint
from athena_vla.plan import DEVICES, Plan, PlanConfig, plan
from athena_vla.plan import cost as costs
from athena_vla.plan.activations import StepCost
from athena_vla.plan.devices import measured_cpu
from athena_vla.plan.live_blocks import Live
from athena_vla.plan.predict import pass_seconds, predict, step_seconds
from athena_vla.plan.training import TrainingMemory, TrainingPlan, trainable_parameters, training_memory, training_plan
from small_bundles import small_model, write_base

NX, AGX = DEVICES["jetson-orin-nx-16gb"], DEVICES["jetson-agx-orin-64gb"]
NANO, THOR = DEVICES["jetson-orin-nano-8gb"], DEVICES["jetson-thor"]

MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "7b_cpu.json"

# Published single-token decoding: device, bytes per token [GB], tokens/s. 4-bit weights, groups of 128, fp16 output.
DECODING = [
    (NX, 1.35, 60.4, "Edge-LLM v0.9, Qwen3-1.7B"),
    (NX, 2.65, 31.6, "Edge-LLM v0.9, Qwen3-4B"),
    (NX, 4.83, 19.0, "Edge-LLM v0.9, Qwen3-8B"),
    (AGX, 1.35, 98.6, "Edge-LLM v0.9, Qwen3-1.7B"),
    (AGX, 2.65, 53.1, "Edge-LLM v0.9, Qwen3-4B"),
    (AGX, 4.83, 32.5, "Edge-LLM v0.9, Qwen3-8B"),
    (AGX, 3.76, 42.9, "MLC, Llama-2-7B (jetson-containers#412)"),
    (AGX, 3.76, 47.0, "MLC, Llama-2-7B (jetson-containers#412)"),
    (NANO, 4.83, 19.1, "NVIDIA blog, Llama-3.1-8B on Orin Nano Super"),
    (THOR, 4.83, 49.3, "Edge-LLM v0.9, Qwen3-8B"),
]
# One pass over 292 tokens of Qwen3-VL-8B's decoder: 2 * 6.95 G * 292 = 4.06 TFLOP.
PREFILL = [(NX, 0.462), (AGX, 0.225), (THOR, 0.156)]


@pytest.mark.parametrize(("device", "gigabytes", "rate", "source"), DECODING)
def test_published_decoding_lies_in_the_interval(device, gigabytes, rate, source) -> None:
    fast, slow = step_seconds(gigabytes * 1e9, device)
    assert 1 / slow <= rate <= 1 / fast, f"{source}: {rate} tok/s, predicted {1 / slow:.1f} to {1 / fast:.1f}"


@pytest.mark.parametrize(("device", "seconds"), PREFILL)
def test_published_prefill_lies_in_the_interval(device, seconds) -> None:
    fast, slow = pass_seconds(2 * 6.95e9 * 292, device)
    assert fast <= seconds <= slow, f"{seconds} s, predicted {fast:.3f} to {slow:.3f}"


@pytest.fixture(scope="module")
def released() -> costs.Cost:
    """One action of openvla-7b: seven tokens."""
    return costs.count(sizes.weightless("openvla", sizes.full_size("openvla", action_dim=7, state_dim=0)))


@pytest.mark.parametrize("part", ["chunk:packed", "chunk:onnxruntime", "tokens:packed", "tokens:onnxruntime"])
def test_our_own_measurements_lie_in_the_interval(part) -> None:
    """The 7B policies on two CPU cores: every stage of every engine we measured, from two probes of the machine."""
    record = json.loads(MEASURED.read_text())
    entry, probe = record["parts"][part], record["parts"]["bandwidth"]
    device = measured_cpu(probe["best_gbs"], probe["bf16_tflops"], record["device"]["memory_gb"])
    chunk = part.startswith("chunk")
    family, horizon = ("openvla_chunk", 16) if chunk else ("openvla", 1)
    spec = sizes.full_size(family, action_dim=23, state_dim=23, horizon=horizon, cameras=1)
    predicted = {s.graph: s for s in predict(costs.count(sizes.weightless(family, spec)), device, "int4").stages}
    for name in ("language",) if chunk else ("prefill", "step"):
        fast, slow = (seconds / predicted[name].calls for seconds in predicted[name].seconds)
        measured = entry["stages"][name]["median_s"]
        assert fast <= measured <= slow, f"{part} {name}: {measured:.2f} s, predicted {fast:.2f} to {slow:.2f}"


def test_published_whole_action_of_the_released_model_on_agx_orin(released) -> None:
    """NVIDIA's container: 7 tokens of openvla-7b at 4 bits in 336 ms on AGX Orin."""
    assert not predict(released, NX, "fp16").fits, "15 GB of weights do not fit beside the system into 15.3 GB"
    fast, slow = predict(released, AGX, "int4").action_seconds
    assert fast <= 0.336 * 1.1, "the published figure has no interval; ten percent is allowed"
    assert slow >= 0.336


def test_full_size_counts_are_the_known_ones(released) -> None:
    calls = {c.graph: c for c in released.calls}
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert linear == 6_476_005_376
    assert calls["step"].packed_weights == linear + 256 * 4096, "of the output layer the action rows alone"
    assert calls["vision"].flops / 1e12 == pytest.approx(0.405, rel=0.02)
    assert sum(c.times for c in released.calls if c.graph == "step") == 6, "the first token comes from the prefill"
    assert released.parameters == pytest.approx(7.5e9, rel=0.02)


def test_flops_of_a_small_model_by_hand(toy) -> None:
    with torch.device("meta"):
        model = small_model(toy)
    cost = costs.count(model)
    language = next(c for c in cost.calls if c.graph == "language")
    body = model.body_spec
    prompt = model.prompter.answer_ids("pick up the red cube and put it into the box")
    rows = body.patches * model.spec.cameras + len(prompt) + 1 + model.spec.horizon
    text, tail = body.text, model.spec.horizon
    per_row = 2 * (4 * text.width**2 + 3 * text.width * text.mlp_width)
    attention = 4 * rows * rows * text.width
    # The last layer computes keys and values of all rows, the rest for the query rows only.
    whole = (text.layers - 1) * (rows * per_row + attention)
    last = 2 * rows * 2 * text.width**2 + tail * (per_row - 4 * text.width**2) + 4 * tail * rows * text.width
    assert language.flops == pytest.approx(whole + last, rel=0.05)


@pytest.fixture(scope="module")
def one_pass() -> Plan:
    return plan(PlanConfig())


def test_seven_billion_on_the_orin_nx_is_predicted_and_labelled(one_pass) -> None:
    result = one_pass
    assert result.kind == result.prediction.kind == "predicted"
    assert str(result.prediction).startswith("PREDICTED, not measured")
    fast, slow = result.prediction.action_seconds
    assert 0.40 < fast < 0.50 < slow < 0.60
    assert result.prediction.fits
    assert result.prediction.advice
    assert result.to_dict()["prediction"]["stages"][1]["graph"] == "language"


def test_autoregressive_actions_are_bound_by_bandwidth(released, one_pass) -> None:
    slow = predict(released, NX, "int4")
    assert slow.tokens_per_second is not None
    low, high = slow.tokens_per_second
    assert 20 < low < high < 30
    assert next(s for s in slow.stages if s.graph == "step").bound == "bandwidth"
    assert one_pass.prediction.actions_per_second[0] > 10 * slow.actions_per_second[1]


def test_a_bundle_is_planned_by_its_own_sizes(tmp_path, toy) -> None:
    base = write_base(tmp_path / "b", toy)
    result = plan(PlanConfig(bundle=base.path))
    assert result.parameters == sum(p.numel() for p in base.model().parameters())


@pytest.mark.parametrize("settings", [LoraSettings(rank=4), LoraSettings(rank=8, dora=True, vision=True)])
def test_trainable_parameters_are_those_that_attach_trains(toy, settings) -> None:
    model = small_model(toy)
    predicted = trainable_parameters(model, settings)
    assert predicted == lora.attach(model, settings).trainable


@pytest.fixture(scope="module")
def seven_billion():
    return sizes.weightless("openvla_chunk", sizes.full_size("openvla_chunk", action_dim=23, state_dim=23))


@pytest.fixture(scope="module")
def traced(seven_billion) -> StepCost:
    """What activations are does not depend on quantisation, optimiser or shards, and little on the rank."""
    return StepCost(seven_billion, LoraSettings(rank=32))


def test_training_memory_orders(seven_billion, traced) -> None:
    def memory(settings: LoraSettings, **change) -> TrainingMemory:
        return training_memory(seven_billion, settings, DEVICES["rtx4090"], traced, **change)

    plain = memory(LoraSettings(rank=32))
    small = memory(LoraSettings(rank=32, quantization="nf4"))
    whole = memory(LoraSettings(method="full"))
    assert plain.fits
    assert small.total_gb < plain.total_gb - 8, "4-bit weights save about ten gigabytes"
    assert not whole.fits
    assert memory(LoraSettings(method="full"), shards=4).states_gb == pytest.approx(whole.states_gb / 4)
    assert memory(LoraSettings(), checkpointing=False).total_gb > plain.total_gb
    thrifty = memory(LoraSettings(rank=128), optimizer="paged_adamw8bit")
    assert thrifty.states_gb < memory(LoraSettings(rank=128)).states_gb * 0.7


def test_the_fastest_choice_that_fits_is_taken_and_the_samples_stay_the_same(toy, toy_cost) -> None:
    model, settings = small_model(toy), LoraSettings(rank=4)

    def planned(memory_gb: float, batch: int, accumulation: int, checkpointing: bool) -> TrainingPlan:
        card = dataclasses.replace(DEVICES["rtx4090"], memory_gb=memory_gb)
        steps = {"batch": batch, "accumulation": accumulation, "checkpointing": checkpointing}
        return training_plan(model, settings, card, **steps, cost=toy_cost)

    roomy = planned(1e9, 4, 8, True)
    assert roomy.chosen is not None
    assert (roomy.chosen.batch, roomy.chosen.accumulation, roomy.chosen.checkpointing) == (32, 1, False)
    assert all(r.batch * r.accumulation == 32 for r in roomy.rows)
    tight = planned(min(r.total_gb for r in roomy.rows) * 1.0001, 32, 1, False)
    assert tight.chosen is not None
    assert tight.chosen.batch == 1
    assert tight.remedy.startswith("--batch 1 --accumulation 32")
    none = planned(0.5, 1, 1, True)
    assert none.chosen is None
    assert "--quantization nf4" in none.remedy


@pytest.mark.slow
def test_which_presets_do_not_fit_24_gb_and_what_to_change() -> None:
    def planned(preset: str, change: str = "") -> TrainingPlan:
        found = plan(
            PlanConfig(model="openvla/openvla-7b", family="openvla", gpu="rtx4090", preset=preset, change=change)
        )
        assert found.training is not None
        return found.training

    fits = {name: planned(name) for name in ("humanoid_default", "humanoid_efficient", "rtx4090")}
    assert all(p.asked.fits and p.chosen is not None and not p.advice for p in fits.values())
    large = planned("humanoid_high_performance")
    assert not large.asked.fits
    assert large.chosen is None
    assert "nothing fits" in str(large)
    assert any("--quantization nf4" in a for a in large.advice)
    assert any("--sharding fsdp2" in a for a in large.advice)
    assert planned("humanoid_high_performance", "quantization=nf4").asked.fits
    reference = planned("openvla_reference")
    assert not reference.asked.fits, "batch 16 as published is for an 80 GB card"
    assert reference.chosen is not None
    assert reference.chosen.batch * reference.chosen.accumulation == 16
    assert "--batch" in reference.remedy


@pytest.fixture(scope="module")
def toy_cost(toy) -> StepCost:
    return StepCost(small_model(toy), LoraSettings(rank=4))


def test_a_deep_model_is_the_straight_line_through_two_shallow_ones(toy_cost) -> None:
    toy_cost._models[7] = toy_cost._prepared(7)
    for checkpointing in (False, True):
        whole = toy_cost._trace(7, 16, checkpointing)
        assert toy_cost.peak(7, 16, checkpointing=checkpointing) == pytest.approx(whole.peak, rel=0.03)


def test_recomputing_trades_memory_for_arithmetic(toy, toy_cost) -> None:
    model = small_model(toy)
    peak = {(n, c): toy_cost.peak(n, 16, checkpointing=c) for n in (8, 16) for c in (False, True)}
    assert peak[16, False] > 1.8 * peak[8, False]
    assert peak[16, True] < 0.5 * peak[16, False]
    # Frozen weights cost two products forward and one backward: 4 per weight and row, and the adapters 6. What is
    # computed again is the forward pass: 2 per weight and row.
    text = model.body_spec.text
    rows = model.body_spec.patches * model.spec.cameras + 32 + 1 + model.spec.horizon
    weights = 4 * text.width**2 + 3 * text.width * text.mlp_width
    layer = {c: toy_cost.flops(16, 1, checkpointing=c) - toy_cost.flops(15, 1, checkpointing=c) for c in (False, True)}
    assert layer[False] == pytest.approx(4 * weights * rows, rel=0.35)
    assert layer[True] - layer[False] == pytest.approx(2 * weights * rows, rel=0.35)
    assert all(p.requires_grad for p in toy_cost.model.parameters()), "the model itself is not touched"


def test_live_blocks_are_counted_until_they_are_freed_and_views_cost_nothing() -> None:
    layer = torch.nn.Linear(100, 100, bias=False)
    x = torch.zeros(50, 100)
    with Live(layer, lambda tensor: True) as live:
        a = layer(x)  # 20,000 bytes
        b = a.relu()  # 20,000 more
        del a
        with torch.no_grad():
            c = b.view(100, 50)[:10] + 1  # 2,000 more
        assert live.now == 22_000
        del b, c
    assert (live.now, live.peak) == (0, 40_000)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_released_checkpoint_is_planned_from_its_configuration_alone(released_layout, monkeypatch, preset) -> None:
    def loaded(*arguments, **more):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(checkpoint, "load", loaded)
    found = plan(PlanConfig(model=str(released_layout), gpu="rtx4090", preset=preset, family="openvla", horizon=1))
    assert found.training is not None
    assert found.training.asked.fits, "the tiny one"
    assert found.parameters < 10e6, "its own sizes, not those of openvla-7b"
    assert "as asked (" in str(found)
    assert "take: --batch" in str(found)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="no device 'jetson-tx2'"):
        plan(PlanConfig(device="jetson-tx2"))
    with pytest.raises(UnknownName, match="no GPU 'rtx9999'"):
        plan(PlanConfig(gpu="rtx9999"))
    with pytest.raises(UnknownName, match="no preset 'best'"):
        plan(PlanConfig(gpu="rtx4090", preset="best"))
    with pytest.raises(UnknownName, match="no field of fine-tuning 'size'"):
        plan(PlanConfig(gpu="rtx4090", change="size=3"))
    with pytest.raises(UnknownName, match="no precision 'int3'"):
        plan(PlanConfig(precision="int3"))
