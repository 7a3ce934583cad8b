"""Small recordings in every format that is read, as their recorders lay them out; names to builders."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from athena_vla.recordings.convert import ConvertConfig, convert
from athena_vla.recordings.episode import Segment
from recordings import clean, pictures, write

LENGTH = 24


def isaaclab(root: Path, **changes: Any) -> Path:
    """format_version 1, Mimic signals, object poses, camera terms as uint8, normalised float and Arena's group."""
    rng = np.random.default_rng(0)
    path = root / "dataset.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["format_version"] = 1
        data = file.create_group("data")
        data.attrs["total"] = 2 * LENGTH
        data.attrs["env_args"] = json.dumps({"env_name": "X", "sim_args": {"dt": 0.005, "decimation": 10}})
        for name in ("demo_0", "demo_3"):
            demo = data.create_group(name)
            demo.attrs["num_samples"], demo.attrs["success"] = LENGTH, name == "demo_0"
            walk = np.cumsum(rng.normal(0, 0.05, (LENGTH + 1, 3)), axis=0).astype(np.float32)
            default = np.array([0.3, -0.2, 0.1], np.float32)
            demo["actions"] = rng.normal(size=(LENGTH, 3)).astype(np.float32)
            demo["processed_actions"] = rng.normal(size=(LENGTH, 3))
            demo["states/articulation/robot/joint_position"] = walk[1:] + default
            demo["initial_state/articulation/robot/joint_position"] = walk[:1] + default
            demo["states/rigid_object/cube/root_pose"] = rng.normal(size=(LENGTH, 7)).astype(np.float32)
            signal = np.arange(LENGTH) > 9
            demo["obs/datagen_info/subtask_term_signals/grasp"] = signal
            images = pictures(walk[:-1].astype(np.float64), 1)
            if changes.get("concatenated"):
                del demo["obs"]
                demo["obs"] = rng.normal(size=(LENGTH, 9)).astype(np.float32)
            else:
                demo["obs/joint_pos"] = walk[:-1]
                demo["obs/table_cam"] = images
                scaled = images.astype(np.float32) / 255
                demo["obs/wrist_cam"] = scaled - scaled.mean(axis=(1, 2), keepdims=True)
                demo["obs/bright_cam"] = scaled
            demo["camera_obs/head_rgb"] = images[:, ::2, ::2]
    return path


def concatenated(root: Path) -> Path:
    return isaaclab(root, concatenated=True)


def robomimic(root: Path) -> Path:
    rng = np.random.default_rng(1)
    path = root / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_0/actions"] = rng.normal(size=(LENGTH, 7))
        for demo in ("demo_0", "demo_1"):
            if demo == "demo_1":
                file["data/demo_1/actions"] = rng.normal(size=(LENGTH, 7))
            file[f"data/{demo}/states"] = rng.normal(size=(LENGTH, 32))
            file[f"data/{demo}/dones"] = np.zeros(LENGTH)
            file[f"data/{demo}/obs/robot0_joint_pos"] = rng.normal(size=(LENGTH, 7))
            file[f"data/{demo}/obs/agentview_image"] = pictures(rng.normal(size=(LENGTH, 3)), 0)
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0"]), np.array([b"demo_1"])
    return path


def xr_teleoperate(root: Path) -> Path:
    for number in (1, 2):
        folder = root / f"episode_{number:04d}"
        (folder / "colors").mkdir(parents=True)
        rows = []
        for i in range(LENGTH):
            colors = {f"color_{c}": f"colors/{i:06d}_color_{c}.jpg" for c in (0, 1)}
            for name in colors.values():
                Image.fromarray(np.full((16, 24, 3), 40 + 5 * i, np.uint8)).save(folder / name)
            arms = {side: {"qpos": [0.01 * i * number, 1 / (i + 3)]} for side in ("left_arm", "right_arm")}
            rows.append({"idx": i, "colors": colors, "states": arms, "actions": arms})
        info = {"version": "1.0", "image": {"fps": 30}, "joint_names": {"left_arm": ["kLeftA", "kLeftWristyaw"]}}
        raw = {"info": info,
               "text": {"goal": "stack the cups", "desc": "", "steps": "step1: reach; step2: grasp"},
               "data": rows}  # fmt: skip
        (folder / "data.json").write_text(json.dumps(raw))
    return root


