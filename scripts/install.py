"""Install this clone with extras into the interpreter that runs this script; says size and time before it downloads.

    python scripts/install.py train,sim,export,serve

pip's default torch is a build for NVIDIA cards with several GB of libraries. A machine without a card gets torch's CPU
build from torch's own public index, when that answers within seconds; TORCH_INDEX=URL names another index, and
TORCH_INDEX=default leaves the choice to pip. Standard library only: nothing is installed yet.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5.0  # [s] for the index to answer
DEVICE_TREE = Path("/proc/device-tree/model")


def main() -> int:
    extras = sys.argv[1] if len(sys.argv) > 1 else "train,sim,export,serve"
    version = sys.version_info[:2]
    if not (3, 10) <= version < (3, 14):
        print(
            f"Python {platform.python_version()} is not supported: take 3.10 to 3.13, as in make PYTHON=python3.12 ..."
        )
        return 2
    constraints = ROOT / ("constraints-py310.txt" if version == (3, 10) else "constraints.txt")
    index, why = torch_index() if "train" in extras.split(",") else ("", "")
    print(f"== installing athena-vla[{extras}] into {sys.prefix}: {announced(extras, index, why)}", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
    started = time.monotonic()
    if index:
        # Only torch itself: the index also holds older copies of other packages.
        done = subprocess.run([*pip, "--no-deps", "--index-url", index, pinned("torch", constraints)], check=False)
        if done.returncode:
            print("== that index has no torch for this machine: pip's default build is taken, several GB", flush=True)
    done = subprocess.run([*pip, "-c", str(constraints), "-e", f"{ROOT}[{extras}]"], check=False)
    if done.returncode == 0:
        print(f"== installed in {time.monotonic() - started:.0f} s", flush=True)
    return done.returncode


def torch_index(system: str = sys.platform, machine: str = platform.machine()) -> tuple[str, str]:
    """The index to take torch from, "" for pip's own choice; and why."""
    asked = os.environ.get("TORCH_INDEX", "")
    if asked:
        return ("", "as TORCH_INDEX asks") if asked == "default" else (asked, f"torch from {asked}")
    if system != "linux":
        return "", "torch's default build here is for the processor"
    if is_jetson():
        return "", "a Jetson's torch comes from NVIDIA: see docs/installation.md"
    if has_card():
        return "", "torch's build for NVIDIA cards"
    if installed("torch"):
        return "", "torch is there already"
    if answers(f"{CPU_INDEX}/torch/"):
        return CPU_INDEX, "no NVIDIA card here, so torch's CPU build"
    return (
        "",
        f"no NVIDIA card here, but {CPU_INDEX} did not answer within {PATIENCE:.0f} s: pip decides on torch's build",
    )


def announced(extras: str, index: str, why: str) -> str:
    if "train" not in extras.split(","):
        return "no torch, so less than a minute on most lines"
    if index or "already" in why:
        return f"{why}; about 1.7 GB on disk, 2 to 4 minutes"
    if "cards" in why:
        return f"{why}; several GB to download"
    return f"{why}; 1.7 GB on disk and 2 to 4 minutes with a CPU build, several GB more with one for NVIDIA cards"


def has_card() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def is_jetson() -> bool:
    try:
        name = DEVICE_TREE.read_text(errors="replace").lower()
    except OSError:
        return False
    return "jetson" in name or ("nvidia" in name and "orin" in name)


def installed(package: str) -> bool:
    ask = [sys.executable, "-c", f"from importlib.metadata import version; version('{package}')"]
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


def answers(url: str, patience: float = PATIENCE) -> bool:
    """Whether a server answers in time; a look-up of its name may hang for longer than any time limit of a socket."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=patience) as reply:
                found.append(reply.status < 400)
        except (OSError, urllib.error.URLError, ValueError):
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(found and found[0])


def pinned(package: str, constraints: Path) -> str:
    """The package with the version that the constraints name."""
    found = re.search(rf"^{package}==\S+", constraints.read_text(), re.MULTILINE)
    return found[0] if found else package


if __name__ == "__main__":
    sys.exit(main())
