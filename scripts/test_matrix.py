"""Install and run the unit tests with every Python from 3.10 to 3.13 that is found, and with the oldest packages.

    python scripts/test_matrix.py                    # or: make test-matrix
    python scripts/test_matrix.py --only 3.10 --tests tests/test_safety.py
    python scripts/test_matrix.py --only oldest

Each job has an environment of its own under `.matrix`, kept for the next time. `oldest` takes the lowest version that
pyproject.toml allows of every dependency, as uv resolves them, with the oldest Python found; torch comes with its CUDA
libraries there. Hours of one core in all: no part of continuous integration.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".matrix"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = "train,sim,export,serve,gpu,bags,isaaclab"
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype", "scipy")
ORACLES = ("transformers>=5", "datasets")  # they ask for newer packages than the oldest that we allow
OLDEST = "oldest"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*VERSIONS, OLDEST], help="Python versions, or oldest")
    parser.add_argument("--tests", nargs="*", default=[], help="test files; all of them without")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the environments")
    options = parser.parse_args()
    found = interpreters()
    rows: list[tuple[str, str]] = []
    for name in options.only:
        python = next(iter(found.values()), None) if name == OLDEST else found.get(name)
        if python is None:
            rows.append((name, "not found on this machine: not run"))
            continue
        print(f"== {name}: {python}", flush=True)
        rows.append((name, run(name, python, options.tests, options.work)))
    print("\n".join(f"{name:<8} {outcome}" for name, outcome in rows))
    return int(any("failed" in outcome for _, outcome in rows))


def interpreters() -> dict[str, str]:
    """Version -> interpreter, the oldest first: on PATH, or installed by pyenv or uv."""
    found: dict[str, str] = {}
    homes = [Path.home() / ".pyenv/versions", Path.home() / ".local/share/uv/python"]
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}") or ""]
        candidates += [str(p) for home in homes for p in sorted(home.glob(f"*{version}.*/bin/python{version}"))]
        python = next((c for c in candidates if c and works(c, version)), None)
        if python:
            found[version] = python
    return found


def works(python: str, version: str) -> bool:
    """A name on PATH may be pyenv's shim for a version that is not chosen."""
    ask = [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def run(name: str, python: str, tests: list[str], work: Path) -> str:
    """One job; a line that says what came of it."""
    environment = work / name
    if not (environment / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
    own = environment / "bin" / "python"
    pip = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
    # The pip of an old Python's venv searches without end; av from source needs ffmpeg's headers.
    subprocess.run([*pip, "--upgrade", "pip"], check=False)
    pip += ["--only-binary", "av"]
    started = time.monotonic()
    package = f"{ROOT}[{EXTRAS}]"
    if name == OLDEST:
        subprocess.run([*pip, "uv"], check=True)
        uv = [str(own.with_name("uv")), "pip", "install", "--quiet", "--python", str(own)]
        only = ["--only-binary", ":all:", "--no-binary", "athena-vla"]
        first = [*uv, "--resolution", "lowest-direct", *only, "-e", package]
    else:
        constraints = environment / "constraints.txt"
        constraints.write_text(pins(name))
        first = [*pip, "-c", str(constraints), "-e", package, *TOOLS]
    if subprocess.run(first, check=False).returncode:
        return "failed to install"
    # In a second call: with all the pins beside them pip's search for the oracles does not end. What is there stays.
    more = TOOLS if name == OLDEST else ORACLES
    if subprocess.run([*pip, *more], check=False).returncode:
        print(f"{', '.join(more)} could not be installed; what needs them is skipped", flush=True)
    installed = time.monotonic() - started
    words = [str(own), "-m", "pytest", "-p", "no:cacheprovider", *tests]
    # Deprecations of other versions are no failures here; the suite's own filter makes warnings errors.
    done = subprocess.run([*words, "-W", "default"], cwd=ROOT, env=clean(), check=False)
    seconds = time.monotonic() - started - installed
    outcome = "passed" if done.returncode == 0 else f"failed (status {done.returncode})"
    return f"{outcome}; installed in {installed:.0f} s, tests took {seconds:.0f} s"


def clean() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def pins(version: str) -> str:
    """The constraints of a version: 3.10 has its own, since newer packages have left it."""
    name = "constraints-py310.txt" if version == "3.10" else "constraints.txt"
    return (ROOT / name).read_text()


if __name__ == "__main__":
    sys.exit(main())
