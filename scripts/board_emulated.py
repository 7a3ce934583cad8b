"""The robot's side on aarch64 by user-mode emulation: filter, wire and a small exported bundle, with Debian's Python.

    make board-emulated          # needs root for debootstrap once; Debian packages debootstrap, qemu-user-static

Proves numbers, not speed: an emulated processor says nothing of a board's. What lies in build/board is used again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = "qemu-aarch64-static"
PACKAGES = "python3,libpython3-stdlib,libstdc++6,libgomp1"
EXTRAS = ("runtime", "serve")  # and the core: what a board gets that serves an exported bundle
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)  # minor versions that Debian 12's C library serves
RUNTIMES = ("1.23.2", "newest")  # the last one for Python 3.10, which is JetPack 6.2's, and what pip takes elsewhere
# What the libraries ask: an emulator passes on the host's, and onnxruntime 1.31 crashes on that.
PROCESSOR = """processor\t: {}
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""  # a Cortex-A78AE, as on an Orin
ABOUT_A_BIT = 1e-12  # [rad] other instructions may round the last bits of a pose otherwise
FILTER = """
import sys
import numpy as np
from athena_vla import embodiment
from athena_vla.control.safety import SafetyFilter
robot, said = embodiment.load("athena"), {}
for jerk in (False, True):
    draw = np.random.default_rng(3)
    guard = SafetyFilter(robot, jerk=jerk)
    guard.reset(robot.default)
    commands = [robot.default]
    target = robot.default
    for k in range(2000 if jerk else 6000):
        if k % 20 == 0:
            target = draw.uniform(robot.lower - 1, robot.upper + 1)
        commands.append(guard.step(target, k / robot.command_hz))
    said["jerk" if jerk else "plain"] = np.array(commands)
np.savez(sys.argv[1], **said)
"""

