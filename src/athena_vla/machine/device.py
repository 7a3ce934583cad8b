"""`device` is one word for all that runs a model: `auto`, `cpu`, `cuda` or `cuda:N`; and why a card is not taken.

Asks NVIDIA's driver through its C interface, so that no framework has to be there. Knows no models.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from athena_vla.errors import DeviceError, UnknownName

WORDS = ("auto", "cpu", "cuda", "cuda:N")
UNSUPPORTED = {
    "mps": "Apple's GPUs (MPS) are not supported",
    "rocm": "AMD's GPUs (ROCm) are not supported",
    "hip": "AMD's GPUs (ROCm) are not supported",
    "xpu": "Intel's GPUs are not supported",
}
VISIBLE = "CUDA_VISIBLE_DEVICES"
_MAJOR, _MINOR = 75, 76  # numbers of the compute capability among the driver's device attributes
_FREE_SHARE = 0.9  # of a card's memory that a model may fill: activations and the runtime's own need the rest


@dataclass(frozen=True)
class Card:
    """One card as the driver names it."""

    index: int
    name: str
    memory: int  # [bytes] in all
    capability: tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver and the cards that it shows this process."""

    cuda: tuple[int, int] | None = None  # newest CUDA that it serves; None: there is no driver
    cards: tuple[Card, ...] = ()
    problem: str = ""  # what the driver said where it could not start


@dataclass(frozen=True)
class Runtime:
    """What would compute: a framework as it is installed here, and the CUDA version that it was built for."""

    name: str  # such as "torch 2.13.0+cpu"
    cuda: tuple[int, int] | None = None  # None: a build without CUDA
    build: str = ""  # rocm where it is built for AMD's cards
    install: str = "Install a build with CUDA that fits the driver; athena doctor says which."


@dataclass(frozen=True)
class Choice:
    """A device that was taken, and why it is not a card."""

    device: str  # cpu or cuda:N
    name: str = ""  # the card's
    why: str = ""

    @property
    def index(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")


def parse(word: str) -> tuple[str, int | None]:
    """Kind (`auto`, `cpu`, `cuda`) and the card's number where one is named. Raises `UnknownName`, `DeviceError`."""
    kind, colon, number = word.partition(":")
    if kind in UNSUPPORTED:
        raise DeviceError(f"Device '{word}': {UNSUPPORTED[kind]}. Take one of {', '.join(WORDS)}.")
    plain = not colon and kind in ("auto", "cpu", "cuda")
    if not plain and not (kind == "cuda" and number.isascii() and number.isdigit()):
        raise UnknownName("device", word, WORDS)
    return kind, int(number) if colon else None


def choose(
    word: str,
    runtime: Runtime,
    *,
    needs: int = 0,
    driver: Driver | None = None,
    environment: Mapping[str, str] | None = None,
) -> Choice:
    """The device that a word stands for, here and with this runtime.

    `auto` takes a card where there is one that holds `needs` bytes, and says why not. Raises `DeviceError` where a card
    was asked for by name and cannot be had.
    """
    kind, number = parse(word)
    if kind == "cpu":
        return Choice("cpu")
    found = driver or the_driver()
    why = why_not(runtime, found, os.environ if environment is None else environment)
    if not why and number is not None and number >= len(found.cards):
        known = ", ".join(f"cuda:{c.index} ({c.name})" for c in found.cards)
        raise DeviceError(f"There is no device '{word}'; this process sees {known}.")
    if not why and kind == "auto":
        card = max(found.cards, key=lambda c: (c.memory, -c.index))
        if needs <= card.memory * _FREE_SHARE:
            return Choice(f"cuda:{card.index}", card.name)
        held = f"the model needs {needs / 1e9:.1f} GB and '{card.name}' has {card.memory / 1e9:.1f} GB"
        return Choice("cpu", why=held)
    if why and kind == "cuda":
        raise DeviceError(
            f"Device '{word}' cannot be taken: {why}. {runtime.install} --device cpu runs without a card."
        )
    if why:
        return Choice("cpu", why=why)
    card = found.cards[number or 0]
    return Choice(f"cuda:{card.index}", card.name)


def why_not(runtime: Runtime, driver: Driver, environment: Mapping[str, str]) -> str:
    """Why no card can be taken, as the end of a sentence; empty where one can."""
    if runtime.build == "rocm":
        return f"{runtime.name} is built for ROCm, which is not supported"
    if sys.platform == "darwin":
        return UNSUPPORTED["mps"]
    if driver.cuda is None:
        return "no NVIDIA driver was found (libcuda.so.1)"
    visible = environment.get(VISIBLE)
    if visible is not None and not driver.cards and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"{VISIBLE} is '{visible}', which hides every card"
    if not driver.cards:
        shown = f"; {VISIBLE} is '{visible}'" if visible is not None else ""
        return f"the driver shows no card{f' ({driver.problem})' if driver.problem else ''}{shown}"
    if runtime.cuda is None:
        return f"{runtime.name} is a build for processors and sees no card ('{driver.cards[0].name}' is there)"
    if driver.cuda[0] < runtime.cuda[0]:
        return (
            f"the driver is too old: it serves CUDA {_dotted(driver.cuda)}, and {runtime.name} needs "
            f"{_dotted(runtime.cuda)}"
        )
    return ""


@cache
def the_driver() -> Driver:
    """NVIDIA's driver on this machine, asked once; `Driver()` where there is none."""
    try:
        return ask(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return Driver()


def ask(library: Any) -> Driver:
    """The driver behind its C interface."""
    version = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    status = library.cuInit(0)
    if status:
        return Driver(cuda, problem=f"error {status} at its start")
    count = ctypes.c_int(0)
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(cuda, tuple(_card(library, i) for i in range(count.value)))


def _card(library: Any, index: int) -> Card:
    device, name, memory = ctypes.c_int(0), ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, 256, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Card(index, name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))


def version_of(text: str | None) -> tuple[int, int] | None:
    """`"13.0"` as numbers; None for nothing."""
    if not text:
        return None
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
