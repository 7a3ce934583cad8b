"""The planner's training memory and time: against what one H200 gave, against a published run, and NF4 and DoRA."""

import dataclasses
import json
from pathlib import Path

import pytest

from athena_vla.finetune import PRESETS
from athena_vla.models import sizes
from athena_vla.models.lora import LoraSettings
from athena_vla.plan import DEVICES, training_memory
from athena_vla.plan.activations import StepCost
from athena_vla.plan.step_time import StepWork, step_work
from small_bundles import small_model

RECORD = Path(__file__).resolve().parents[1] / "benchmarks" / "train_gpu.json"
DEFAULT = LoraSettings(**PRESETS["humanoid_default"].lora())
NF4 = dataclasses.replace(DEFAULT, quantization="nf4")
SMALL = LoraSettings(rank=32)
# Rows of benchmarks/train_gpu.json as benchmarks/bench_gpu_train.py makes them: family, settings, batch, recomputing.
H200 = {
    "qlora_default_batch1": ("openvla", NF4, 1, True),
    "qlora_default_batch4": ("openvla", NF4, 4, True),
    "lora_bf16_batch1": ("openvla", DEFAULT, 1, True),
    "lora_bf16_batch8": ("openvla_chunk", SMALL, 8, False),
}
# The same of its rows_of_a_second_machine, those that are not compiled.
SECOND = {
    "lora_bf16_batch8": ("openvla_chunk", SMALL, 8, False),
    "lora_bf16_batch16": ("openvla_chunk", SMALL, 16, False),
    "dora_bf16_batch8": ("openvla_chunk", dataclasses.replace(SMALL, dora=True), 8, False),
}


def weightless(family: str):
    return sizes.weightless(family, sizes.full_size(family, action_dim=23, state_dim=23))


@pytest.fixture(scope="module")
def traced():
    """Of each family the model and its trace; 4-bit weights are frozen, so they change no activation."""
    models = {f: weightless(f) for f in ("openvla", "openvla_chunk")}
    return {f: (m, StepCost(m, DEFAULT if f == "openvla" else SMALL)) for f, m in models.items()}


def planned(traced, row: str):
    family, settings, batch, checkpointing = H200[row]
    model, cost = traced[family]
    return training_memory(model, settings, DEVICES["h200"], cost, batch=batch, checkpointing=checkpointing)


def test_every_measured_row_of_this_package_is_compared() -> None:
    rows = json.loads(RECORD.read_text())["rows"]
    assert {r for r in rows if not r.startswith("plain")} == set(H200), "plain rows are another program's"


@pytest.mark.parametrize("row", SECOND)
def test_memory_of_large_batches_and_dora_is_within_five_percent(row) -> None:
    measured = json.loads(RECORD.read_text())["rows_of_a_second_machine"]["rows"][row]
    family, settings, batch, checkpointing = SECOND[row]
    found = training_memory(weightless(family), settings, DEVICES["h200"], batch=batch, checkpointing=checkpointing)
    assert found.allocated_gb == pytest.approx(measured["peak_gb"], rel=0.05)


@pytest.mark.parametrize("row", H200)
def test_memory_on_the_h200_is_within_five_percent(traced, row) -> None:
    """Nothing in the plan was fitted to these: every term is counted. `peak_gb` is torch's own count."""
    measured = json.loads(RECORD.read_text())["rows"][row]
    found = planned(traced, row)
    assert found.trainable == measured["trainable"]
    assert found.allocated_gb == pytest.approx(measured["peak_gb"], rel=0.05)
    assert found.total_gb > measured["peak_gb"], "what must be free holds the context and slack beside it"


@pytest.mark.parametrize("row", H200)
def test_step_times_on_the_h200_lie_in_the_interval(traced, row) -> None:
    """The host's time for a launch was taken from these rows: this shows that launches are the limit, no more."""
    measured = json.loads(RECORD.read_text())["rows"][row]["seconds_per_step"]
    fast, slow = planned(traced, row).step_seconds
    assert fast <= measured <= slow
    assert planned(traced, row).bound == "launches"


@pytest.fixture(scope="module")
def published():
    """openvla-7b with the published script's adapters, 7 joints, 16 micro-batches of one, on one RTX 4090."""
    model = sizes.weightless("openvla", sizes.full_size("openvla", action_dim=7, state_dim=0))
    settings = LoraSettings(**PRESETS["openvla_reference"].lora())
    options = {"batch": 1, "accumulation": 16, "checkpointing": False}
    return training_memory(model, settings, DEVICES["rtx4090"], **options)


def test_a_published_run_on_a_4090_that_was_never_fitted(published) -> None:
    """18,470 MiB and 2.67 s per optimiser step, by others."""
    assert published.allocated_gb <= 18_470 * 2**20 / 1e9 <= published.total_gb
    fast, slow = published.step_seconds
    assert fast <= 2.67 <= slow


