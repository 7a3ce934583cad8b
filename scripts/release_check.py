"""What has to hold before a release: `make release-check`, some ten minutes on two cores.

The version stands in one place and agrees with CHANGELOG.md. A wheel goes into a fresh environment without this clone;
there all data of the package is found, `athena demo --quick` runs, and so does the notebook in examples/.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "train,sim,export,serve"
NOTEBOOK = ROOT / "examples" / "from_recordings_to_a_policy.ipynb"
# What is no Python and yet needed: asked for in the installed package, where a forgotten file is missing.
INSIDE = """
import json
from importlib import resources
from pathlib import Path
import athena_vla
from athena_vla import Bundle, known_robots, load_robot
root = Path(str(resources.files("athena_vla")))
assert "site-packages" in root.parts, root
robots = [load_robot(name).name for name in known_robots()]
base = Bundle.open("builtin:base")
base.verify()
from athena_vla.check.findings import RULES
files = sum(1 for f in root.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc"))
print(json.dumps({"version": athena_vla.__version__, "robots": len(robots), "codes": len(RULES), "data files": files}))
"""
VERSION = re.compile(r'^__version__ = "(\d+\.\d+\.\d+)"$', re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where wheel, environment and runs go, and stay")
    parser.add_argument("--only-version", action="store_true", help="nothing but the version and the changelog")
    options = parser.parse_args()
    version = the_version()
    print(f"version {version}: in one place, and in CHANGELOG.md", flush=True)
    if options.only_version:
        return
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
        checked(options.work.resolve(), version)
        return
    with tempfile.TemporaryDirectory() as name:
        checked(Path(name), version)


def the_version() -> str:
    """The version, which stands in src/athena_vla/version.py alone, and has a heading of its own in CHANGELOG.md."""
    found = VERSION.findall((ROOT / "src/athena_vla/version.py").read_text())
    if len(found) != 1:
        fail("src/athena_vla/version.py does not hold one version.")
    version = found[0]
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if not headings or headings[0] != version:
        fail(f"CHANGELOG.md's newest release is {headings[:1] or 'none'}, the version is {version}.")
    cited = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    if cited != [version]:
        fail(f"CITATION.cff says {cited}, the version is {version}.")
    return version


def checked(work: Path, version: str) -> None:
    wheel = built(work)
    python = environment(work, wheel)
    said = json.loads(run(python, "-c", INSIDE, at=work).splitlines()[-1])
    if said["version"] != version:
        fail(f"The wheel says version {said['version']}.")
    print(f"installed without the clone: {said}", flush=True)
    began = time.monotonic()
    run(python.with_name("athena"), "demo", "--quick", "--out", work / "demo", at=work)
    if not (work / "demo" / "report.html").is_file():
        fail("athena demo --quick left no report.")
    print(f"athena demo --quick: {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    shutil.copy(NOTEBOOK, work)
    words = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output", "executed.ipynb", NOTEBOOK.name]
    run(python, *words, at=work)
    print(f"notebook: {time.monotonic() - began:.0f} s", flush=True)
    print("release-check: everything holds")


def built(work: Path) -> Path:
    shutil.rmtree(work / "wheel", ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work / "wheel", ROOT, at=work)
    wheel = next((work / "wheel").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [n for n in names if n.split("/")[0] in ("tests", "benchmarks", "scripts", "plugins", "examples")]
    if foreign:
        fail(f"The wheel holds what is no part of the package: {', '.join(foreign[:3])}.")
    missing = [
        str(f.relative_to(ROOT / "src"))
        for f in (ROOT / "src/athena_vla").rglob("*")
        if f.is_file() and "__pycache__" not in f.parts and str(f.relative_to(ROOT / "src")) not in names
    ]
    if missing:
        fail(f"The wheel lacks {', '.join(missing[:5])}.")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {len(names)} files", flush=True)
    return wheel


def environment(work: Path, wheel: Path) -> Path:
    """A fresh one. Packages are those of constraints.txt, as a user of the release gets them from the page."""
    place = work / "environment"
    shutil.rmtree(place, ignore_errors=True)
    run(sys.executable, "-m", "venv", place, at=work)
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    run(*pip, f"{wheel}[{EXTRAS}]", "nbconvert", "ipykernel", at=work)
    return python


def run(*words: object, at: Path) -> str:
    surroundings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    said = [str(w) for w in words]
    done = subprocess.run(said, capture_output=True, text=True, cwd=at, env=surroundings, check=False)
    if done.returncode:
        fail(f"{' '.join(said[:6])} ended with status {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout


def fail(sentence: str) -> None:
    sys.exit(f"release-check: {sentence}")


if __name__ == "__main__":
    main()
