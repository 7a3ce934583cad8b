"""Coarse brightness grids of a camera stream, frame by frame in order, at the least cost its storage allows."""

import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.plane import VideoPlane
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Frames, Image
from athena_vla.recordings.formats.common import StillFrames, decode_image, guarded
from athena_vla.recordings.media.video import VideoFrames

CELLS = 60  # about this many samples along the shorter side
STRETCH = 8  # frames that are decoded, or skipped, together at least
EVERY = 4  # one stretch in so many is decoded: at 30 Hz nothing unseen is longer than 0.8 s
NEIGHBOURS = 8  # key frames on either side that say which size is usual
USUAL = 1.5  # a key frame larger or smaller than its neighbours by this factor is worth a look
SMALL = 0.25  # and so is any other frame under this share of the usual: a repeated image codes to next to nothing

Grid = NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """A coarse brightness grid, and a checksum of all the pixels it was taken from."""

    grid: Grid
    checksum: int
    is_key: bool = True  # False for a frame of a video that is coded as a change of the one before


def luma_grids(stream: Frames, sampled: bool = False) -> Iterator[tuple[int, Look | RecordingError]]:
    """(index, look) of every frame in order; an undecodable frame yields its error, the rest go on.

    `sampled`: of a video, only the frames of `intervals_to_decode`.
    """
    if isinstance(stream, VideoFrames):
        yield from _video(stream, sampled)
        return
    before: _Still | None = None
    for index in range(len(stream)):
        try:
            before = _still(stream, index, before)
        except RecordingError as error:
            yield index, error
        else:
            yield index, before.look


@dataclass(frozen=True)
class _Still:
    """A look at a single image, and what shows at little cost that the next one is the same."""

    look: Look
    index: int = 0
    stored: int = -1  # checksum of the stored bytes; -1: all pixels were decoded anyway
    reduced: int = -1  # of the pixels that were decoded


