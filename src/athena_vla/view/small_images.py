"""Images as they are looked at: no wider than asked, as JPEG; and as many of them as a page has room for."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla.errors import AthenaError
from athena_vla.view.timeline import CameraTrack

QUALITY = 75  # of JPEG, out of 100
TRIED = 3  # images of a camera that its size is estimated from


@dataclass(frozen=True)
class Strip:
    """Images of one camera: the frames that they are of, and what could not be decoded."""

    name: str
    frames: tuple[int, ...]
    images: tuple[bytes, ...]  # JPEG
    count: int  # recorded
    broken: tuple[int, ...] = ()  # frames that were wanted and cannot be decoded

    def thinned(self) -> "Strip":
        """Every second image, the first one always."""
        return Strip(self.name, self.frames[::2], self.images[::2], self.count, self.broken)

    @property
    def bytes(self) -> int:
        return sum(map(len, self.images))


def jpeg(image: NDArray[np.uint8], width: int) -> bytes:
    """The image as JPEG, made smaller where it is wider than `width` [px]."""
    picture = PillowImage.fromarray(image)
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def strips_of(cameras: Sequence[CameraTrack], width: int, room: float) -> list[Strip]:
    """Every k-th image of each camera, with the least k for which all of them fit into `room` [bytes]."""
    needed = 0.0
    for camera in cameras:
        places = np.unique(np.linspace(0, len(camera.times) - 1, TRIED).round().astype(int)).tolist()
        tried = _strip(camera, places if len(camera.times) else [], width)
        needed += tried.bytes / max(len(tried.images), 1) * len(camera.times)
    every = max(1, int(np.ceil(needed / max(room, 1.0))))
    strips = [_strip(c, range(0, len(c.times), every), width) for c in cameras]
    while sum(s.bytes for s in strips) > room and any(len(s.images) > 1 for s in strips):
        strips = [s.thinned() for s in strips]
    return strips


def _strip(camera: CameraTrack, places: Sequence[int], width: int) -> Strip:
    frames, images, broken = [], [], []
    for place in places:
        try:
            images.append(jpeg(camera.frames[place], width))
            frames.append(place)
        except AthenaError:  # counted, and said on the page; the check names each of them
            broken.append(place)
    return Strip(camera.name, tuple(frames), tuple(images), len(camera.times), tuple(broken))
