"""Images of one topic of a ROS 2 bag, raw or compressed, read from the bag when they are asked for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Image
from athena_vla.recordings.formats.bags.bag_messages import BagReader, kept_open, time_of
from athena_vla.recordings.formats.common import decode_image, guarded, is_depth_image

CHANNELS = {  # encodings of colour images: bytes a pixel, and which of them are red, green and blue
    "rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)), "8UC3": (3, (2, 1, 0)), "8UC1": (1, (0, 0, 0)),
}  # fmt: skip
DEEP = ("16UC1", "32FC1", "mono16")


@dataclass(frozen=True)
class BagImages:
    """Images of one topic, read from the bag when they are asked for."""

    path: Path
    topic: str
    times: NDArray[np.float64]  # [N] [s]
    logged: tuple[int, ...]  # [N] when each was written, which is how it is found again
    place: NDArray[np.intp] | None = None  # [T] image of each row

    @classmethod
    def of(cls, path: Path, bag: BagReader, topic: str) -> "BagImages | None":
        """None where the topic holds depth. Raises `RecordingError` for an encoding that is not read."""
        times: list[float] = []
        logged: list[int] = []
        for found in bag.messages((topic,)):
            if not times:
                if _is_depth(found.message):
                    return None
                _pixels(found.message, topic)
            times.append(time_of(found.message, found.time))
            logged.append(found.time)
        if not times:
            raise RecordingError(f"Topic '{topic}' of '{path}' holds no image.")
        order = np.argsort(times, kind="stable")
        return cls(path, topic, np.array(times)[order], tuple(logged[i] for i in order))

    def rows(self, place: NDArray[np.intp]) -> "BagImages":
        return BagImages(self.path, self.topic, self.times, self.logged, place)

    def __len__(self) -> int:
        return len(self.times if self.place is None else self.place)

    def __getitem__(self, index: int, /) -> Image:
        number = index if self.place is None else int(self.place[index])
        when = self.logged[number]
        with guarded(f"image {number} of '{self.topic}' in '{self.path}'"):
            for found in kept_open(self.path, os.getpid()).messages((self.topic,), when, when + 1):
                return _pixels(found.message, self.topic)
        raise RecordingError(f"Image {number} of '{self.topic}' is no longer in '{self.path}'.")


def _is_depth(message: Any) -> bool:
    if hasattr(message, "encoding"):
        return message.encoding in DEEP
    return "Depth" in message.format or is_depth_image(bytes(message.data))


def _pixels(message: Any, topic: str) -> Image:
    """uint8 `[H, W, 3]` of an Image or a CompressedImage."""
    if not hasattr(message, "encoding"):
        return decode_image(bytes(message.data), f"an image of '{topic}'")
    if message.encoding not in CHANNELS:
        known = ", ".join(CHANNELS)
        raise RecordingError(f"Topic '{topic}' has images of encoding '{message.encoding}'; read are {known}.")
    width, order = CHANNELS[message.encoding]
    rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)
    return rows[:, : message.width * width].reshape(message.height, message.width, width)[..., list(order)]