def _still(stream: Frames, index: int, before: _Still | None) -> _Still:
    """`before` is the image before. Two images are the same if their pixels are, whatever else their files hold."""
    if not isinstance(stream, StillFrames):
        return _Still(_pixels(stream[index]))
    data = stream.encoded(index)
    with guarded(stream.describe(index)), PillowImage.open(io.BytesIO(data)) as picture:
        if picture.width * picture.height > 2**26:
            raise RecordingError(f"{stream.describe(index)} claims {picture.width}x{picture.height} pixels.")
        if picture.format != "JPEG":
            return _Still(_pixels(decode_image(data, stream.describe(index))))
        # JPEG decodes at 1/2, 1/4 or 1/8 size almost for free.
        picture.draft("L", (max(picture.width // 4, CELLS), max(picture.height // 4, CELLS)))
        grey = np.asarray(picture.convert("L"), np.uint8)
    stored, reduced = zlib.crc32(data), zlib.crc32(grey.tobytes())
    checksum = stored
    if before is not None and (
        stored == before.stored or (reduced == before.reduced and _equal(stream, index, before))
    ):
        checksum = before.look.checksum
    return _Still(Look(_sampled(grey), checksum), index, stored, reduced)


def _equal(stream: Frames, index: int, before: _Still) -> bool:
    """Whether all pixels are those of the image before; files of one image differ by the time that a camera writes."""
    return np.array_equal(stream[before.index], stream[index])


def _pixels(image: Image) -> Look:
    """A look at decoded pixels `[H, W, 3]`."""
    step = max(1, min(image.shape[:2]) // CELLS)
    small = image[::step, ::step].astype(np.float32)
    grid = (small @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)
    return Look(grid, zlib.crc32(image.tobytes()))


def _sampled(grey: Grid) -> Grid:
    step = max(1, min(grey.shape) // CELLS)
    return np.ascontiguousarray(grey[::step, ::step])


def _video(stream: VideoFrames, sampled: bool) -> Iterator[tuple[int, Look | RecordingError]]:
    """One forward decode; the brightness plane is sampled without converting the image to RGB."""
    wanted = intervals_to_decode(stream) if sampled else np.ones(len(stream), bool)
    place = {int(t): i for i, t in enumerate(stream.times)}
    seen: set[int] = set()
    reason = ""
    with guarded(f"video '{stream.path}'"), av.open(str(stream.path)) as container:
        source = container.streams.video[0]
        context = source.codec_context
        context.thread_count = 1
        # Deblocking moves no brightness that a coarse grid could see, and costs h264 a quarter of its time.
        context.options = {"skip_loop_filter": "all"}
        if len(stream.times) and stream.times[0] > 0:
            container.seek(int(stream.times[0]), stream=source, backward=True)
        last = int(stream.times[-1]) if len(stream.times) else 0
        for packet in container.demux(source):
            index = None if packet.pts is None else place.get(packet.pts)
            if index is not None and not wanted[index]:
                continue
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                reason = reason or str(error)
                continue
            for frame in frames:
                index = None if frame.pts is None else place.get(frame.pts)
                if index is not None and index not in seen:
                    seen.add(index)
                    yield index, _plane(frame)
            if packet.pts is not None and packet.pts > last and stream.is_in_order:
                break
    for index in sorted(set(np.flatnonzero(wanted).tolist()) - seen):
        why = f": {reason}" if reason else "."
        yield index, RecordingError(f"Frame {index} of video '{stream.path}' cannot be decoded{why}")


def intervals_to_decode(stream: VideoFrames) -> NDArray[np.bool_]:
    """[T] True for the frames worth decoding: every fourth stretch, and every stretch whose packets look unusual.

    A black, frozen, torn or repeated image changes the size of its packet long before anyone decodes it. Streams with
    far key frames or reordered frames are decoded whole: skipping in them costs more than it saves.
    """
    length = len(stream)
    everything = np.ones(length, bool)
    keys = np.flatnonzero(stream.is_key)
    if not stream.is_in_order or len(keys) < 8 or keys[0] != 0 or np.diff(keys).max() > 2 * STRETCH:
        return everything
    edges = [0]
    for key in keys.tolist():
        if key - edges[-1] >= STRETCH:
            edges.append(key)
    edges.append(length)
    spans = list(itertools.pairwise(edges))
    if len(spans) < 8:
        return everything
    key_sizes, between = np.maximum(stream.sizes[stream.is_key], 1), stream.sizes[~stream.is_key]
    # Key frames follow the scene, which changes slowly; what lies between follows the motion, which comes and goes.
    around = np.lib.stride_tricks.sliding_window_view(np.pad(key_sizes, NEIGHBOURS, "edge"), 2 * NEIGHBOURS + 1)
    is_usual = np.ones(length, bool)
    is_usual[stream.is_key] = np.abs(np.log(key_sizes / np.median(around, axis=1))) < np.log(USUAL)
    is_usual[~stream.is_key] = between > SMALL * np.median(between) if len(between) else True
    wanted = np.zeros(length, bool)
    for number, (start, stop) in enumerate(spans):
        is_chosen = number < 2 or number % EVERY == 0 or number == len(spans) - 1
        wanted[start:stop] = is_chosen or not is_usual[start:stop].all()
    return wanted


def _plane(frame: av.VideoFrame) -> Look:
    if not frame.format.name.startswith(("yuv4", "yuvj4", "nv12", "gray")) or frame.format.name.endswith(("le", "be")):
        grey = np.asarray(frame.to_ndarray(format="gray"), np.uint8)
        return Look(_sampled(grey), zlib.crc32(grey.tobytes()), bool(frame.key_frame))
    planes = [
        _visible(plane, pairs=place > 0 and frame.format.name == "nv12") for place, plane in enumerate(frame.planes)
    ]
    grid, checksum = _sampled(planes[0]), 0
    for plane in planes:  # colours too: a light that changes its colour may keep its brightness
        checksum = zlib.crc32(plane.tobytes(), checksum)
    if not (frame.format.name.startswith(("yuvj", "gray")) or frame.color_range == 2):
        # Video range: black is 16 and white 235.
        grid = np.clip((grid.astype(np.int16) - 16) * 255 // 219, 0, 255).astype(np.uint8)
    return Look(grid, checksum, bool(frame.key_frame))


def _visible(plane: VideoPlane, pairs: bool) -> Grid:
    """The bytes of a plane without what pads its lines; `pairs`: two a pixel."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : plane.width * (2 if pairs else 1)]
