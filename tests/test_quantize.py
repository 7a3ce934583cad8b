"""Quantisation: codes against slow references, packing bit by bit, error in radians, budget, bad input."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import small_bundles
from athena_vla.bundle import Bundle
from athena_vla.errors import BundleError, ModelError, UnknownName
from athena_vla.models.lora import LoraSettings
from athena_vla.models.weights import packed
from athena_vla.models.weights.packed import Packed
from athena_vla.models.weights.store import TensorStore
from athena_vla.offload import opened, streamed
from athena_vla.policy import Policy
from athena_vla.progress import Nowhere, Progress, State
from athena_vla.quantize import QuantizeConfig, choose, codes, quantize
from athena_vla.quantize.calibrate import second_moment
from athena_vla.quantize.choose import Layer
from athena_vla.quantize.layers import _coded, plan_layers
from athena_vla.quantize.parts import LayerParts
from athena_vla.quantize.sensitivity import filled, sampled, sensitivities
from small_bundles import observations, small_model, write_base, write_finetuned, write_model


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("base") / "base", toy)


def correlated(rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(rows, 24, generator=generator) @ torch.randn(24, width, generator=generator)
    return mixed + 0.3 * torch.randn(rows, width, generator=generator)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), groups=st.integers(1, 4), seed=st.integers(0, 99), bits=st.sampled_from([4, 8]))
def test_packing_is_lossless(rows: int, groups: int, seed: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    low, high = (-8, 8) if bits == 4 else (-127, 128)
    values = torch.from_numpy(generator.integers(low, high, (rows, 32 * groups)).astype(np.int8))
    weight = Packed(values, torch.rand(rows, groups).half(), bits)  # pyright: ignore[reportArgumentType]
    back = packed.load("w", packed.store("w", weight))
    assert torch.equal(back.codes, values)
    assert torch.equal(back.scales, weight.scales)
    assert back.bits == bits


def test_nibbles_are_the_order_onnx_reads() -> None:
    stored = packed.nibbles(torch.tensor([[1, -2, 7, -8]], dtype=torch.int8))
    assert stored.tolist() == [[0xE1, 0x87]]


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 256)])
def test_nearest_is_within_half_a_step(bits: int, group: int) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    quantized = codes.nearest(weight, bits, group)  # pyright: ignore[reportArgumentType]
    step = quantized.scales.float().repeat_interleave(group, dim=1)
    assert bool(((quantized.dequantize() - weight).abs() <= 0.501 * step).all())


def slow_gptq(weight: torch.Tensor, moment: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    """Optimal Brain Quantisation, one column after the other with an explicitly updated inverse; float64."""
    work = weight.double().clone()
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(len(moment))
    inverse = torch.linalg.inv(damped)
    out = torch.zeros_like(work)
    for k in range(work.shape[1]):
        scale = scales[:, k // group].double()
        out[:, k] = (work[:, k] / scale).round().clamp(-8, 7) * scale
        error = (work[:, k] - out[:, k]) / inverse[k, k]
        work -= error[:, None] * inverse[k][None, :]
        inverse = inverse - torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return out


def test_compensated_codes_equal_the_slow_algorithm() -> None:
    weight = torch.randn(12, 256, generator=torch.Generator().manual_seed(2)) * 0.05
    moment = second_moment(correlated(400, 256))
    fast = codes.compensated(weight, 4, 64, moment)
    slow = slow_gptq(weight, moment, fast.scales, 64)
    # Ties may fall to either side where float32 and float64 differ; nearly all codes must be the same.
    same = (fast.dequantize().double() - slow).abs() < 1e-6
    assert float(same.double().mean()) > 0.995


def test_compensation_and_clipping_help_on_the_data_they_saw() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(3)) * 0.05
    inputs = correlated(1000, 256)
    moment = second_moment(inputs)
    errors = {
        "nearest": codes.output_error(weight, codes.nearest(weight, 4, 128), moment),
        "clipped": codes.output_error(weight, codes.clipped(weight, 4, 128, moment.diagonal()), moment),
        "compensated": codes.output_error(weight, codes.compensated(weight, 4, 128, moment), moment),
    }
    assert errors["compensated"] < 0.5 * errors["clipped"] < 0.5 * errors["nearest"]
    quantized = codes.compensated(weight, 4, 128, moment)
    measured = ((inputs @ (quantized.dequantize() - weight).T).norm() / (inputs @ weight.T).norm()).item()
    assert measured == pytest.approx(errors["compensated"], rel=1e-3)


def test_zero_and_tiny_weights_have_usable_scales() -> None:
    weight = torch.zeros(4, 64)
    weight[1] = 1e-9
    quantized = codes.clipped(weight, 4, 32, torch.ones(64))
    assert bool(torch.isfinite(quantized.dequantize()).all())
    assert float((quantized.dequantize() - weight).abs().max()) < 1e-4


def test_groups_that_do_not_fit_become_8_bits() -> None:
    assert codes.fitting_group(11008, 128) == 128
    assert codes.fitting_group(96, 128) == 32
    assert codes.fitting_group(344, 128) is None
    assert choose.first_choice("w", "language", (8, 344), 4, 128).bits == 8


def test_the_worst_layers_are_lifted_within_the_budget() -> None:
    layers = [Layer(f"l{i}", "language", (128, 128), 4, 128, sensitivity_rad=float(i)) for i in range(8)]
    lifted = choose.lift_worst(layers, budget_bits=5.2)
    assert [x.name for x in lifted if x.bits == 8] == ["l6", "l7"]
    assert choose.mean_bits(lifted) <= 5.2
    assert choose.mean_bits(choose.lift_worst(layers, 4.0)) == pytest.approx(4.125)


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.02), (4, 0.3)])
def test_quantised_bundle(base, tmp_path, bits, limit) -> None:
    result = quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", bits=bits))
    bundle = Bundle.open(tmp_path / "q")
    assert bundle.manifest.stage == "quantized"
    assert bundle.manifest.parent_hash == base.hash
    assert 0 < result.deviation["max_rad"] < limit
    assert set(bundle.manifest.deviation["per_joint_max_rad"]) == set(base.robot.action_joints)
    assert result.mean_bits <= (5.0 if bits == 4 else 8.2)
    table = bundle.manifest.stage_info["layers"]
    assert all("language_model" in name for name in table)
    assert not any(name.startswith(("head", "state_projector", "queries")) for name in table)
    store = TensorStore(bundle.path / "weights")
    assert store.packed == set(table)
    for name in store.names:
        read = store.read(name)
        if not isinstance(read, Packed):
            expected = torch.float16 if read.ndim >= 2 else torch.float32
            assert read.dtype == expected, name
    # The numbers in the torch model are those of the file: what every runtime must reproduce.
    model = bundle.model()
    name = sorted(table)[0]
    stored = store.read(name)
    assert isinstance(stored, Packed)
    assert torch.equal(model.get_parameter(name), stored.dequantize())


def test_same_seed_same_bytes(base, tmp_path) -> None:
    for name in ("a", "b"):
        quantize(QuantizeConfig(input=base.path, out=tmp_path / name))
    first, second = (Bundle.open(tmp_path / n).manifest.files["weights/model.safetensors"] for n in ("a", "b"))
    assert first == second


def test_weights_streamed_through_a_meta_model_give_the_same_chunks(base) -> None:
    frames = observations(base.robot, 2, seed=9)
    expected = Policy.of(base, "torch").chunks(frames)
    meta_model = base.meta_model().eval()
    with streamed(meta_model, TensorStore(base.path / "weights"), resident=10_000):
        assert meta_model.get_parameter("body.language_model.model.layers.0.self_attn.q_proj.weight").is_meta
        policy = Policy.of_model(meta_model, base.robot, base.normalizer)
        np.testing.assert_allclose(policy.chunks(frames), expected, atol=1e-6)
        assert meta_model.get_parameter("body.language_model.model.layers.0.self_attn.q_proj.weight").is_meta


def test_large_models_take_the_streamed_way_to_the_same_codes(base, tmp_path, monkeypatch) -> None:
    quantize(QuantizeConfig(input=base.path, out=tmp_path / "whole", sensitivity=False))
    monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    monkeypatch.setattr("athena_vla.offload.RESIDENT", 10_000)
    quantize(QuantizeConfig(input=base.path, out=tmp_path / "streamed", sensitivity=False))
    a, b = (TensorStore(tmp_path / n / "weights") for n in ("whole", "streamed"))
    assert a.names == b.names
    for name in a.packed:
        x, y = a.read(name), b.read(name)
        assert isinstance(x, Packed)
        assert isinstance(y, Packed)
        assert float((x.codes == y.codes).float().mean()) > 0.999


def test_the_layer_whose_error_reaches_the_joints_is_lifted(tmp_path, toy) -> None:
    """A layer is planted whose rounding moves the joints most; another rounds far worse in itself and moves nothing."""
    model = small_model(toy)
    blocks = cast(Any, model).body.language_model.model.layers
    with torch.no_grad():
        # One outlier per group takes the codes' range, so that all else in it is rounded to zero. It multiplies an
        # input that is zero: the model answers as without it.
        blocks[0].mlp.up_proj.weight[::64] = 0
        blocks[0].mlp.down_proj.weight[:, ::64] = 1.0
        # Rounded as badly, but nothing of it goes on: what reads its values is switched off.
        blocks[1].self_attn.v_proj.weight[:, ::64] = 10.0
        blocks[1].self_attn.o_proj.weight.zero_()
    base = write_model(tmp_path / "base", toy, model)
    quantize(QuantizeConfig(base.path, tmp_path / "q", method="nearest", group=64, budget_bits=5.0))
    table = Bundle.open(tmp_path / "q").manifest.stage_info["layers"]
    planted, silent = (
        f"body.language_model.model.layers.{n}.weight" for n in ("0.mlp.down_proj", "1.self_attn.v_proj")
    )
    sensitivity = {n: e["sensitivity_rad"] for n, e in table.items()}
    assert max(sensitivity, key=lambda n: sensitivity[n]) == planted
    assert sensitivity[silent] == 0
    assert (table[planted]["bits"], table[silent]["bits"]) == (8, 4)
    lifted = QuantizeConfig(base.path, tmp_path / "all4", method="nearest", group=64, budget_bits=4.3)
    assert quantize(lifted).lifted == 0, "no budget, no lift"
    errors = [Bundle.open(tmp_path / n).manifest.stage_info["action_error"]["mean_rad"] for n in ("q", "all4")]
    assert errors[0] < 0.5 * errors[1], "what was lifted is what had moved the joints"
    # Oracle for the planted layer: that one alone rounded by hand.
    by_hand = base.model()
    with torch.no_grad():
        weight = by_hand.get_parameter(planted)
        weight.copy_(codes.nearest(weight, 4, 64).dequantize())
    frames = base.golden.observations
    moved = np.abs(Policy.of_model(by_hand, base.robot, base.normalizer).chunks(frames) - base.golden.chunks)
    assert sensitivity[planted] == pytest.approx(float(moved.mean()), rel=1e-3)


@pytest.mark.parametrize("streaming", [False, True])
def test_many_layers_in_one_pass_have_the_errors_of_each_alone(tmp_path, toy, streaming, monkeypatch) -> None:
    """Oracle: every layer, of the towers too, rounded by hand in a model of its own."""
    base = write_base(tmp_path / "base", toy)
    config = QuantizeConfig(base.path, tmp_path / "q", bits=4, vision_bits=8)
    planned = plan_layers(config, base, base.store())
    layers = [choose.first_choice(x.name, x.graph, x.shape, 4, 64) for x in planned]
    assert {x.graph for x in layers} == {"vision", "language"}
    frames = observations(base.robot, 3, seed=4)
    if streaming:
        monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    with opened(base) as policy:
        found = sensitivities(policy, frames, layers)
    expected = Policy.of(base, "torch").chunks(frames)
    for layer in layers:
        by_hand = base.model()
        with torch.no_grad():
            weight = by_hand.get_parameter(layer.name)
            weight.copy_(codes.nearest(weight, layer.bits, layer.group).dequantize())
        moved = np.abs(Policy.of_model(by_hand, base.robot, base.normalizer).chunks(frames) - expected).mean()
        assert found[layer.name] == pytest.approx(float(moved), rel=0.02, abs=1e-6), layer.name
    assert np.median(list(found.values())) > 1e-5


def test_blocks_that_were_not_measured_lie_between_those_that_were() -> None:
    names = [f"lm.layers.{i}.{kind}.weight" for i in range(10) for kind in ("q", "down")] + ["projector.weight"]
    layers = [Layer(name, "language", (32, 32), 4, 32) for name in names]
    asked = [x.name for x in sampled(layers, 4)]
    assert {n.split(".")[2] for n in asked if "layers" in n} == {"0", "4", "8", "9"}
    assert "projector.weight" in asked
    assert sampled(layers, 1) == layers
    truth = {n: (1.0 if ".q." in n else 10.0) * (int(n.split(".")[2]) if "layers" in n else 7) for n in names}
    found = filled(layers, {n: truth[n] for n in asked})
    assert found == pytest.approx(truth), "a straight line is found again"
    assert set(filled(layers, {"lm.layers.0.q.weight": 1.0})) == {n for n in names if ".q." in n}, (
        "of other kinds nothing"
    )


def test_a_large_model_has_its_worst_layers_lifted(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    monkeypatch.setattr("athena_vla.offload.RESIDENT", 10_000)
    said: list[tuple[int, int, str]] = []

    class Kept(Nowhere):
        def show(self, state: State) -> None:
            said.append((state.done, state.total, state.what))

    settings = {"method": "nearest", "sensitivity_every": 2, "budget_bits": 5.2}
    made = quantize(QuantizeConfig(base.path, tmp_path / "q", **settings), Progress(Kept()))
    table = Bundle.open(tmp_path / "q").manifest.stage_info["layers"].values()
    assert made.lifted
    assert made.mean_bits <= 5.2
    assert all(e["sensitivity_rad"] is not None for e in table)
    measured = sum(e["sensitivity_measured"] for e in table)
    assert [w for w in said if w[2] == "measuring layers"][-1][:2] == (measured, measured)
    assert (len(table), len(table), "quantising layers") in said
    assert said[-1][2] == "checking the bundle"


def test_an_interrupted_run_goes_on_where_it_was(base, tmp_path, monkeypatch) -> None:
    """Killed in the middle of measuring, then of choosing codes: nothing is done twice, the bytes are the same."""
    config = QuantizeConfig(base.path, tmp_path / "q")
    counts = {"nearest": 0, "compensated": 0}
    limits = {"nearest": 20, "compensated": 5}

    def counted(name: str, function: Any) -> Any:
        def through(*words: Any) -> Any:
            if counts[name] == limits[name]:
                raise KeyboardInterrupt
            counts[name] += 1
            return function(*words)

        return through

    monkeypatch.setattr("athena_vla.quantize.sensitivity.ROWS", 1)
    monkeypatch.setattr("athena_vla.quantize.sensitivity.nearest", counted("nearest", codes.nearest))
    monkeypatch.setattr("athena_vla.quantize.codes.compensated", counted("compensated", codes.compensated))
    for name in ("nearest", "compensated"):
        with pytest.raises(KeyboardInterrupt):
            quantize(config)
        assert not (tmp_path / "q").exists()
        limits[name] = 1000
    (partial,) = tmp_path.glob(".q.partial-*")
    journal = partial / "sensitivities.jsonl"
    journal.write_text(journal.read_text() + '\n{"cut')
    quantize(config)
    layers = Bundle.open(tmp_path / "q").manifest.stage_info["layers"]
    assert counts == {"nearest": len(layers), "compensated": len(layers)}
    assert not list(tmp_path.glob(".q.partial-*"))
    quantize(QuantizeConfig(base.path, tmp_path / "whole"))
    a, b = (Bundle.open(tmp_path / n).manifest.files["weights/model.safetensors"] for n in ("q", "whole"))
    assert a == b


def test_finished_layers_of_other_settings_are_not_taken(base, tmp_path) -> None:
    weight = Packed(torch.zeros(2, 32, dtype=torch.int8), torch.ones(2, 1).half(), 4)
    parts = LayerParts(tmp_path / "q", "one")
    parts.finished("w", weight, 0.25)
    parts.measured({"w": 0.5})
    again = LayerParts(tmp_path / "q", "one")
    found = again.codes("w")
    assert found is not None
    assert torch.equal(found[0].codes, weight.codes)
    assert found[1] == 0.25
    assert again.sensitivities() == {"w": 0.5}
    assert again.codes("v") is None
    (again.folder / "cut.safetensors").write_bytes(b"")
    assert again.codes("cut") is None
    other = LayerParts(tmp_path / "q", "two")
    assert other.codes("w") is None
    assert other.sensitivities() == {}
    other.remove()
    assert not list(tmp_path.iterdir())


def test_a_mistyped_option_costs_no_finished_layer(base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("athena_vla.quantize.layers.quantize_in_order", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize(QuantizeConfig(base.path, tmp_path / "q"))
    (partial,) = tmp_path.glob(".q.partial-*")
    for wrong in ({"graphs": ("langauge",)}, {"budget_bits": 6.0}):
        with pytest.raises((UnknownName, ZeroDivisionError)):
            quantize(QuantizeConfig(base.path, tmp_path / "q", **cast(Any, wrong)))
        assert (partial / "sensitivities.jsonl").is_file()


MEASURED = """
import sys, threading, time
from pathlib import Path
import athena_vla.quantize.quantizing as stage
from athena_vla import offload as streaming
from athena_vla.export import ExportConfig, export
from athena_vla.quantize import QuantizeConfig, quantize
small, large, out, method = (*sys.argv[1:4], sys.argv[4])
streaming.IN_MEMORY, streaming.RESIDENT = 0, 200_000
stage.StoreWriter.__init__.__defaults__ = (16_000_000,)
def work(where, out):
    quantize(QuantizeConfig(Path(where), Path(out + "q"), method=method, sensitivity=False, check=False, vision_bits=8))
    export(ExportConfig(Path(out + "q"), Path(out + "x"), compare=False))