def mobilitygen(root: Path) -> Path:
    (root / "state/common").mkdir(parents=True)
    (root / "state/rgb/front").mkdir(parents=True)
    for i in range(LENGTH):
        np.savez(root / f"state/common/{i:08d}.npz", joint_positions=np.array([i / 7, -i / 3, 0.1]))
        Image.fromarray(np.full((16, 24, 3), 5 * i, np.uint8)).save(root / f"state/rgb/front/{i:08d}.jpg")
    return root


def motion(root: Path) -> Path:
    rng = np.random.default_rng(2)
    positions = np.cumsum(rng.normal(0, 0.02, (LENGTH, 2)), axis=0).astype(np.float32)
    root.mkdir(parents=True, exist_ok=True)
    np.savez(root / "walk.npz", dof_names=np.array(["left_knee", "right_knee"]), dof_positions=positions, fps=60)
    return root


def replicator(root: Path) -> Path:
    """Two render products with a common output folder: <annotator>/<render_product>_rgb_0000.png; RGBA."""
    (root / "rgb").mkdir(parents=True)
    (root / "normals").mkdir()
    for i in range(LENGTH):
        for product in ("cam_left", "cam_right"):
            picture = Image.fromarray(np.full((16, 24, 4), 5 * i, np.uint8))
            picture.save(root / f"rgb/{product}_rgb_{i:04d}.png")
            picture.save(root / f"normals/{product}_normals_{i:04d}.png")
    return root


def isaac_folder(root: Path) -> Path:
    spans = (Segment(0, 10, "prepare", "reach", "human", 1.0), Segment(10, LENGTH, "manipulate", "lift", "human", 1.0))
    return write(root, replace(clean(0, length=LENGTH), segments=spans), clean(1, length=LENGTH, success=False))


def second_variant(root: Path) -> Path:
    for file in write(root, clean(0, length=LENGTH), clean(1, length=LENGTH)).glob("*/trajectory.npz"):
        with np.load(file) as arrays:
            np.savez(file.with_name("episode_data.npz"), actions=arrays["actions"], states=arrays["observations"])
        file.unlink()
    return root


def converted(to: Any, **options: Any) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        source = isaac_folder(root / "source")
        convert(ConvertConfig(input=source, out=root / "set", to=to, **options))
        shutil.rmtree(source)
        return root / "set"

    return build


def lerobot_v20(root: Path) -> Path:
    """GR00T's flavour: no frame_index, one stats.json, chunked by nothing, tasks of which one is no instruction."""
    path = converted("lerobot_v21", video=True)(root)
    info = json.loads((path / "meta/info.json").read_text())
    info |= {"codebase_version": "v2.0", "total_chunks": 0, "splits": {"train": "0:100"}, "unknown": {"a": 1}}
    (path / "meta/info.json").write_text(json.dumps(info))
    (path / "meta/episodes_stats.jsonl").unlink()
    (path / "meta/athena_recording.json").unlink()
    return path


def bag(root: Path) -> Path:
    """Without the topic that has a clock of its own: a table has no place for it."""
    from bags import write as write_bag

    return write_bag(root / "take", wrench=False)


FOREIGN: dict[str, Callable[[Path], Path]] = {
    "isaac_folder": isaac_folder,
    "isaac_folder, second variant": second_variant,
    "isaaclab": isaaclab,
    "isaaclab, concatenated": concatenated,
    "robomimic": robomimic,
    "lerobot v2.0, GR00T": lerobot_v20,
    "lerobot v2.1": converted("lerobot_v21"),
    "lerobot v2.1, video": converted("lerobot_v21", video=True),
    "lerobot v3.0": converted("lerobot_v3"),
    "lerobot v3.0, video and language": converted("lerobot_v3", video=True, language_columns=True),
    "rlds": converted("rlds"),
    "ros2_bag": bag,
    "xr_teleoperate": xr_teleoperate,
    "mobilitygen": mobilitygen,
    "motion_npz": motion,
    "replicator": replicator,
}


def build(name: str, folder: Path) -> Path:
    """The recording `name` below `folder`."""
    root = folder / "recording"
    root.mkdir(parents=True)
    return FOREIGN[name](root)
