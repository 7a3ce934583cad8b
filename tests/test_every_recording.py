"""Every recording through every data command, as a user types them: it works, or one sentence says why not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from athena_vla import cli
from foreign import FOREIGN, build

TARGETS = ("lerobot_v3", "lerobot_v21", "rlds", "isaac_folder")
SMALL = (
    "isaaclab_arena_layout_camera/derived_gr1_camera.hdf5",
    "humanoid_amp_npz",
    "athena_isaac_folder_g1_noimages",
    "robot_g1_23dof",
    "isaaclab_hdf5",
    "athena_book",
)
LARGE = (
    "g1_locomanip_arena_v21_novideo",
    "gr1_pnp_v20",
    "gr1_native_v30",
    "g1_inspire_v21",
    "g1_inspire_v30",
    "athena_isaac_folder_gr1",
    "isaaclab_hdf5/franka_stack_mimic_generated.hdf5",
    "isaaclab_hdf5/franka_stack_mimic_annotated.hdf5",
    "isaaclab_hdf5/indy7_reach_recorded.hdf5",
    "rlds_bridge_octo_debug",
)
NO_RECORDING = ("robot_g1_23dof", "isaaclab_hdf5", "athena_book")


class User:
    """Types commands; no traceback is ever shown, and what failed left nothing."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def types(self, *words: str | Path) -> tuple[int, str]:
        """(status, standard output)"""
        with pytest.raises(SystemExit) as stop:
            cli.main([str(w) for w in words])
        said = self.capsys.readouterr()
        status = int(stop.value.code or 0)
        if status == 2 and words[1] != "check":
            told = json.loads(said.out)["error"]["message"] if "--json" in words else said.err.removeprefix("athena: ")
            assert "--json" in words or said.err.startswith("athena: "), said.err
            assert len(told.strip().splitlines()) == 1
        return status, said.out


def walk(user: User, source: Path, folder: Path) -> None:
    readable, text = user.types("data", "info", source, "--json")
    info = json.loads(text) if readable == 0 else {}
    status, text = user.types("data", "check", source, "--json", "--page", folder / "page.html")
    findings = json.loads(text)["findings"]
    assert status == (2 if readable else int(any(f["severity"] == "error" for f in findings)))
    assert user.types("data", "align", source)[0] == readable
    assert user.types("data", "annotate", source, "--out", folder / "notes.json")[0] == readable
    looked = ("--show", "pages", "--most", "2", "--out", folder / "view")
    assert user.types("data", "view", source, *looked)[0] == readable
    assert (folder / "view" / "index.html").exists() == (readable == 0)
    if readable:
        assert user.types("data", "build", source, folder / "set", "--robot", "athena")[0] == 2
        return
    assert {"format", "episodes", "frames", "rate", "duration", "success", "tasks", "joints", "cameras"} <= set(info)
    assert len(json.loads((folder / "notes.json").read_text())["episodes"]) == info["episodes"]
    for target in TARGETS:
        out = folder / target
        status, _ = user.types("data", "convert", source, out, "--to", target)
        assert out.exists() == (status == 0)
        if status == 0:
            after = json.loads(user.types("data", "info", out, "--json")[1])
            assert (after["episodes"], after["frames"]) == (info["episodes"], info["frames"])
            shutil.rmtree(out)
    status, _ = user.types("data", "build", source, folder / "set", "--robot", "athena", "--workers", "1")
    assert (folder / "set").exists() == (status == 0)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_a_real_recording(shared, tmp_path, capsys, name):
    source = shared / "data" / name
    if not source.exists():
        pytest.skip(f"'{name}' is not among the recordings here")
    user = User(capsys)
    walk(user, source, tmp_path)
    assert (user.types("data", "info", source)[0] == 2) == (name in NO_RECORDING)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_recording_of_each_format(tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    walk(User(capsys), build(name, tmp_path), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["athena_isaac_folder_gr1", "a LeRobot set of it"])
def test_it_trains_in_place(shared, tmp_path, name):
    source = shared / "data/athena_isaac_folder_gr1"
    if name != "athena_isaac_folder_gr1":
        cli.run(["data", "convert", str(source), str(tmp_path / "set"), "--joints", "athena"])
        source = tmp_path / "set"
    words = ["train", "--preset", "demo", "--data", str(source), "--robot", "athena", "--out", str(tmp_path / "tuned")]
    done = subprocess.run(
        [sys.executable, "-m", "athena_vla.cli", *words, "--max-steps", "2"],
        capture_output=True, text=True, check=False, timeout=900,
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
             "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "tuned/manifest.json").is_file() or list((tmp_path / "tuned").rglob("manifest.json"))
