"""The demo's pictures: sheets of recordings, and episodes side by side. Files for the report, captions as data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.episode import Episode, Recording
from athena_vla.report import embedded_media as media

FRAMES_PER_SHEET = 6
GREEN, GREY = (34, 160, 96), (150, 156, 164)


def contact_sheets(recording: Recording, folder: Path, count: int, kind_of: Any = None) -> list[dict[str, Any]]:
    """Strips of frames from start to end of `count` episodes of as many kinds as there are, and one that failed."""
    chosen: dict[str, Episode] = {}
    spare: list[Episode] = []
    for episode_id in recording.ids()[: 12 * count]:
        episode = recording.read(episode_id)
        kind = kind_of(episode) if kind_of else episode_id
        if kind not in chosen and len(chosen) < count and episode.cameras and episode.success is not False:
            chosen[kind] = episode
        elif episode.cameras:
            spare.append(episode)
    episodes = [*chosen.values(), *spare][:count]
    failed = next((e for e in spare if e.success is False), None)
    if failed is not None and failed not in episodes:
        episodes.append(failed)  # failures are part of every recording, so one is shown
    sheets = []
    for episode in episodes:
        frames = next(iter(episode.cameras.values()))
        picks = [frames[round(i * (len(frames) - 1) / (FRAMES_PER_SHEET - 1))] for i in range(FRAMES_PER_SHEET)]
        strip = media.beside([media.resized(p, 128) for p in picks], gap=3)
        path = media.write(folder / f"recording-{episode.id}.webp", media.still(strip))
        sheets.append(
            {
                "file": path.name,
                "episode": episode.id,
                "instruction": episode.instructions[0] if episode.instructions else "",
                "seconds": len(episode) / episode.fps,
                "success": episode.success,
                "size": [strip.shape[1], strip.shape[0]],
            }
        )
    return sheets


def frame_strip(episode: Episode, folder: Path, count: int = 12) -> dict[str, Any]:
    """Evenly spaced frames of one episode, to lie under its timeline."""
    frames = next(iter(episode.cameras.values()))
    picks = [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]
    strip = media.beside([media.resized(p, 90) for p in picks], gap=0)
    path = media.write(folder / f"timeline-{episode.id}.webp", media.still(strip))
    return {"file": path.name, "size": [strip.shape[1], strip.shape[0]]}


def episode_frames(
    outside: Sequence[NDArray[np.uint8]], eyes: Sequence[NDArray[np.uint8]], done: Sequence[bool], length: int
) -> list[NDArray[np.uint8]]:
    """Both views in one frame with a bar of the elapsed time that turns green on success; held to `length` frames."""
    frames = []
    for i in range(length):
        k = min(i, len(outside) - 1)
        eye = media.resized(eyes[k], outside[k].shape[0])
        frame = np.concatenate([outside[k], eye], axis=1)
        bar = np.full((6, frame.shape[1], 3), 225, np.uint8)
        bar[:, : round(frame.shape[1] * (k + 1) / length)] = GREEN if done[k] else GREY
        frames.append(np.concatenate([frame, bar], axis=0))
    return frames


def save_animation(frames: list[NDArray[np.uint8]], fps: float, folder: Path, name: str) -> dict[str, Any]:
    """The moving picture and its last frame, for readers who prefer no motion."""
    moving = media.write(folder / f"{name}.webp", media.animation(frames, fps))
    still = media.write(folder / f"{name}-still.webp", media.still(frames[-1]))
    return {"file": moving.name, "still": still.name, "size": [frames[0].shape[1], frames[0].shape[0]]}