def anonymous():  # without pages of mapped files, which the system takes back whenever it likes
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(ln for ln in lines if ln.startswith("RssAnon")).split()[1])
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
work(small, out + "small")  # code, libraries and small parts
before = peak[0]
work(large, out + "large")
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of memory")
@pytest.mark.parametrize(("method", "share"), [("nearest", 0.25), ("gptq", 0.6)])
def test_quantising_and_exporting_stream(tmp_path, toy, monkeypatch, method, share) -> None:
    """Of what a deeper model adds only a part is ever in memory; held as a whole it would be more than all of it."""
    totals = {}
    for name, layers in (("small", 2), ("large", 12)):
        body = small_bundles.BODY | {"width": 512, "mlp_width": 1536, "layers": layers}
        monkeypatch.setattr(small_bundles, "BODY", body)
        totals[name] = write_base(tmp_path / name, toy).store().bytes
    words = [sys.executable, "-c", MEASURED, *(str(tmp_path / n) for n in ("small", "large", "out")), method]
    # Blocks of a real model's size always go back to the system; these small ones only if it is told so.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    grown, added = int(done.stdout), totals["large"] - totals["small"]
    assert added > 100e6
    assert grown < share * added, f"{grown / 1e6:.0f} MB more for {added / 1e6:.0f} MB of weights"


