"""The demo's images: sheets of recordings, and episodes side by side. Files for the report, captions as data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from athena_vla import files
from athena_vla.evaluate.film import Film, Mark
from athena_vla.recordings.episode import Episode, Recording
from athena_vla.report import embedded_media as media

FRAMES_PER_SHEET = 6
GREEN, GREY, GOAL = (34, 160, 96), (150, 156, 164), (255, 214, 64)
SMOOTH = 3  # marks are drawn so many times larger, then made small


class Picture(TypedDict):
    """A file of the report, and how large it is shown: width, height [px]."""

    file: str
    size: list[int]


class Animation(Picture):
    """A moving image, and its last frame as a file of its own."""

    still: str


class Sheet(Picture):
    """Frames of one recorded episode, from start to end."""

    episode: str
    instruction: str
    seconds: float
    success: bool | None


def contact_sheets(recording: Recording, folder: Path, count: int, kind_of: Any = None) -> list[Sheet]:
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
    sheets = list[Sheet]()
    for episode in episodes:
        frames = next(iter(episode.cameras.values()))
        picks = [frames[round(i * (len(frames) - 1) / (FRAMES_PER_SHEET - 1))] for i in range(FRAMES_PER_SHEET)]
        strip = media.beside([media.resized(p, 128) for p in picks], gap=3)
        path = files.write_bytes(folder / f"recording-{episode.id}.webp", media.still(strip))
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


def frame_strip(episode: Episode, folder: Path, count: int = 12) -> Picture:
    """Evenly spaced frames of one episode, to lie under its timeline."""
    frames = next(iter(episode.cameras.values()))
    picks = [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]
    strip = media.beside([media.resized(p, 90) for p in picks], gap=0)
    path = files.write_bytes(folder / f"timeline-{episode.id}.webp", media.still(strip))
    return {"file": path.name, "size": [strip.shape[1], strip.shape[0]]}


def episode_frames(film: Film, length: int) -> list[NDArray[np.uint8]]:
    """Both views in one frame, the goal ringed, a tick from success on; held to `length` frames.

    The bar under them shows the elapsed time and turns green on success.
    """
    frames = []
    for i in range(length):
        k = min(i, len(film.outside) - 1)
        outside = film.outside[k]
        eye = media.resized(film.eyes[k], outside.shape[0])
        views = [ringed(v, m) for v, m in zip((outside, eye), film.goals[k], strict=True)]
        frame = np.concatenate(views, axis=1)
        if film.succeeded[k]:
            frame = ticked(frame)
        bar = np.full((6, frame.shape[1], 3), 225, np.uint8)
        bar[:, : round(frame.shape[1] * (k + 1) / length)] = GREEN if film.succeeded[k] else GREY
        frames.append(np.concatenate([frame, bar], axis=0))
    return frames


def ringed(image: NDArray[np.uint8], mark: Mark | None) -> NDArray[np.uint8]:
    """The image with a ring, drawn smooth: dark under light, so that it shows on any colour."""
    if mark is None:
        return image
    height = image.shape[0]
    x, y, radius = (v * height * SMOOTH for v in (mark.across, mark.down, mark.radius))

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for colour, wide in (((20, 30, 40), 5), (GOAL, 3)):
            reach = radius + wide / 2 * SMOOTH
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=wide * SMOOTH)

    return _drawn(image, draw)


def ticked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with a green tick in its upper left corner."""
    size = max(10, image.shape[0] // 7) * SMOOTH
    corner = size // 4

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.ellipse((corner, corner, corner + size, corner + size), fill=GREEN)
        line = [(0.26, 0.54), (0.44, 0.72), (0.76, 0.32)]
        pen.line([(corner + a * size, corner + b * size) for a, b in line], fill=(255, 255, 255), width=size // 8)

    return _drawn(image, draw)


def _drawn(image: NDArray[np.uint8], draw: Callable[[ImageDraw.ImageDraw], None]) -> NDArray[np.uint8]:
    """Drawn on a layer of several times the size, which is then made small again: edges come out smooth."""
    height, width = image.shape[:2]
    layer = Image.new("RGBA", (width * SMOOTH, height * SMOOTH))
    draw(ImageDraw.Draw(layer))
    small = layer.resize((width, height), Image.Resampling.BOX)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), small).convert("RGB"))


def save_animation(frames: list[NDArray[np.uint8]], fps: float, folder: Path, name: str) -> Animation:
    """The moving image and its last frame, for readers who prefer no motion."""
    moving = files.write_bytes(folder / f"{name}.webp", media.animation(frames, fps))
    still = files.write_bytes(folder / f"{name}-still.webp", media.still(frames[-1]))
    return {"file": moving.name, "still": still.name, "size": [frames[0].shape[1], frames[0].shape[0]]}
