"""Reads Isaac Sim Replicator BasicWriter trees as camera-only episodes: RGB images, numeric order, sequences apart.

There are no actions or joint states in these trees: they show and check cameras, they do not train a policy.
"""

import os
import re
from pathlib import Path

import numpy as np

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode, RecordingInfo
from athena_vla.recordings.formats.common import (
    IMAGE_SUFFIXES,
    BaseRecording,
    ImageFiles,
    OpenOptions,
    image_size,
    natural_key,
)
from athena_vla.recordings.notes import Note
from athena_vla.recordings.streams import Clock

NAME = "replicator"
RGB = re.compile(r"^(?:(?P<product>.+)_)?rgb_(?:(?P<sequence>\d+)_)?(?P<frame>\d+)\.(?:png|jpe?g)$", re.IGNORECASE)


def detect(path: Path) -> bool:
    """True where rgb_0000.png files lie flat, or below <render_product>/rgb/, with no trajectory beside them."""
    return path.is_dir() and bool(_folders(path))


def open_path(path: Path, options: OpenOptions) -> "Replicator":
    return Replicator(path, options)


def _folders(path: Path) -> list[tuple[str, Path]]:
    """(render product, folder) pairs that hold RGB images, at most two levels down."""
    found: list[tuple[str, Path]] = []
    for folder in [
        path,
        *sorted(p for p in path.glob("*") if p.is_dir()),
        *sorted(p for p in path.glob("*/*") if p.is_dir()),
    ]:
        if (folder / "metadata.json").is_file() or (folder.parent / "trajectory.npz").is_file():
            return []
        if any(RGB.match(e.name) for e in os.scandir(folder) if e.is_file()):
            parts = [p for p in folder.relative_to(path).parts if p not in ("rgb",)]
            found.append(("_".join(parts) or "camera", folder))
    return found


class Replicator(BaseRecording):
    """One output directory of a BasicWriter."""

    format = NAME

    def __init__(self, path: Path, options: OpenOptions) -> None:
        super().__init__(path, options)
        # sequence -> camera -> frame number -> file
        self.frames: dict[str, dict[str, dict[int, Path]]] = {}
        self.other = 0
        for product, folder in _folders(path):
            for entry in os.scandir(folder):
                match = RGB.match(entry.name)
                if match is None:
                    self.other += entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES)
                    continue
                camera = match["product"] or product
                sequence = f"sequence_{int(match['sequence'])}" if match["sequence"] else "sequence_0"
                place = self.frames.setdefault(sequence, {}).setdefault(camera, {})
                place[int(match["frame"])] = Path(entry.path)

    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.frames, key=natural_key))

    def read(self, episode_id: str, /) -> Episode:
        if episode_id not in self.frames:
            raise RecordingError(f"There is no sequence '{episode_id}' in '{self.path}'.")
        streams = self.frames[episode_id]
        first = min(min(f) for f in streams.values())
        last = max(max(f) for f in streams.values())
        length = last - first + 1
        if length > 100 * sum(len(f) for f in streams.values()) + 100_000:
            raise RecordingError(f"Frame numbers of '{self.path}' run from {first} to {last} with hardly an image.")
        cameras = {
            name: ImageFiles(tuple(files.get(first + i) for i in range(length)), f"camera '{name}' of '{self.path}'")
            for name, files in sorted(streams.items())
        }
        fps = self.options.fps
        return Episode(
            id=episode_id,
            clock=Clock.at_rate(length, fps) if fps else Clock.counted(length),
            joint_names=(),
            actions=np.zeros((length, 0), np.float32),
            state_names=(),
            states=np.zeros((length, 0), np.float32),
            cameras=cameras,
            source=f"{NAME}:{self.path}#{episode_id}",
        )

    def info(self) -> RecordingInfo:
        frames = 0
        cameras: dict[str, tuple[int, int]] = {}
        for streams in self.frames.values():
            frames += max(len(f) for f in streams.values())
            for name, files in streams.items():
                if name not in cameras:
                    path = files[min(files)]
                    cameras[name] = image_size(path, f"'{path}'")
        notes = [Note("pictures.only", "images only: no actions, no joint states, no clock")]
        if self.other:
            left = f"{self.other} images that are not RGB (segmentation, normals, depth) are left alone"
            notes.append(Note("camera.depth", left))
        return RecordingInfo(
            format=NAME,
            version="BasicWriter",
            robot="",
            joint_names=(),
            state_names=(),
            cameras=cameras,
            fps=self.options.fps or 0.0,
            episodes=len(self.frames),
            frames=frames,
            tasks=(),
            duration=frames / self.options.fps if self.options.fps else 0.0,
            successes=None,
            notes=tuple(notes),
        )