ACT = """
import json, sys
from pathlib import Path
import numpy as np
from athena_vla.bundle import Bundle
from athena_vla.policy import Policy, replay
from athena_vla.wire.client import RemotePolicy
from athena_vla.wire.server import PolicyServer, background
bundle = Bundle.open(Path(sys.argv[1]))
policy = Policy.load(bundle.path, "onnxruntime", device="cpu")
frames = bundle.golden.observations
chunks = policy.chunks(frames)
with background(PolicyServer(policy, policy.robot)) as server:
    with RemotePolicy(server.address, policy.robot, timeout=300) as remote:
        served = np.stack([remote.act(frames[0]).positions])
np.savez(sys.argv[2], chunks=chunks, served=served)
worst = float(np.abs(chunks - bundle.golden.chunks).max())
assert "torch" not in sys.modules
took = str(policy.engine.taken)
print(json.dumps({"golden replay, worst joint [rad]": worst, "frames": len(frames), "engine": took}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "board", help="800 MB")
    parser.add_argument("--suite", default="bookworm", help="Debian's release: bookworm has Python 3.11")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "board_emulated.json")
    options = parser.parse_args()
    missing = [p for p in ("debootstrap", EMULATOR, "dpkg-deb") if shutil.which(p) is None]
    if missing:
        wanted = "apt-get install debootstrap qemu-user-static"
        sys.exit(f"board-emulated: not run. {', '.join(missing)} is not here: {wanted}")
    board = Board(options.work, options.suite)
    report = {
        "command": "make board-emulated",
        "kind": "measured here, on an emulated processor: numbers, not speed",
        "host": platform.machine(),
        "emulated": board.facts(),
        "safety filter": filtered(board, options.work),
        "bundles": {
            f"{name}, onnxruntime {runtime}": acted(board, path, options.work, runtime)
            for name, path in bundles(options.work).items()
            for runtime in RUNTIMES
        },
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


class Board:
    """Debian's files for arm64 in a folder, wheels for its Python beside them; nothing is installed on this machine."""

    def __init__(self, work: Path, suite: str) -> None:
        self.files, self.libraries = work / suite, work / f"{suite}-libraries"
        if not self.files.is_dir():
            making = work / f".{suite}.partial"
            shutil.rmtree(making, ignore_errors=True)
            making.parent.mkdir(parents=True, exist_ok=True)
            run("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", suite, making)
            # The second stage would configure a system; a Python needs its files only.
            for package in sorted((making / "var/cache/apt/archives").glob("*.deb")):
                run("dpkg-deb", "-x", package, making)
            (making / "proc").mkdir(exist_ok=True)
            (making / "proc/cpuinfo").write_text("".join(PROCESSOR.format(i) for i in range(os.cpu_count() or 1)))
            making.rename(self.files)
        if not self.libraries.is_dir():
            making = work / f".{suite}-libraries.partial"
            shutil.rmtree(making, ignore_errors=True)
            version = self.python("-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
            tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC] + ["--platform=manylinux2014_aarch64"]
            pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:", *tags]
            pip += ["--python-version", version]
            run(*pip, "--target", making, "-c", ROOT / "constraints.txt", *requirements())
            older = making / "runtime" / RUNTIMES[0]
            run(*pip, "--target", older, "--no-deps", f"onnxruntime=={RUNTIMES[0]}")
            making.rename(self.libraries)

    def python(self, *words: object, runtime: str = "newest") -> str:
        """What the emulated Python prints."""
        own_runtime = [] if runtime == "newest" else [self.libraries / "runtime" / runtime]
        places = os.pathsep.join(map(str, (ROOT / "src", *own_runtime, self.libraries)))
        own = {"PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        return run(EMULATOR, "-L", self.files, self.files / "usr/bin/python3", *words, environment=own)

    def facts(self) -> dict[str, str]:
        names = ("machine", "python", "numpy", "onnxruntime, newest")
        code = "import platform, numpy, onnxruntime as o; print(platform.machine(), platform.python_version(), "
        code += "numpy.__version__, o.__version__)"
        return dict(zip(names, self.python("-c", code).splitlines()[-1].split(), strict=True))


def requirements() -> list[str]:
    """Of the core and the extras that a board gets."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(r for e in EXTRAS for r in project["optional-dependencies"][e])]


def filtered(board: Board, work: Path) -> dict[str, Any]:
    """Hostile targets through the filter, here and there."""
    import numpy as np

    from athena_vla import embodiment

    run(sys.executable, "-c", FILTER, work / "here.npz", environment={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    board.python("-c", FILTER, work / "there.npz")
    robot, report = embodiment.load("athena"), {}
    with np.load(work / "here.npz") as here, np.load(work / "there.npz") as there:
        for name in here.files:
            apart = float(np.abs(here[name] - there[name]).max())
            # By hand: the filter is not asked whether it kept the limits.
            velocity = np.diff(there[name], axis=0, prepend=there[name][:1]) * robot.command_hz
            acceleration = np.abs(np.diff(velocity, axis=0)) * robot.command_hz
            beyond = max(
                float((np.abs(velocity) - robot.max_velocity).max()),
                float((acceleration - robot.max_acceleration).max() / robot.command_hz),
                float((there[name] - robot.upper).max()),
                float((robot.lower - there[name]).max()),
            )
            assert apart <= ABOUT_A_BIT, f"the {name} filter commands other poses there: {apart} rad"
            assert beyond <= 1e-9, f"the {name} filter left the limits there by {beyond}"
            report[name] = {"steps": len(here[name]) - 1, "largest difference [rad]": apart, "beyond the limits": 0}
    return report


def bundles(work: Path) -> dict[str, Path]:
    """The shipped base, exported as it is and in 4 bits."""
    from athena_vla.export import ExportConfig, export
    from athena_vla.quantize import QuantizeConfig, quantize

    source = Path("builtin:base")
    if not (work / "float").is_dir():
        export(ExportConfig(input=source, out=work / "float", compare=False))
    if not (work / "int4").is_dir():
        shutil.rmtree(work / "quantised", ignore_errors=True)
        quantize(QuantizeConfig(source, work / "quantised", method="nearest", sensitivity=False, check=False))
        export(ExportConfig(input=work / "quantised", out=work / "int4", compare=False))
    return {"float": work / "float", "int4": work / "int4"}


def acted(board: Board, path: Path, work: Path, runtime: str) -> dict[str, Any]:
    """It acts and serves there: its answers beside this processor's and the golden ones."""
    import numpy as np

    from athena_vla.bundle import Bundle
    from athena_vla.policy import Policy

    record = json.loads(board.python("-c", ACT, path, work / "answers.npz", runtime=runtime).splitlines()[-1])
    here = Policy.load(path, "onnxruntime", device="cpu").chunks(Bundle.open(path).golden.observations)
    with np.load(work / "answers.npz") as answers:
        apart = float(np.abs(answers["chunks"] - here).max())
        assert np.array_equal(answers["chunks"][:1], answers["served"]), "what is served there is not what is computed"
    return {**record, "from this processor's answers [rad]": apart, "served as computed": True}


def run(*words: object, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"board-emulated: {words[0]} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
