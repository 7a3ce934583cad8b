"""What `make setup` decides before it downloads, and that every supported platform's packages resolve."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = {
    "linux-x86-64": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
    "linux-aarch64": ["manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"],
    "macos-arm64": ["macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"],
}


@pytest.fixture
def install(monkeypatch):
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    for name in ("has_card", "is_jetson", "installed", "answers"):
        monkeypatch.setattr(script, name, lambda *a, **k: False)
    return script


def test_a_machine_without_a_card_takes_the_cpu_build_where_its_index_answers(install, monkeypatch) -> None:
    assert install.torch_index("linux") == (
        "",
        f"no NVIDIA card here, but {install.CPU_INDEX} did not answer within 5 s: pip decides on torch's build",
    )
    monkeypatch.setattr(install, "answers", lambda url: url == "https://download.pytorch.org/whl/cpu/torch/")
    index, why = install.torch_index("linux")
    assert index == install.CPU_INDEX
    assert "1.7 GB" in install.announced("train,sim", index, why)
    for change in ("has_card", "is_jetson", "installed"):
        with monkeypatch.context() as one:
            one.setattr(install, change, lambda *a: True)
            assert install.torch_index("linux")[0] == "", change
    assert install.torch_index("darwin")[0] == ""
    monkeypatch.setenv("TORCH_INDEX", "https://mirror.example/cpu")
    assert install.torch_index("linux")[0] == "https://mirror.example/cpu"
    monkeypatch.setenv("TORCH_INDEX", "default")
    assert install.torch_index("linux")[0] == ""


def test_an_index_that_does_not_answer_costs_seconds(monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        started = time.monotonic()
        assert not script.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/torch/", 0.5)
        assert time.monotonic() - started < 3
    assert not script.answers("http://127.0.0.1:9/torch/", 0.5)
    assert not script.answers("no address", 0.5)


def test_pins_are_those_of_the_constraints(install) -> None:
    for name in ("constraints.txt", "constraints-py310.txt"):
        assert re.fullmatch(r"torch==2\.\d+\.\d+", install.pinned("torch", ROOT / name))
    assert (
        "torch==" + install.pinned("torch", ROOT / "constraints.txt").partition("==")[2]
        in (ROOT / "docs" / "installation.md").read_text()
    ), "the page names another torch"


@pytest.mark.slow
@pytest.mark.parametrize(("python", "constraints"), [("3.12", "constraints.txt"), ("3.10", "constraints-py310.txt")])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_packages_resolve_on(tmp_path, platform: str, python: str, constraints: str) -> None:
    """pip's own resolver, wheels only, nothing installed; needs the package index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = project["dependencies"]
    wanted = [r for e in ("train", "sim", "export", "serve") for r in project["optional-dependencies"][e]]
    # An index may hold a build of torch for one platform only; its own resolution is pip's on that platform.
    wanted = [r for r in wanted if not r.startswith("torch")]
    words = ["--dry-run", "--ignore-installed", "--quiet", "--only-binary", ":all:", "--no-deps"]
    words += ["--target", str(tmp_path), "--python-version", python, "-c", str(ROOT / constraints)]
    for tag in PLATFORMS[platform]:
        words += ["--platform", tag]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, *core, *wanted], capture_output=True, text=True, check=False
    )
    if "NewConnectionError" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]


def glibc(newest: int) -> list[str]:
    """Tags of 64-bit ARM wheels that a system with glibc 2.`newest` takes."""
    return ["manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in range(17, newest + 1))]


BOARDS = {"JetPack 6.2": ("3.10", glibc(35)), "JetPack 7.2": ("3.12", glibc(39))}


def resolved(tmp_path: Path, python: str, tags: list[str], wanted: list[str]) -> dict[str, str]:
    """Name -> version of everything that pip would install for another machine, wheels only."""
    words = ["--dry-run", "--ignore-installed", "--quiet", "--only-binary", ":all:", "--report", "-"]
    words += ["--target", str(tmp_path), "--python-version", python, "--implementation", "cp"]
    for tag in tags:
        words += ["--platform", tag]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *words, *wanted], capture_output=True, text=True, check=False
    )
    if "NewConnectionError" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    from packaging.specifiers import SpecifierSet

    told = [i["metadata"] for i in report["install"]]
    # pip asks this of its own interpreter; here of the one that will run.
    wrong = [f"{m['name']} {m['version']}" for m in told if python not in SpecifierSet(m.get("requires_python") or "")]
    assert not wrong, f"not for Python {python}: {wrong}"
    return {m["name"].lower(): m["version"] for m in told}


def needs(*extras: str, python: str) -> list[str]:
    """Requirements of the package with these extras; markers are judged by pip for the interpreter that runs it."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])]
    read = [Requirement(r) for r in every]
    kept = [r for r in read if r.marker is None or r.marker.evaluate({"python_version": python})]
    return [f"{r.name}{r.specifier}" for r in kept]


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_a_board_gets_wheels_for_all_it_needs_and_no_torch(tmp_path: Path, board: str) -> None:
    """Core, an exported bundle's engine and the server, with all that they need, by pip's own resolver."""
    python, tags = BOARDS[board]
    constraints = str(ROOT / ("constraints-py310.txt" if python == "3.10" else "constraints.txt"))
    found = resolved(tmp_path, python, tags, ["-c", constraints, *needs("runtime", "serve", python=python)])
    assert "torch" not in found
    assert not [n for n in found if n.startswith("nvidia")]
    onnxruntime = tuple(int(n) for n in found["onnxruntime"].split("."))
    assert onnxruntime >= (1, 23)  # what the default 4-bit bundle needs
    if python == "3.10":
        assert found["onnxruntime"] == "1.23.2", "the page names the last one for Python 3.10"


@pytest.mark.slow
def test_onnx_runtime_with_cuda_is_to_be_had_for_the_newer_board_from_pypi(tmp_path: Path) -> None:
    python, tags = BOARDS["JetPack 7.2"]
    assert "onnxruntime-gpu" in resolved(tmp_path, python, tags, ["onnxruntime-gpu>=1.23,<2"])


@pytest.mark.slow
def test_every_pin_of_the_oldest_python_can_be_had_by_it(tmp_path: Path) -> None:
    """A pin of something that has left Python 3.10 stops an installation that needs it, whoever asks for it."""
    lines = (ROOT / "constraints-py310.txt").read_text().splitlines()
    pins = [w for w in lines if "==" in w and not w.startswith(("#", "torch=="))]
    tags = [f"manylinux_2_{n}_x86_64" for n in range(17, 36)]
    found = resolved(tmp_path, "3.10", ["manylinux2014_x86_64", *tags], ["--no-deps", *pins])
    assert len(found) == len(pins)
