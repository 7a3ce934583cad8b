"""Our files against the real packages, each in an environment of its own: `make interop`.

lerobot (0.6.1, on Python 3.12) opens a set we built and sets we converted, video and single pictures, and sees the
same numbers and pictures as our reader; its own converter upgrades the v2.1 sets we write; its own evaluation plays a
bundle through plugins/lerobot_policy_athena, every action equal to the bundle's. Its pins (torch < 2.12,
numpy < 2.3) exclude the package's own, hence the separate environment. `--python` names a Python 3.12.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
LEROBOT = "lerobot==0.6.1"
# Pictures as files, in records, in HDF5; h264 and AV1 video; numbers only. [Hz] where the recording does not say.
SOURCES: dict[str, float | None] = {
    "athena_isaac_folder_gr1": None,
    "rlds_bridge_octo_debug": 5.0,
    "isaaclab_arena_layout_camera/derived_gr1_camera.hdf5": 20.0,
    "gr1_pnp_v20": None,
    "g1_inspire_v21": None,
    "isaaclab_hdf5/franka_stack_mimic_annotated.hdf5": None,
}
NEEDS = (
    "torch>=2.9,<2.12", "datasets>=4,<5", "huggingface_hub>=1.6,<2", "av>=15,<16", "numpy>=2,<2.3", "pandas", "pyarrow",
    "draccus>=0.11.6,<0.12", "jsonlines", "packaging>=24.2,<26", "pillow<13", "einops", "deepdiff",
    "gymnasium>=1.1.1,<2", "accelerate", "imageio", "opencv-python-headless<4.14", "termcolor", "safetensors",
    "requests", "tqdm",
)  # fmt: skip


# What an exported bundle needs to act there, and what builds the plug-in.
ACTING = (
    "msgpack", "websockets", "tyro>=1.0.17", "h5py", "google-crc32c", "jinja2>=3.1", "onnxruntime>=1.23,<2",
    "tokenizers", "jaxtyping>=0.2.34", "rich", "hatchling", "editables",
)  # fmt: skip
PLUGIN = HERE.parent / "plugins" / "lerobot_policy_athena"


def environment(folder: Path, interpreter: str) -> Path:
    """The Python of an environment with lerobot; made where it does not exist yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        # --no-deps: only its dataset code is used.
        plugin = ["--no-deps", "--no-build-isolation", "-e", str(PLUGIN)]
        for packages in (["--no-deps", LEROBOT, "torchvision<0.27"], [*NEEDS, *ACTING], plugin):
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def as_a_policy(python: Path, work: Path) -> None:
    """An exported bundle as a policy of lerobot. Raises AssertionError."""
    from athena_vla.export import ExportConfig, export

    export(ExportConfig(input=Path("builtin:base"), out=work / "exported", compare=False))
    surroundings = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), "HF_HUB_OFFLINE": "1"}
    words = [python, HERE / "lerobot_policy.py", work / "exported", work]
    done = subprocess.run(words, capture_output=True, text=True, env=surroundings, check=False)
    if done.returncode:
        sys.exit(f"lerobot failed on the plug-in:\n{done.stderr[-3000:]}")
    print(f"lerobot plays a bundle: {done.stdout.splitlines()[-1]}")


def ask(python: Path, *words: str) -> object:
    """The answer of interop/lerobot_opens.py."""
    surroundings = {**os.environ, "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, HERE / "lerobot_opens.py", *words], capture_output=True, text=True, env=surroundings, check=False
    )
    if done.returncode:
        sys.exit(f"lerobot failed on {words}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(python: Path, root: Path) -> None:
    """lerobot's view of a set against ours. Raises AssertionError."""
    from athena_vla.recordings.convert import NO_TEXT
    from athena_vla.recordings.formats import open_recording

    seen = ask(python, "opens", str(root))
    assert isinstance(seen, dict)
    recording = open_recording(root)
    first, last = recording.read(recording.ids()[0]), recording.read(recording.ids()[-1])
    assert seen["episodes"] == len(recording.ids())
    assert seen["frames"] == recording.info().frames
    assert seen["task"] == (*first.instructions, NO_TEXT)[0]
    assert np.allclose(seen["first_action"], first.actions[0], atol=1e-7)
    assert np.allclose(seen["last_action"], last.actions[-1], atol=1e-7)
    for key, (shape, mean) in seen["pictures"].items():
        image = first.cameras[key.removeprefix("observation.images.")][0]
        assert shape == [3, *image.shape[:2]]
        assert abs(mean - image.mean() / 255) < 0.01
    print(f"lerobot opens {root.name}: {seen['episodes']} episodes, {seen['frames']} frames, same numbers and pictures")


def upgraded(python: Path, root: Path) -> None:
    """A v2.1 set of ours after lerobot's own converter: every number as it was before. Raises AssertionError."""
    from athena_vla.recordings.convert import NO_TEXT
    from athena_vla.recordings.formats import open_recording

    recording = open_recording(root)
    before = [recording.read(i) for i in recording.ids()]
    first = [{k: v[0] for k, v in e.cameras.items()} for e in before[:1]]
    assert ask(python, "upgrades", str(root)) == len(before)
    after = open_recording(root)
    assert after.info().version == "v3.0"
    for i, (a, b) in enumerate(zip(before, after.episodes(), strict=True)):
        assert a.actions.tobytes() == np.ascontiguousarray(b.actions).tobytes(), f"episode {i}"
        assert a.states.tobytes() == np.ascontiguousarray(b.states).tobytes(), f"episode {i}"
        assert (a.instructions or (NO_TEXT,)) == b.instructions  # our sidecar does not survive their converter
    one = after.read(after.ids()[0])
    assert all(np.array_equal(picture, one.cameras[k][0]) for k, picture in first[0].items())
    compare(python, root)


def published(root: Path, folder: Path) -> Path:
    """A set of ours after `athena push` and `athena pull`, by way of the stand-in for the Hub that the tests use."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from hub_commands import Commands
    from hub_stand_in import Hub

    folder.mkdir()
    with Hub() as hub:
        commands = Commands(folder, hub, apart=True)
        commands.does("push", root, "tester/set", "--license", "unknown")
        commands.does("pull", "tester/set", "pulled")
    return folder / "pulled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=HERE.parent / ".venv-lerobot")
    parser.add_argument("--python", default="python3.12", help="the interpreter the environment is made with")
    arguments = parser.parse_args()
    python = environment(arguments.environment, arguments.python)
    if not SHARED.is_dir():
        sys.exit(f"The real recordings are not at '{SHARED}'; there is nothing to compare.")
    from athena_vla.dataset.dataset import BuildConfig, build
    from athena_vla.recordings.convert import ConvertConfig, convert

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = SHARED / "athena_isaac_folder_gr1"
        robot = {"robot": "athena", "allow": ("joint.outside",)}  # recorded on another body; only the files count here
        as_a_policy(python, folder)
        build(BuildConfig(input=source, out=folder / "built", image_size=(96, 96), **robot))
        compare(python, folder / "built")
        compare(python, published(folder / "built", folder / "hub"))
        for name, fps in SOURCES.items():
            out = folder / Path(name).stem
            convert(ConvertConfig(input=SHARED / name, out=out, fps=fps))
            compare(python, out)
            old = folder / f"{out.name}_v21"
            convert(ConvertConfig(input=SHARED / name, out=old, fps=fps, to="lerobot_v21"))
            upgraded(python, old)


if __name__ == "__main__":
    main()
