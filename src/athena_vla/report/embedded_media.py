"""Images for the page: still strips, animations, and data URIs. Knows arrays of pixels, nothing of robots."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from athena_vla.errors import EvaluationError

Pixels = NDArray[np.uint8]  # [height, width, 3] RGB
TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


def resized(image: Pixels, height: int) -> Pixels:
    """The image at another height [px], same aspect; smooth in both directions."""
    if image.shape[0] == height:
        return image
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def beside(images: Sequence[Pixels], gap: int = 4, shade: int = 255) -> Pixels:
    """Images of one height in a row."""
    spacer = np.full((images[0].shape[0], gap, 3), shade, np.uint8)
    parts = [p for image in images for p in (image, spacer)][:-1]
    return np.concatenate(parts, axis=1)


def evenly(frames: Sequence[Pixels], count: int) -> list[Pixels]:
    """`count` frames from first to last; fewer where there are fewer."""
    if len(frames) <= count:
        return list(frames)
    return [frames[round(i * (len(frames) - 1) / (count - 1))] for i in range(count)]


def still(image: Pixels, quality: int = 82) -> bytes:
    """A WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def animation(frames: Sequence[Pixels], fps: float, *, quality: int = 70, hold_last: float = 1.2) -> bytes:
    """An endless animated WebP; the last frame stays for `hold_last` seconds before it starts again."""
    if not frames:
        raise EvaluationError("An animation needs at least one frame.")
    pictures = [Image.fromarray(f) for f in frames]
    times = [round(1000 / fps)] * len(pictures)
    times[-1] += round(1000 * hold_last)
    # Two equal frames in a row would be merged with their durations, which is what we want.
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=quality, method=3
    )
    return buffer.getvalue()


def data_uri(path: Path) -> str:
    """The file inside the page. Raises `EvaluationError` for a missing or unknown file."""
    if path.suffix not in TYPES:
        raise EvaluationError(f"'{path}' cannot be shown in the report. Known: {', '.join(TYPES)}.")
    if not path.is_file():
        raise EvaluationError(f"The report needs '{path}', which is gone; run the step that made it again.")
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
