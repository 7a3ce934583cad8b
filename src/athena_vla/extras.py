"""What installs another package: this package's extras, read from the installed metadata, and a line to run."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from urllib.parse import unquote

ROOT = "athena-vla"
# Distributions whose module has another name.
IMPORTED_AS = {"pyzmq": "zmq", "pyyaml": "yaml", "rerun-sdk": "rerun"}
_EXTRA = re.compile(r"([^;]+);.*\bextra\s*==\s*['\"]([\w-]+)['\"]")


@cache
def extra_of() -> dict[str, str]:
    """Module name -> the first extra that installs it; empty where the package's metadata cannot be found."""
    found: dict[str, str] = {}
    for extra, requirement in _requirements():
        if extra != "dev":
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
            found.setdefault(IMPORTED_AS.get(name, name.replace("-", "_")), extra)
    return found


def install(extras: str) -> str:
    """A shell line that adds extras, such as "train,sim", to this interpreter; no environment has to be active.

    From where this package itself came: a source tree, an archive, or an index.
    """
    origin = _origin()
    if origin is None:
        wanted = [r for e, r in _requirements() if e in extras.split(",")] or [f"{ROOT}[{extras}]"]
        return _pip(wanted)
    if origin.is_dir():
        return _pip(["-e", f"{origin}[{extras}]"])
    return _pip([f"{ROOT}[{extras}] @ {origin.as_uri()}"])


def reinstall(package: str) -> str:
    """A shell line that installs a package afresh."""
    return _pip(["--force-reinstall", "--no-deps", package])


def _pip(words: Sequence[str]) -> str:
    # Not `importlib.util.find_spec`: setuptools watches for pip there, and warns or fails where distutils is loaded.
    if PathFinder.find_spec("pip"):
        return shlex.join([sys.executable, "-m", "pip", "install", *words])
    return shlex.join(["uv", "pip", "install", "--python", sys.executable, *words])


def _requirements() -> list[tuple[str, str]]:
    """(extra, requirement) of every optional dependency."""
    try:
        lines = metadata.requires(ROOT) or []
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return []
    return [(m[2], m[1].strip()) for m in map(_EXTRA.match, lines) if m]


def _origin() -> Path | None:
    """The source tree or the archive that this package was installed from, where it is still there."""
    tree = Path(__file__).resolve().parents[2]
    if (tree / "pyproject.toml").is_file():
        return tree
    try:
        said = metadata.distribution(ROOT).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = str(json.loads(said).get("url", "")) if said else ""
    place = Path(unquote(url.removeprefix("file://")))
    return place if url.startswith("file://") and place.exists() else None
