"""Timing: percentiles only where they mean something, deadlines against a slow replay, comparison, honest words."""

import dataclasses
import json

import numpy as np
import pytest

from athena_vla import machine
from athena_vla.bench import BenchConfig, BenchResult, Comparison, bench, facts
from athena_vla.bench import benchmarking as stage
from athena_vla.bench.timing import Samples, deadlines
from athena_vla.bundle import Bundle
from athena_vla.engines.deployment_config import verdict
from athena_vla.errors import BundleError, UnknownName
from small_bundles import write_base


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy) -> Bundle:
    return write_base(tmp_path_factory.mktemp("bench") / "b", toy)


@pytest.fixture(scope="module")
def result(tmp_path_factory, base) -> BenchResult:
    folder = tmp_path_factory.mktemp("result")
    measured = bench(BenchConfig(bundle=base.path, warmup=10, runs=100, out=folder / "result.json"))
    assert isinstance(measured, BenchResult)
    return measured


def test_every_stage_is_timed_and_raw_samples_are_kept(result) -> None:
    assert set(result.record["stages"]) == {"preprocess", "vision", "language", "head", "un-normalise", "safety"}
    for name, samples in result.record["samples_s"].items():
        assert len(samples) == 100, name
        assert min(samples) > 0
    parts = sum(row["p50_ms"] for row in result.record["stages"].values())
    assert parts == pytest.approx(result.record["whole_action"]["p50_ms"], rel=0.6), "stages add up to the action"
    assert result.record["bundle"]["hash"]
    assert result.record["device"]["versions"]["torch"]


def test_decoding_alone_stands_beside_the_whole_action(tmp_path, toy) -> None:
    """Tokens per second of single-token calls, and end to end with vision and prompt: two different numbers."""
    write_base(tmp_path / "tokens", toy, tokens=True)
    found = bench(BenchConfig(bundle=tmp_path / "tokens", warmup=10, runs=100))
    assert isinstance(found, BenchResult)
    s = found.summary()
    assert s["decode_tokens_per_second"] > s["tokens_per_second"] > 0
    steps = next(x for x in found.stages if x.name == stage.SINGLE_TOKEN)
    per_action = toy.action_dim - 1  # the first token comes out of the prompt's pass
    assert s["decode_tokens_per_second"] == pytest.approx(per_action / float(np.median(steps.seconds)))
    assert "ms per token" in str(found)


def test_the_word_jetson_only_on_one(result) -> None:
    expected = "measured_on_device" if machine.is_jetson() else "measured_here"
    assert result.summary()["kind"] == expected
    if not machine.is_jetson():
        text = json.dumps(result.to_dict()).lower().replace('"is_jetson": false', "")
        assert "jetson" not in text


@pytest.mark.parametrize(
    ("model", "jetson"),
    [
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", True),
        ("NVIDIA Orin Nano Developer Kit\0", True),
        ("Raspberry Pi 5 Model B Rev 1.0\0", False),
        ("Corinth Board\0", False),
    ],
)
def test_the_device_tree_decides_what_a_measurement_is_called(
    base, result, tmp_path, monkeypatch, model, jetson
) -> None:
    (tmp_path / "model").write_text(model)
    monkeypatch.setattr(machine, "DEVICE_TREE", tmp_path / "model")
    found = facts.device_facts()
    assert found["is_jetson"] is jetson
    assert found["model"] == model.strip("\0")
    record = stage._record(BenchConfig(), base, found, result.whole, list(result.stages), 0)
    assert record["summary"]["kind"] == ("measured_on_device" if jetson else "measured_here")


