"""The word `device`: what it stands for on every kind of machine, and the sentence that says why no card is taken."""

import ctypes
import re
from typing import Any

import pytest

from athena_vla.errors import DeviceError, UnknownName
from athena_vla.machine import device
from athena_vla.machine.device import Card, Choice, Driver, Runtime, choose

SMALL = Card(0, "NVIDIA GeForce RTX 3060", 12_000_000_000, (8, 6))
LARGE = Card(1, "NVIDIA GeForce RTX 4090", 24_000_000_000, (8, 9))
TWO = Driver((13, 0), (SMALL, LARGE))
CUDA = Runtime("torch 2.13.0", (13, 0))
CPU = Runtime("torch 2.13.0+cpu")


def test_auto_takes_the_largest_card_that_holds_the_model() -> None:
    assert choose("auto", CUDA, driver=TWO, environment={}) == Choice("cuda:1", LARGE.name)
    assert choose("cpu", CUDA, driver=TWO, environment={}) == Choice("cpu")
    assert choose("cuda", CUDA, driver=TWO, environment={}).device == "cuda:0"
    assert choose("cuda:1", CUDA, driver=TWO, environment={}).name == LARGE.name
    held = choose("auto", CUDA, needs=27_000_000_000, driver=TWO, environment={})
    assert held.device == "cpu"
    assert held.why == f"the model needs 27.0 GB and '{LARGE.name}' has 24.0 GB"


@pytest.mark.parametrize(
    ("runtime", "driver", "environment", "why"),
    [
        (CPU, TWO, {}, "torch 2.13.0+cpu is a build for processors and sees no card"),
        (CUDA, Driver(), {}, "no NVIDIA driver was found"),
        (
            CUDA,
            Driver((12, 4), (SMALL,)),
            {},
            "too old: it serves CUDA 12.4, and torch 2.13.0 needs 13.0",
        ),
        (CUDA, Driver((13, 0)), {"CUDA_VISIBLE_DEVICES": ""}, "is '', which hides every card"),
        (CUDA, Driver((13, 0)), {"CUDA_VISIBLE_DEVICES": "-1"}, "is '-1', which hides every card"),
        (CUDA, Driver((13, 0)), {"CUDA_VISIBLE_DEVICES": "7"}, "shows no card; CUDA_VISIBLE_DEVICES is '7'"),
        (CUDA, Driver((13, 0), problem="error 100 at its start"), {}, "the driver shows no card (error 100"),
        (Runtime("torch 2.13.0+rocm6.4", build="rocm"), TWO, {}, "built for ROCm, which is not supported"),
    ],
)
def test_why_no_card_is_taken(runtime: Runtime, driver: Driver, environment: dict[str, str], why: str) -> None:
    taken = choose("auto", runtime, driver=driver, environment=environment)
    assert taken.device == "cpu"
    with pytest.raises(DeviceError, match=re.escape(why)):
        choose("cuda", runtime, driver=driver, environment=environment)
    assert taken.why


def test_words_that_stand_for_nothing() -> None:
    for word in ("gpu", "cuda:", "cuda:x", "cpu:0", "auto:1", "", "cuda:-1", "cuda:1:2"):
        with pytest.raises(UnknownName, match=r"auto, cpu, cuda, cuda:N"):
            device.parse(word)
    for word in ("mps", "rocm", "hip:0", "xpu"):
        with pytest.raises(DeviceError, match="not supported"):
            device.parse(word)
    with pytest.raises(DeviceError, match=r"no device 'cuda:2'; this process sees cuda:0 \(NVIDIA GeForce RTX 3060\)"):
        choose("cuda:2", CUDA, driver=TWO, environment={})


class Library:
    """libcuda with one card, as far as it is asked."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 12080
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = 1
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = 40 + index
        return 0

    def cuDeviceGetName(self, buffer: ctypes.Array[ctypes.c_char], size: int, handle: ctypes.c_int) -> int:
        assert handle.value == 40
        buffer.value = b"Orin"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, handle: ctypes.c_int) -> int:
        out._obj.value = 16_000_000_000
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, handle: ctypes.c_int) -> int:
        out._obj.value = {75: 8, 76: 7}[attribute]
        return 0


def test_the_driver_is_asked_through_its_c_interface() -> None:
    assert device.ask(Library()) == Driver((12, 8), (Card(0, "Orin", 16_000_000_000, (8, 7)),))
    assert device.ask(Library(100)) == Driver((12, 8), problem="error 100 at its start")