def work(model, settings: LoraSettings, cost: StepCost, quantized: int = 0) -> StepWork:
    options = {"batch": 1, "checkpointing": False, "cached": True, "trainable": 0}
    return step_work(model, settings, cost, quantized, **options)


def test_unpacking_four_bits_takes_the_time_of_its_bytes(traced) -> None:
    """Each decoder weight is unpacked in the forward and in the backward pass: 0.516 bytes read, 2 written."""
    model, cost = traced["openvla_chunk"]
    decoder = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    plain = work(model, SMALL, cost)
    small = work(model, dataclasses.replace(SMALL, quantization="nf4"), cost, decoder)
    moved = 2 * decoder * (4.127 / 8 + 2)
    assert small.traffic - plain.traffic == pytest.approx(moved)
    assert small.flops == plain.flops
    card = dataclasses.replace(DEVICES["rtx4090"], host_us=(0.0, 0.0))
    low, high = (a - b for a, b in zip(small.seconds(card, 1), plain.seconds(card, 1), strict=True))
    assert low == pytest.approx(moved / 1008e9 / 0.8)
    assert high == pytest.approx(moved / 1008e9 / 0.4)
    launched = training_memory(
        model, dataclasses.replace(SMALL, quantization="nf4"), DEVICES["h200"], cost, batch=1, checkpointing=False
    )
    assert launched.bound == "launches"


def test_doras_norms_are_counted_once_per_pass_and_not_per_sample(toy) -> None:
    model = small_model(toy)
    rank, layers = 4, 6
    plain, dora = (StepCost(model, LoraSettings(rank=rank, dora=d)) for d in (False, True))
    names = [n for n, _ in model.named_modules() if ".layers.0." in n and n.endswith("_proj")]
    shapes = [tuple(model.get_parameter(f"{n}.weight").shape) for n in names]
    assert len(shapes) == 7
    # peft multiplies a unit matrix with both factors: 2 in^2 r + 2 in r out.
    norms = layers * sum(2 * columns * rank * (columns + rows) for rows, columns in shapes)
    for batch in (1, 8):
        more = dora.flops(layers, batch, checkpointing=False) - plain.flops(layers, batch, checkpointing=False)
        assert more == pytest.approx(norms), batch
    weights = layers * sum(rows * columns for rows, columns in shapes)
    moved = dora.weight_traffic(layers, checkpointing=False) - plain.weight_traffic(layers, checkpointing=False)
    # The sum of both weights is written and read, the norm reads it: at least three times 2 bytes, at most 24 bytes.
    assert 6 * weights < moved < 40 * weights
    assert dora.launches(layers, checkpointing=False) > 1.5 * plain.launches(layers, checkpointing=False)


def test_a_tiny_model_waits_for_its_launches(toy) -> None:
    model = small_model(toy)
    found = training_memory(model, LoraSettings(rank=4), DEVICES["h100"], batch=1, checkpointing=False)
    assert found.bound == "launches"
    assert found.step_seconds[0] > 1e-3, "hundreds of kernels, each some microseconds of the host"


def test_the_peak_is_not_the_line_between_a_small_and_a_large_batch(traced) -> None:
    """Gradients hold the peak of one sample, activations that of 32: between them the line lies far above."""
    _, cost = traced["openvla"]
    one, four, many = (cost.peak(32, n, checkpointing=True) for n in (1, 4, 32))
    assert four < 0.9 * (one + (many - one) * 3 / 31)
    again = cost.peak(32, 1, checkpointing=True, again=True)
    assert again > one, "gradients of the micro-batch before are there all the time"


def test_a_card_keeps_a_byte_for_each_dropped_number_and_no_float_copies(toy) -> None:
    model = small_model(toy)
    settings = LoraSettings(rank=4)
    card, cpu = (StepCost(model, settings, on_cpu=c, wide=False) for c in (False, True))
    assert card.peak(8, 32, checkpointing=False) < 0.9 * cpu.peak(8, 32, checkpointing=False)
    dropped = StepCost(model, dataclasses.replace(settings, dropout=0.1))
    text, rows = model.body_spec.text, model.body_spec.patches * model.spec.cameras + 32 + 1 + model.spec.horizon
    layer = [c.peak(9, 32, checkpointing=False) - c.peak(8, 32, checkpointing=False) for c in (card, dropped)]
    # Of each number a byte of the mask, and two that the adapter's first product keeps: of seven inputs. The four
    # tensors that the adapters read without dropout, some of them together, are free then.
    inputs = 3 * (6 * text.width + text.mlp_width) - 2 * (3 * text.width + text.mlp_width)
    assert layer[1] - layer[0] == pytest.approx(32 * rows * inputs, rel=0.1)
