"""Record demonstrations in Isaac Lab for Athena-VLA. Copy this file beside your script; it needs numpy and Pillow only.

    from isaac_lab_recorder import Recorder

    recorder = Recorder(env, "recordings", instruction="put the cube into the bin", cameras=("front",))
    env.reset()
    recorder.start()
    while simulation_app.is_running():
        action = teleoperation.advance()
        recorder.step(action)          # in place of env.step(action)
        if operator_says_done:
            recorder.save(success=True)   # or recorder.discard()
            env.reset()
            recorder.start()

One folder per episode: names of joints, joint positions, the targets that the controller was given, images, rate,
limits, instruction, success. `athena data info recordings` reads it. Environment 0 is recorded.

Tested with a stand-in that has the attributes used here; never run inside Isaac Lab.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Recorder:
    """Steps an environment and keeps what happened; nothing is at its name before it is whole."""

    def __init__(
        self,
        env: Any,
        out: str | os.PathLike[str],
        *,
        instruction: str,
        robot: str = "robot",
        cameras: tuple[str, ...] = (),
    ) -> None:
        """`robot` and `cameras` are names of the scene. Raises `ValueError` for one that the scene does not have."""
        self.env = env
        self.out = Path(out)
        self.instruction = instruction
        scene = env.unwrapped.scene
        known = list(scene.keys())
        for name in (robot, *cameras):
            if name not in known:
                raise ValueError(f"The scene has no '{name}'; it has {', '.join(known)}.")
        self.robot = scene[robot]
        self.cameras = {name: scene[name] for name in cameras}
        self.rows: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []

    def start(self) -> None:
        """Begin an episode; call it after every reset."""
        self.rows = []

    def step(self, action: Any) -> Any:
        """`env.step(action)`, with what was seen before it and what the controller was told.

        The row in which an episode ends is not kept: the environment has been reset by then, and with it the targets.
        """
        state = _numbers(self.robot.data.joint_pos)
        images = {name: _pixels(camera.data.output["rgb"]) for name, camera in self.cameras.items()}
        result = self.env.step(action)
        ended = any(bool(np.any(_numbers(flag, first=False))) for flag in result[2:4])
        if not ended:
            self.rows.append((state, _numbers(self.robot.data.joint_pos_target), images))
        return result

    def discard(self) -> None:
        """Forget the episode."""
        self.rows = []

    def save(self, success: bool | None = None, instruction: str | None = None) -> Path:
        """Write the episode and return its folder; `success` None means that nobody judged it."""
        if not self.rows:
            raise ValueError("There is no row to save: call start() after reset, and step() in place of env.step().")
        self.out.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name.rsplit("_", 1)[1]) for p in self.out.glob("episode_*") if p.name[8:].isdigit()]
        folder = self.out / f"episode_{max(taken, default=-1) + 1:04d}"
        partial = self.out / f".{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        names = list(self.robot.joint_names)
        rate = 1.0 / float(self.env.unwrapped.step_dt)
        np.savez(
            partial / "trajectory.npz",
            actions=np.stack([target for _, target, _ in self.rows]),
            observations=np.stack([state for state, _, _ in self.rows]),
            timestamps=np.arange(len(self.rows)) / rate,
        )
        for camera in self.cameras:
            (partial / "images" / camera).mkdir(parents=True)
            for i, (_, _, images) in enumerate(self.rows):
                Image.fromarray(images[camera]).save(partial / "images" / camera / f"rgb_{i:04d}.png", compress_level=1)
        limits = _numbers(self.robot.data.soft_joint_pos_limits)
        metadata = {
            "instructions": [instruction or self.instruction],
            "fps": rate,
            "joint_names": names,
            "state_names": names,
            "cameras": list(self.cameras),
            "extras": {"limits": {n: [float(a), float(b)] for n, (a, b) in zip(names, limits, strict=True)}},
            **({} if success is None else {"success": bool(success)}),
        }
        (partial / "metadata.json").write_text(json.dumps(metadata, indent=1))
        partial.rename(folder)
        self.rows = []
        return folder


def _numbers(values: Any, *, first: bool = True) -> np.ndarray:
    """Environment 0 of a tensor `[N, ...]` on any device, as numpy."""
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return np.array(array[0] if first else array)


def _pixels(values: Any) -> np.ndarray:
    """uint8 `[H, W, 3]` of a camera's `rgb` output, which may have an alpha channel or be normalised."""
    image = _numbers(values)[..., :3]
    return image if image.dtype == np.uint8 else np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)
