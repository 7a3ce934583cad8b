"""What was measured on: machine, clocks, temperature, power mode, versions, code. Asks the system, guesses nothing.

The word Jetson appears only where the device tree says so.
"""

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import athena_vla.bundle as bundles
from athena_vla.machine import board, is_jetson
from athena_vla.machine.device import the_driver

SYSTEM = Path("/sys")


def device_facts() -> dict[str, Any]:
    """Everything a reader needs to judge a measurement; unknown entries are None."""
    return {
        "model": device_model(),
        "is_jetson": is_jetson(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_khz": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "clocks_hz": device_clocks(),
        "temperature_c": temperatures(),
        "throttled": _throttled(),
        "gpu": _gpu(),
        "power_mode": _command(["nvpmodel", "-q"]) if is_jetson() else None,
        "l4t": _read("/etc/nv_tegra_release") if is_jetson() else None,
        "system": platform.platform(),
        "versions": bundles.tool_versions(),
        "git": _command(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]),
    }


def device_model() -> str:
    """The board's name from the device tree, or the processor's."""
    return board() or _cpu_name()


def temperatures() -> dict[str, float]:
    """[deg C] by thermal zone."""
    found: dict[str, float] = {}
    for zone in sorted((SYSTEM / "class/thermal").glob("thermal_zone*")):
        with contextlib.suppress(OSError, ValueError):
            found[(zone / "type").read_text().strip()] = int((zone / "temp").read_text()) / 1000
    return found


def device_clocks() -> dict[str, int]:
    """[Hz] of what the system scales beside the processor: on a Jetson its GPU and memory controller."""
    found: dict[str, int] = {}
    for device in sorted((SYSTEM / "class/devfreq").glob("*")):
        with contextlib.suppress(OSError, ValueError):
            found[device.name] = int((device / "cur_freq").read_text())
    return found


def _throttled() -> bool | None:
    """Whether a processor counted throttling, or, on boards that cool by slowing down, anything is being cooled now."""
    counts = list((SYSTEM / "devices/system/cpu").glob("cpu*/thermal_throttle/core_throttle_count"))
    if not counts:
        counts = list((SYSTEM / "class/thermal").glob("cooling_device*/cur_state"))
        counts = [c for c in counts if "fan" not in (_read(str(c.with_name("type"))) or "")]
    return any(_read(str(c)) not in ("0", None) for c in counts) if counts else None


def _gpu() -> str | None:
    cards = the_driver().cards
    return cards[0].name if cards else None


def _cpu_name() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal"):
            return int(line.split()[1]) / 1e6
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _command(words: list[str]) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
