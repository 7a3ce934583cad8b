"""The line that installs an extra can be run as it is printed, wherever this package came from."""

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from athena_vla import doctor, extras
from athena_vla.errors import MissingDependency

ROOT = Path(__file__).resolve().parents[1]


def test_a_clone_is_named_by_its_folder_and_its_own_interpreter() -> None:
    words = shlex.split(extras.install("sim,export"))
    assert words == [sys.executable, "-m", "pip", "install", "-e", f"{ROOT}[sim,export]"]
    assert {"sim", "export", "gpu"} <= set(metadata.metadata("athena-vla").get_all("Provides-Extra") or [])
    assert extras.install("gpu") in str(MissingDependency("bitsandbytes", "gpu", "for 4-bit weights"))


def test_a_wheel_is_named_by_its_file_and_an_index_by_the_packages(tmp_path, monkeypatch) -> None:
    wheel = tmp_path / "with space" / "athena_vla-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"")
    monkeypatch.setattr(extras, "_origin", lambda: wheel)
    assert shlex.split(extras.install("ros2"))[-1] == f"athena-vla[ros2] @ {wheel.as_uri()}"
    monkeypatch.setattr(extras, "_origin", lambda: None)
    words = shlex.split(extras.install("ros2"))[4:]
    assert sorted(w.partition(">")[0] for w in words) == ["mcap", "rosbags"]
    assert extras.extra_of()["yaml"] == "isaaclab"


def test_a_hint_wakes_no_import_hook(monkeypatch) -> None:
    """setuptools has a finder that warns when somebody looks for pip while distutils is loaded."""

    class Watching:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "pip":
                raise AssertionError("a finder was asked for pip")

    monkeypatch.setattr(sys, "meta_path", [Watching(), *sys.meta_path])
    assert shlex.split(extras.install("gpu"))[:4] == [sys.executable, "-m", "pip", "install"]


def test_without_pip_uv_is_told_the_interpreter(monkeypatch) -> None:
    monkeypatch.setattr(extras.PathFinder, "find_spec", lambda name: None)
    assert shlex.split(extras.install("sim"))[:5] == ["uv", "pip", "install", "--python", sys.executable]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["sim", "gpu", "wandb", "trackio"])
def test_the_line_runs_as_printed(extra: str) -> None:
    """Resolved and not installed; needs the package index."""
    done = subprocess.run(
        extras.install(extra) + " --dry-run --no-deps", shell=True, capture_output=True, text=True, check=False
    )
    if "NewConnectionError" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    assert "Would install athena-vla" in done.stdout


def test_doctor_names_the_same_line(monkeypatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    assert doctor.package("bitsandbytes", doctor.Looked()).fix == extras.install("gpu")