def test_clocks_and_throttling_of_a_board(tmp_path, monkeypatch) -> None:
    """As a Jetson shows them: devfreq for GPU and memory, cooling devices for throttling; a fan is none."""
    monkeypatch.setattr(facts, "SYSTEM", tmp_path)
    assert facts.device_clocks() == {}
    assert facts.device_facts()["throttled"] is None
    files = {
        "class/devfreq/17000000.gpu/cur_freq": "1173000000\n",
        "class/thermal/thermal_zone0/type": "gpu-thermal",
        "class/thermal/thermal_zone0/temp": "61500",
        "class/thermal/cooling_device0/type": "pwm-fan",
        "class/thermal/cooling_device0/cur_state": "2",
        "class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "class/thermal/cooling_device1/cur_state": "0",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = facts.device_facts()
    assert found["clocks_hz"] == {"17000000.gpu": 1173000000}
    assert found["temperature_c"] == {"gpu-thermal": 61.5}
    assert found["throttled"] is False
    (tmp_path / "class/thermal/cooling_device1/cur_state").write_text("1")
    assert facts.device_facts()["throttled"] is True


def test_p99_needs_a_thousand_samples() -> None:
    few = Samples("x", tuple(np.linspace(0.001, 0.002, 999))).summary()
    many = Samples("x", tuple(np.linspace(0.001, 0.002, 1000))).summary()
    assert few["p99_ms"] is None
    assert many["p99_ms"] == pytest.approx(1.99, abs=0.001)
    assert few["p50_low_ms"] <= few["p50_ms"] <= few["p50_high_ms"]


def test_short_runs_are_refused(tmp_path) -> None:
    with pytest.raises(UnknownName, match="length of a benchmark"):
        bench(BenchConfig(bundle=tmp_path, runs=20))


def test_deadlines_of_a_constant_latency() -> None:
    assert deadlines([0.05] * 50, 10.0)["missed"] == 0
    slow = deadlines([0.15] * 50, 10.0)
    assert slow["missed"] == 50
    assert slow["dropped"] > 0, "newer observations replace those that wait"
    assert slow["worst_ms"] < 0.4e3, "the queue does not grow without end"


def test_a_stall_makes_the_next_request_late_too() -> None:
    """No coordinated omission: latency counts from the scheduled arrival."""
    latencies = [0.01] * 5 + [0.18] + [0.03] * 5
    report = deadlines(latencies, 10.0)
    assert report["missed"] == 2, "the stalled one and the one that waited for it"


def test_comparison(result, tmp_path) -> None:
    first = tmp_path / "a.json"
    first.write_text(json.dumps(result.to_dict()))
    slower = json.loads(json.dumps(result.to_dict()))
    for row in (slower["whole_action"], *slower["stages"].values()):
        for key in ("p50_ms", "p50_low_ms", "p50_high_ms"):
            row[key] *= 3
    slower["device"]["governor"] = "powersave-for-test"
    second = tmp_path / "b.json"
    second.write_text(json.dumps(slower))
    compared = bench(BenchConfig(compare=(first, second)))
    assert isinstance(compared, Comparison)
    assert compared.ratios["whole action"] == pytest.approx(3.0)
    assert compared.clear["whole action"]
    assert any("powersave-for-test" in d for d in compared.differences)
    line = next(x for x in str(compared).splitlines() if "whole action" in x).split()
    assert line[2:] == [f"{result.record['whole_action']['p50_ms'] * k:.2f}" for k in (1, 3)] + ["3.00"]
    same = bench(BenchConfig(compare=(first, first)))
    assert isinstance(same, Comparison)
    assert not any(same.clear.values())


def test_bad_comparisons(tmp_path) -> None:
    with pytest.raises(BundleError, match="takes two result files"):
        bench(BenchConfig(compare=(tmp_path / "a.json",)))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(BundleError, match="is not a benchmark result"):
        bench(BenchConfig(compare=(broken, broken)))


def test_both_verdicts() -> None:
    assert verdict({"tokens_per_second": 8.0, "actions_per_second": 4.9}, 5.0) == {
        "meets_tokens_target": True,
        "meets_control_rate": False,
    }
    assert verdict(None, 5.0)["meets_tokens_target"] is None


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BenchConfig().runs = 5  # pyright: ignore[reportAttributeAccessIssue]
