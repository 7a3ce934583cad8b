"""Coarse brightness grids of a camera stream, frame by frame in order, at the least cost its storage allows."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla.data.episode import Frames
from athena_vla.data.formats.common import StillFrames, guarded
from athena_vla.data.formats.video import VideoFrames
from athena_vla.errors import RecordingError

CELLS = 60  # about this many samples along the shorter side

Grid = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """A coarse brightness grid, and a checksum of all the pixels it was taken from."""

    grid: Grid
    checksum: int
    is_key: bool = True  # False for a frame of a video that is coded as a change of the one before


def luma_grids(stream: Frames) -> Iterator[tuple[int, Look | RecordingError]]:
    """(index, look) of every frame; an undecodable frame yields its error and the rest go on."""
    if isinstance(stream, VideoFrames):
        yield from _video(stream)
        return
    for index in range(len(stream)):
        try:
            yield index, _still(stream, index)
        except RecordingError as error:
            yield index, error


def _still(stream: Frames, index: int) -> Look:
    if isinstance(stream, StillFrames):
        data = stream.encoded(index)
        with guarded(stream.describe(index)), PillowImage.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > 2**26:
                raise RecordingError(f"{stream.describe(index)} claims {picture.width}x{picture.height} pixels.")
            height, width = picture.height, picture.width
            # JPEG decodes at 1/2, 1/4 or 1/8 size almost for free.
            picture.draft("L", (max(width // 4, CELLS), max(height // 4, CELLS)))
            return Look(_sampled(np.asarray(picture.convert("L"), np.uint8)), zlib.crc32(data))
    image = stream[index]
    step = max(1, min(image.shape[:2]) // CELLS)
    small = image[::step, ::step].astype(np.float32)
    grid = (small @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return Look(grid, zlib.crc32(image.tobytes()))


def _sampled(grey: Grid) -> Grid:
    step = max(1, min(grey.shape) // CELLS)
    return np.ascontiguousarray(grey[::step, ::step])


def _video(stream: VideoFrames) -> Iterator[tuple[int, Look | RecordingError]]:
    """One forward decode; the brightness plane is sampled without converting the picture to RGB."""
    place = {int(t): i for i, t in enumerate(stream.times)}
    seen: set[int] = set()
    try:
        with guarded(f"video '{stream.path}'"), av.open(str(stream.path)) as container:
            source = container.streams.video[0]
            source.codec_context.thread_count = 1
            if len(stream.times) and stream.times[0] > 0:
                container.seek(int(stream.times[0]), stream=source, backward=True)
            for frame in container.decode(source):
                if frame.pts is None or frame.pts not in place:
                    if frame.pts is not None and len(stream.times) and frame.pts > stream.times[-1]:
                        break
                    continue
                index = place[frame.pts]
                seen.add(index)
                yield index, _plane(frame)
                if len(seen) == len(place):
                    break
    except RecordingError as error:
        for index in sorted(set(place.values()) - seen):
            yield index, error
        return
    for index in sorted(set(place.values()) - seen):
        yield index, RecordingError(f"Frame {index} of video '{stream.path}' cannot be decoded.")


def _plane(frame: av.VideoFrame) -> Look:
    if not frame.format.name.startswith(("yuv4", "yuvj4", "nv12", "gray")) or frame.format.name.endswith(("le", "be")):
        grey = frame.to_ndarray(format="gray")
        return Look(_sampled(grey), zlib.crc32(grey.tobytes()), bool(frame.key_frame))
    plane = frame.planes[0]
    grey = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    grid, checksum = _sampled(grey), zlib.crc32(plane)
    if frame.format.name.startswith(("yuvj", "gray")) or frame.color_range == 2:
        return Look(grid, checksum, bool(frame.key_frame))
    # Video range: black is 16 and white 235.
    return Look(
        np.clip((grid.astype(np.int16) - 16) * 255 // 219, 0, 255).astype(np.uint8), checksum, bool(frame.key_frame)
    )