def test_bad_input(base, tmp_path) -> None:
    tuned = write_finetuned(tmp_path / "ft", base, LoraSettings(rank=4))
    with pytest.raises(BundleError, match="run `athena merge` on it first"):
        quantize(QuantizeConfig(input=tuned.path, out=tmp_path / "q"))
    with pytest.raises(UnknownName, match="no quantisation method 'magic'"):
        quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", method="magic"))  # pyright: ignore
    with pytest.raises(BundleError, match="--sensitivity-every is 1 or more"):
        quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", sensitivity_every=0))
    with pytest.raises(BundleError, match="not a power of two"):
        quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", group=96))
    with pytest.raises(UnknownName, match="graph with linear layers"):
        quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", graphs=("nothing",)))
    assert not (tmp_path / "q").exists()
    with pytest.raises(ModelError, match="codes but no scales"):
        packed.load("w", {"w.codes4": torch.zeros(1, 1, dtype=torch.uint8)})


def test_vision_in_8_bits_where_memory_is_short(base, tmp_path) -> None:
    result = quantize(QuantizeConfig(input=base.path, out=tmp_path / "q", vision_bits=8, sensitivity=False))
    layers = Bundle.open(tmp_path / "q").manifest.stage_info["layers"]
    vision = [e for e in layers.values() if e["graph"] == "vision"]
    assert vision
    assert {e["bits"] for e in vision} == {8}
    assert 4 in {e["bits"] for e in layers.values()}
    assert result.error is not None
    assert result.error.max_rad < 0.5


def test_a_large_model_is_rounded_without_frames(base, tmp_path, monkeypatch) -> None:
    """The same codes as in memory, weight by weight, and nothing is run."""
    settings = {"input": base.path, "method": "nearest", "sensitivity": False}
    quantize(QuantizeConfig(out=tmp_path / "memory", **settings))
    monkeypatch.setattr("athena_vla.offload.IN_MEMORY", 0)
    monkeypatch.setattr("athena_vla.quantize.layers.quantize_in_order", None)
    quantize(QuantizeConfig(out=tmp_path / "disk", **settings))
    a, b = (Bundle.open(tmp_path / n).store() for n in ("memory", "disk"))
    assert a.packed == b.packed
    assert a.packed
    for name in a.packed:
        one, other = a.read(name), b.read(name)
        assert isinstance(one, Packed)
        assert isinstance(other, Packed)
        assert torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e9])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_no_code_can_hold_are_refused_by_name(value: float, bits: Any) -> None:
    weight = torch.randn(8, 32)
    weight[3, 7] = value
    layer = Layer("blocks.0.down", "body", (8, 32), bits, 32)
    with pytest.raises(ModelError, match=r"'blocks\.0\.down' has"):
        _coded("nearest", layer, weight, torch.ones(32))
