"""What this machine has, what of the toolkit works on it, what is missing, and the one command that adds it.

Looks only; imports of heavy packages happen in subprocesses with a time limit, so that a broken one cannot hang it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from athena_vla.extras import extra_of, install, reinstall
from athena_vla.gate import Gate
from athena_vla.machine import board, is_jetson

Status = Literal["ok", "missing", "broken", "info", "slow"]
MINIMUM_DISK = 4 * 2**30  # [bytes] for the demo: recordings, dataset, checkpoints and exported graphs

# Package on the index -> the import that shows it works. Kept small on purpose: one line per capability.
PROBES = {
    "torch": "import torch; torch.ones(2) @ torch.ones(2)",
    "peft": "import peft",
    "mujoco": "import os; os.environ['MUJOCO_GL'] = 'disable'; import mujoco",
    "onnxruntime": "import onnxruntime",
    "onnx": "import onnx",
    "openvino": "import openvino",
    "bitsandbytes": "import bitsandbytes",
    "ray": "import ray",
    "mcap": "import mcap",
    "tensorrt": "import tensorrt",
    "rclpy": "import rclpy",
}
# What needs torch, in the order of one interpreter; the last two are no packages.
SHARED = {
    "torch": PROBES["torch"],
    "precision": (
        "from athena_vla.models.precision import fastest, sentence, training_device; "
        "place = training_device(); said = f'trains in {fastest(place)}: {sentence(place)}'"
    ),
    "GEMV kernel": "from athena_vla.models.weights.gemv_kernel import kernel; said = str(kernel() is not None)",
    "bitsandbytes": PROBES["bitsandbytes"],
    "peft": PROBES["peft"],
}
_SHARED_CODE = """
import json
for name, code in {probes!r}:
    seen, problem = {{}}, ""
    try:
        exec(code, seen)
    except BaseException as error:
        problem = f"{{type(error).__name__}}: {{error}}"[:200]
    print(json.dumps([name, str(seen.get("said", "")), problem]), flush=True)
"""
PURPOSE = {
    "torch": "models and training",
    "peft": "LoRA and DoRA",
    "mujoco": "the embedded simulator",
    "onnxruntime": "exported graphs",
    "onnx": "export",
    "openvino": "the faster CPU backend",
    "bitsandbytes": "QLoRA and 8-bit AdamW",
    "ray": "datasets and rollouts on a cluster",
    "mcap": "deployment logs as MCAP",
    "tensorrt": "engines on the device",
    "rclpy": "the ROS 2 node",
}
NOT_FROM_AN_EXTRA = {
    "tensorrt": "it comes with JetPack, or from NVIDIA's packages",
    "rclpy": "it comes with a ROS 2 installation: source its setup.bash",
}
OPTIONAL = {"openvino", "bitsandbytes", "ray", "mcap", "tensorrt", "rclpy"}


@dataclass(frozen=True)
class DoctorConfig:
    """Look at this machine."""

    out: Path = Path("runs")
    """Folder that results go to; its disk is the one that is looked at."""
    timeout: float = 60.0
    """Longest time one package may take to import [s]; one that takes longer is called slow, not broken."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All checks; `exit_status` is 0 when the demo can run."""

    checks: tuple[Check, ...]

    @property
    def exit_status(self) -> int:
        return int(any(c.status in ("missing", "broken") and c.name not in OPTIONAL for c in self.checks))

    def to_dict(self) -> dict[str, object]:
        return {"checks": [vars(c) for c in self.checks], "demo_can_run": self.exit_status == 0}

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.checks)
        mark = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN ", "slow": "slow   ", "info": "       "}
        lines = []
        for c in self.checks:
            lines.append(f"{mark[c.status]}  {c.name:<{width}}  {c.found}")
            if c.fix:
                lines.append(f"{'':<{width + 11}}-> {c.fix}")
        lines.append("The demo can run." if self.exit_status == 0 else "The demo cannot run yet; see the arrows.")
        return "\n".join(lines)


