"""Other engines and other sizes on a Jetson. Oracles: arithmetic by hand, and figures that others published."""

import math

import pytest

from athena_vla.plan import PlanConfig, plan
from athena_vla.plan.devices import DEVICES
from athena_vla.plan.ways import llama_cpp

LINEAR = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)  # weights of Llama-2-7B's decoder


def by_hand(name: str, gigabytes: float) -> tuple[float, float]:
    """[tokens/s] of llama.cpp on a device: half to three quarters of TensorRT's share of the bandwidth."""
    device = DEVICES[name]
    low, high = device.bandwidth_share
    return device.bandwidth_gbs * low * 0.5 / gigabytes, device.bandwidth_gbs * high * 0.75 / gigabytes


def test_llama_cpp_decodes_at_its_share_of_the_bandwidth() -> None:
    said = {w.name: w for w in plan(PlanConfig(family="openvla", horizon=1)).ways}
    row = said["by llama.cpp"].tokens_per_second
    assert row is not None
    cache = 2 * 32 * 4096 * 2 * 300  # keys and values of some 300 rows in 16 bits
    low, high = by_hand("jetson-orin-nx-16gb", (LINEAR * 4.5 / 8 + 256 * 4096 * 4.5 / 8 + cache) / 1e9)
    assert row == pytest.approx((low, high), rel=0.02)
    assert row[0] > 8, "the user's 8 to 12 tokens/s are met"


@pytest.mark.parametrize(
    ("what", "gigabytes", "published"),
    [
        ("Llama-2-7B in 4 bits, 2024 (holohub#170)", (LINEAR + 32000 * 4096) * 4.5 / 8 / 1e9, 22.5),
        ("Gemma-4-12B in Q4_0, 2026 (NVIDIA's table of models)", 12e9 * 4.5 / 8 / 1e9, 19.0),
    ],
)
def test_published_figures_lie_in_the_interval(what: str, gigabytes: float, published: float) -> None:
    """They were not used to set it."""
    low, high = by_hand("jetson-agx-orin-64gb", gigabytes)
    assert low <= published <= high, what
    assert llama_cpp(DEVICES["jetson-agx-orin-64gb"]).bandwidth_share == pytest.approx((0.64 * 0.5, 0.87 * 0.75))


def test_each_way_to_220_ms_is_a_row_with_its_time() -> None:
    made = plan(PlanConfig())
    said = {w.name: w.action_seconds for w in made.ways}
    device, whole = DEVICES["jetson-orin-nx-16gb"], made.prediction.action_seconds
    # Everything is bound by arithmetic: 8-bit products are int8_tops / fp16_tflops times as fast.
    gain = device.int8_tops / device.fp16_tflops
    for end in (0, 1):
        assert said["W8A8 in place of 4-bit weights"][end] == pytest.approx(whole[end] / gain, rel=0.01)
        language = next(s.seconds[end] for s in made.prediction.stages if s.graph == "language")
        # The last layer answers for a few rows only, so that half of the layers is a little less than half of the time.
        assert said["16 of 32 layers"][end] == pytest.approx(whole[end] - language / 2, rel=0.03)
    assert said["16 of 32 layers, W8A8"][1] < 0.220 < whole[0]
    assert said["a decoder of 1B parameters"][1] < 0.220
    text = str(made)
    assert "other ways, PREDICTED too" in text
    assert len(made.to_dict()["ways"]) == 5
    assert all(math.isfinite(x) for s in said.values() for x in s)


def test_other_devices_have_no_such_rows() -> None:
    assert plan(PlanConfig(device="rtx4090")).ways == ()
