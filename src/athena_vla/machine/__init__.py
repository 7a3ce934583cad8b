"""What this machine says of itself: the board's name, and the most memory a process held. Asks, and guesses nothing.

The word Jetson appears only where the device tree says so.
"""

import resource
import sys
from pathlib import Path

DEVICE_TREE = Path("/proc/device-tree/model")
STATUS = Path("/proc/self/status")
_KIB = 1024e-9  # [GB]


def board() -> str:
    """The board's name from the device tree; empty where there is none."""
    try:
        return DEVICE_TREE.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def is_jetson() -> bool:
    """Some modules name themselves 'NVIDIA Orin ..' without the word."""
    name = board().lower()
    return "jetson" in name or ("nvidia" in name and "orin" in name)


def peak_resident_gb() -> float:
    """[GB] largest resident memory of this process so far; `ru_maxrss` would carry over the parent's."""
    try:
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux, or not all of it
        unit = 1e-9 if sys.platform == "darwin" else _KIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(line.split()[1]) * _KIB