def doctor(config: DoctorConfig) -> DoctorReport:
    """Look at the machine, its renderers and its packages."""
    checks = [*machine(config.out), gpu()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the work is in subprocesses
        shared = pool.submit(together, config.timeout)
        alone = pool.map(
            lambda n: package(n, attempted(PROBES[n], config.timeout)), [n for n in PROBES if n not in SHARED]
        )
        drawn = pool.submit(renderer, config.timeout)
        looked = shared.result()
        found = {n: package(n, looked[n]) for n in PROBES if n in SHARED} | {c.name: c for c in alone}
        checks += [found[n] for n in PROBES]
        checks.append(drawn.result())
    checks += [precision(looked["precision"]), gemv_kernel(looked["GEMV kernel"]), browser()]
    return DoctorReport(tuple(checks))


@dataclass(frozen=True)
class Looked:
    """What came of a probe: what it said, what went wrong, or why nothing is known."""

    said: str = ""
    problem: str = ""
    slow: str = ""


def together(timeout: float) -> dict[str, Looked]:
    """The probes that all need torch, in one interpreter, since each import of it takes over a second.

    Where that interpreter ends early, each of the rest is asked in one of its own.
    """
    found: dict[str, Looked] = {}
    try:
        done = interpreted(_SHARED_CODE.format(probes=list(SHARED.items())), timeout)
        for line in done.stdout.splitlines():
            if line.startswith("["):
                name, said, problem = json.loads(line)
                found[name] = Looked(said, problem)
    except TimeoutError:
        pass
    return {name: found.get(name) or attempted(code, timeout) for name, code in SHARED.items()}


def attempted(code: str, timeout: float) -> Looked:
    """One probe in a fresh interpreter."""
    try:
        done = interpreted(f"{code}\nprint(globals().get('said', ''))", timeout)
    except TimeoutError as error:
        return Looked(slow=str(error))
    if done.returncode == 0:
        return Looked(done.stdout.strip())
    lines = done.stderr.strip().splitlines()
    return Looked(problem=lines[-1][:200] if lines else f"the interpreter ended with status {done.returncode}")


def machine(out: Path) -> list[Check]:
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    gate = Gate.at_least("disk", free / 2**30, MINIMUM_DISK / 2**30, "GiB")
    disk = Check(
        gate.name,
        "ok" if gate.passed else "missing",
        f"{gate.value:.1f} GiB free at {place}",
        "" if gate.passed else f"free {gate.limit:.0f} GiB, or choose another folder with --out",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return [
        Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("cpu", "info", f"{cores} cores, {cpu_model()}"),
        Check("memory", "info", memory()),
        disk,
    ]


def cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown model"


def memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"


def gpu() -> Check:
    """NVIDIA GPUs by the driver's own tool, and the device tree's word on a Jetson."""
    if is_jetson():
        return Check("gpu", "ok", board())
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "info", "none; the demo needs none. Fine-tuning openvla-7b needs one with 24 GB")
    ask = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return Check("gpu", "info", f"nvidia-smi is there but does not answer: {error}")
    return Check("gpu", "ok", "; ".join(answer.strip().splitlines()))


def package(name: str, looked: Looked) -> Check:
    """Installed, and does it import? In a subprocess: some packages abort the process where they fail."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        fix = NOT_FROM_AN_EXTRA.get(name) or install(extra_of().get(name, "train"))
        return Check(name, "missing", f"not installed ({PURPOSE[name]})", fix)
    if looked.slow:
        # A first import from a cold or busy disk takes minutes; that is no reason to call a package broken.
        return Check(name, "slow", f"{version}, whose import {looked.slow}", "ask again, or with a longer --timeout")
    if looked.problem:
        return Check(name, "broken", f"{version} does not import: {looked.problem}", reinstall(name))
    return Check(name, "ok", f"{version} ({PURPOSE[name]})")


def renderer(timeout: float) -> Check:
    """The ray caster works wherever MuJoCo imports; OpenGL is a bonus that a probe must show."""
    looked = attempted("import os; os.environ['MUJOCO_GL'] = 'disable'; import mujoco", timeout)
    if looked.slow:
        return Check("renderer", "slow", f"MuJoCo's import {looked.slow}", "ask again, or with a longer --timeout")
    if looked.problem:
        return Check("renderer", "missing", f"none: {looked.problem}", install("sim"))
    probe = "import os; os.environ['MUJOCO_GL'] = '{}'; import mujoco; mujoco.GLContext(64, 64).make_current()"
    opengl = [name for name in ("egl", "osmesa") if works(probe.format(name), timeout)]
    also = f"; OpenGL through {', '.join(opengl)} works too" if opengl else "; no OpenGL, none needed"
    return Check("renderer", "ok", f"ray caster{also}")


def precision(looked: Looked) -> Check:
    """Whether bfloat16 is native here: where it is emulated, training in it takes hours instead of minutes."""
    if looked.slow:
        return Check("precision", "slow", f"torch's import {looked.slow}", "ask again, or with a longer --timeout")
    return Check("precision", "info", "unknown without torch" if looked.problem else looked.said)


def gemv_kernel(looked: Looked) -> Check:
    """Of large packed models on a CPU: optional, and built by a C compiler at its first use."""
    if os.environ.get("ATHENA_GEMV_KERNEL") != "1":
        said = "off: export a 4-bit model to decode it on a CPU, or set ATHENA_GEMV_KERNEL=1"
        return Check("GEMV kernel", "info", said)
    without = "none: no C compiler builds it (apt-get install gcc)"
    return Check("GEMV kernel", "info", "compiles and loads" if looked.said == "True" else without)


def browser() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((n for n in names if shutil.which(n)), None)
    return Check("browser", "info", found or "no Chromium; only the page tests use one (apt-get install chromium)")


def works(code: str, timeout: float) -> bool:
    """Does the code run within that time?"""
    looked = attempted(code, timeout)
    return not (looked.problem or looked.slow)


def interpreted(code: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Code in a fresh interpreter. Raises `TimeoutError`."""
    try:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"did not finish within {timeout:.0f} s") from error
