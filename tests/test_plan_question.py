"""What `athena plan` is asked is answered first: another memory, a price, hours of one's own set, verdicts."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from athena_vla.dataset.dataset import BuildConfig, build
from athena_vla.errors import DatasetError, ModelError, UnknownName
from athena_vla.models import sizes
from athena_vla.plan import DEVICES, Plan, PlanConfig, plan
from athena_vla.plan import cost as costs
from athena_vla.plan.devices import in_mode
from athena_vla.plan.predict import predict
from athena_vla.plan.targets import Target, device_targets
from athena_vla.plan.whole_run import whole_run
from recordings import clean, write
from small_bundles import small_model, write_base


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy):
    """A base for the toy robot, and a set of nine episodes of it."""
    root = tmp_path_factory.mktemp("world")
    base = write_base(root / "base", toy)
    write(root / "recordings", *(clean(i, length=20 + i) for i in range(9)))
    set_of = build(BuildConfig(input=root / "recordings", out=root / "set", robot="toy", horizon=5, workers=1))
    asked = PlanConfig(model=str(base.path), robot="toy", gpu="rtx4090", probe=False, preset="humanoid_efficient")
    return root, asked, set_of


@pytest.fixture(scope="module")
def answered(world) -> Plan:
    root, asked, _ = world
    return plan(dataclasses.replace(asked, data=root / "set", epochs=4.0, price=0.5, change="batch=2,accumulation=4"))


def test_hours_and_price_of_my_set(world, answered) -> None:
    _, _, set_of = world
    lengths = {f"episode_{i:04d}": 20 + i for i in range(9)}
    samples = sum(lengths[name] for name in set_of.train_episodes)
    assert answered.run is not None
    assert answered.run.samples == samples
    assert answered.run.steps == math.ceil(4 * samples / 8)
    assert answered.training is not None
    best = answered.training.chosen
    assert best is not None
    for hours, seconds in zip(answered.run.hours, best.step_seconds, strict=True):
        assert hours == pytest.approx(answered.run.steps * seconds / 3600)
    assert answered.run.cost == pytest.approx([0.5 * h for h in answered.run.hours])
    assert answered.to_dict()["run"]["steps"] == answered.run.steps


def test_the_question_is_answered_in_the_first_line(world, answered) -> None:
    first = str(answered).splitlines()[0]
    assert first.startswith("PREDICTED: training on GeForce RTX 4090 24GB fits as asked")
    assert "4 epochs of" in first
    assert "at a price of" in first
    root, asked, _ = world
    acting = str(plan(dataclasses.replace(asked, gpu="", model="", bundle=root / "base"))).splitlines()[0]
    assert acting.startswith("PREDICTED: Jetson Orin NX 16GB")
    assert "one action takes" in acting


def test_several_cards_share_the_steps_and_are_all_paid(world) -> None:
    options = {"samples": 1000, "epochs": 3.0, "price": 2.0}
    one, four = whole_run((1.0, 2.0), 16, **options), whole_run((1.0, 2.0), 64, **options, cards=4)
    assert (one.steps, four.steps) == (math.ceil(3000 / 16), math.ceil(3000 / 64))
    assert one.hours == pytest.approx((one.steps / 3600, one.steps / 1800))
    assert four.cost == pytest.approx([h * 2.0 * 4 for h in four.hours])
    fixed = whole_run((1.0, 2.0), 16, samples=1000, epochs=3.0, max_steps=500)
    assert (fixed.steps, fixed.epochs) == (500, 8.0)
    assert whole_run((1.0, 1.0), 16).steps == 1000, "without a set a thousand steps are counted"


def test_another_memory_is_of_the_gpu_or_else_of_the_device(world) -> None:
    root, asked, _ = world
    small = plan(dataclasses.replace(asked, memory_gb=1.0))
    assert small.training is not None
    assert small.training.asked.limit_gb == 1.0
    assert not small.training.asked.fits
    assert "does NOT fit as asked" in str(small).splitlines()[0]
    assert small.prediction.memory.limit == DEVICES["jetson-orin-nx-16gb"].memory_gb
    acting = PlanConfig(bundle=root / "base", memory_gb=2.0)
    assert plan(acting).prediction.memory.limit == 2.0
    assert not plan(acting).prediction.fits, "the system alone takes three"


def test_verdicts_on_the_targets() -> None:
    """A chunk of 16 steps of 23 joints in 0.2 to 0.25 s, decoding at 7 to 9 tokens/s."""
    found = {t.name: t for t in device_targets((0.2, 0.25), 16 * 23, (7.0, 9.0), jetson=True)}
    assert found["joint targets"].predicted == (368 / 0.25, 368 / 0.2)
    assert {n: t.verdict for n, t in found.items()} == {
        "joint targets": "met",
        "decoding alone": "open",
        "one chunk": "open",
    }
    assert "at most 220 ms: predicted 200 to 250: OPEN" in str(found["one chunk"])
    assert found["one chunk"].limit == 220
    missed = device_targets((0.221, 0.3), 7, None, jetson=True)
    assert [t.verdict for t in missed] == ["met", "missed"]
    assert device_targets((0.1, 0.3), 7, None, jetson=False)[-1].limit == 90
    assert Target("x", 24.0, False, (24.0, 24.0), "GB").verdict == "met"


def test_the_training_target_stands_beside_those_of_acting(answered) -> None:
    assert [t.name for t in answered.targets] == ["training memory", "joint targets", "one chunk"]
    assert answered.targets[0].limit == 24.0
    assert answered.to_dict()["targets"][0]["verdict"] == "met"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_gb": -1.0}, "--memory-gb must be a number of at least 0"),
        ({"price": float("nan")}, "--price must be a number"),
        ({"gpu": "", "price": 1.0}, "name the GPU"),
        ({"epochs": 2.0}, "--data"),
    ],
)
def test_questions_that_make_no_sense_are_refused(world, change, said) -> None:
    with pytest.raises(ModelError, match=said):
        plan(dataclasses.replace(world[1], **change))


def test_a_set_that_is_not_there_is_named(world, tmp_path) -> None:
    with pytest.raises(DatasetError, match="There is no dataset"):
        plan(dataclasses.replace(world[1], data=tmp_path / "none"))


def test_a_slower_power_mode_is_slower_by_its_clocks() -> None:
    nx, nano = DEVICES["jetson-orin-nx-16gb"], DEVICES["jetson-orin-nano-8gb"]
    slow = in_mode(nx, "standard")
    assert slow.fp16_tflops / nx.fp16_tflops == pytest.approx(0.918 / 1.173, rel=0.01), "arithmetic goes with the clock"
    assert slow.bandwidth_gbs == nx.bandwidth_gbs
    assert in_mode(nano, "standard").bandwidth_gbs == 68
    assert in_mode(nano, "standard").fp16_tflops / nano.fp16_tflops == pytest.approx(0.625 / 1.02, rel=0.03)
    assert in_mode(nx, "") is nx
    with pytest.raises(UnknownName, match="no power mode of jetson-thor '30w'"):
        in_mode(DEVICES["jetson-thor"], "30w")


def test_the_mode_is_said_with_the_prediction(world) -> None:
    said = str(plan(PlanConfig(bundle=world[0] / "base", power_mode="standard")))
    assert "Jetson Orin NX 16GB, without Super, GPU at 918 MHz" in said.splitlines()[0]
    assert "30 W 0.9" in said


MEASURED = json.loads((Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_deploy.json").read_text())


@pytest.mark.parametrize(("precision", "row"), [("fp16", "bf16"), ("int4", "int4")])
def test_the_h200s_own_calls_lie_between_their_floors(precision, row) -> None:
    """23 tokens, and one chunk of 16 steps: the slow ends are those of kernels that wait for one another."""
    device = DEVICES["h200"]
    found = {}
    for family, horizon in (("openvla", 1), ("openvla_chunk", 16)):
        spec = sizes.full_size(family, action_dim=23, state_dim=23, horizon=horizon, cameras=1)
        found[family] = predict(costs.count(sizes.weightless(family, spec)), device, precision)
    step = next(s for s in found["openvla"].stages if s.graph == "step")
    fast, slow = (seconds / step.calls * 1e3 for seconds in step.seconds)
    assert fast <= MEASURED[f"tokens_{row}"]["ms_per_token"] <= slow
    fast, slow = (seconds * 1e3 for seconds in found["openvla_chunk"].action_seconds)
    assert fast <= MEASURED[f"chunk_{row}"]["ms"]["decode"]["median"] <= slow


def test_a_tiny_model_takes_the_time_of_its_kernels(toy) -> None:
    """Bytes and arithmetic of a million weights are microseconds; 3 calls and their kernels are not."""
    with torch.device("meta"):
        model = small_model(toy)
    counted = costs.count(model)
    language = next(c for c in counted.calls if c.graph == "language")
    layers = model.body_spec.text.layers
    assert layers * 9 <= language.products <= layers * 9 + 6, "seven linear layers and attention twice"
    assert language.kernels > 2 * language.products
    found = predict(counted, DEVICES["jetson-thor"], "int4")
    assert {s.bound for s in found.stages} == {"launches"}
    calls = sum(c.times for c in counted.calls)
    products = sum(c.times * c.products for c in counted.calls)
    assert found.action_seconds[0] == pytest.approx((calls * 20 + products * 2) * 1e-6)
