"""Recordings to look at, written by h5py alone, and pages read back without the code that wrote them.

Not a test module: helpers for those of `athena data view`.
"""

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image as PillowImage

LENGTH = 40
RATE = 10.0  # [Hz]
JOINTS = ("base", "shoulder", "finger")


def demonstrations(path: Path, count: int = 2, length: int = LENGTH, size: tuple[int, int] = (48, 64)) -> Path:
    """A robomimic file whose images are of one grey each, 5 times the number of their frame (modulo 250)."""
    rng = np.random.default_rng(0)
    time = np.arange(length)[:, None] / RATE
    with h5py.File(path, "w") as file:
        for number in range(count):
            demo = f"data/demo_{number}"
            actions = 0.5 * np.sin(time + rng.uniform(0, 6, 3)) + np.array([0.0, 0.1, 0.3])
            file[f"{demo}/actions"] = actions
            file[f"{demo}/states"] = np.zeros((length, 4))
            file[f"{demo}/dones"] = np.zeros(length)
            file[f"{demo}/obs/robot0_joint_pos"] = actions + rng.normal(0, 0.01, actions.shape)
            grey = (5 * np.arange(length) % 250).astype(np.uint8)
            file[f"{demo}/obs/front_image"] = np.broadcast_to(grey[:, None, None, None], (length, *size, 3))
    return path


@dataclass(frozen=True)
class Page:
    """One page as a browser gets it."""

    text: str
    data: Any  # what its script reads
    shared: Any

    @classmethod
    def read(cls, path: Path) -> "Page":
        text = path.read_text()
        return cls(text, _json(text, "data"), _json(text, "shared"))

    def grey(self, camera: int, place: int) -> float:
        """Mean brightness of an image."""
        encoded = base64.b64decode(self.data["cameras"][camera]["images"][place])
        return float(np.asarray(PillowImage.open(io.BytesIO(encoded)).convert("RGB")).mean())

    def plot(self, name: str) -> str:
        """The drawing of one column."""
        found = re.search(rf'<svg[^>]*aria-label="{re.escape(name)}">.*?</svg>', self.text, re.S)
        assert found, name
        return found[0]

    def order(self) -> list[str]:
        """Names of the columns in the order of `data`."""
        pairs = re.findall(r'aria-label="([^"]*)"><g.*?data-column="(\d+)"', self.text, re.S)
        return [name for name, _ in sorted(pairs, key=lambda p: int(p[1]))]

    def column(self, name: str, kind: str) -> np.ndarray[Any, Any]:
        """Values that are read off at the slider's stops."""
        return np.array(self.data["columns"][self.order().index(name)][kind], np.float64)


def strokes(drawing: str, kind: str) -> list[np.ndarray[Any, Any]]:
    """Points of each stroke of a kind, in px."""
    found = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', drawing)
    return [np.array([[float(v) for v in p.split(",")] for p in points.split()]) for points in found]


def _json(text: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    return json.loads(found[1]) if found else None
