"""Video files as frames: counted by packets, found by presentation time, decoded forward where possible; and written.

Random access seeks to the key frame before; reading in order decodes every frame once. PyAV only.
"""

import copy
import functools
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Image
from athena_vla.recordings.formats.common import guarded, refuse_lfs

OPEN_FILES = 16  # decoders kept open in a process
# From 17 on PyAV converts colours with a thread per core, which costs more than it gives; before it used one.
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
CRF = 18  # visually lossless for h264; stated in the set's video info
KEYFRAME_EVERY = 2  # as lerobot encodes: a random frame costs at most one extra decode


@dataclass(frozen=True)
class VideoIndex:
    """What the packets of a video say without being decoded; arrays in the order of presentation."""

    times: NDArray[np.int64]  # [F] in units of `base`
    sizes: NDArray[np.int64]  # [F] [bytes]
    is_key: NDArray[np.bool_]  # [F]
    base: Fraction  # [s]
    height: int
    width: int
    codec: str
    pixels: str  # pixel format, such as yuv420p
    is_in_order: bool  # packets are stored in the order of presentation: none depends on a later one


@functools.lru_cache(maxsize=64)
def _index(path: str, size: int, modified: int) -> VideoIndex:
    with guarded(f"video '{path}'"), av.open(path) as container:
        if not container.streams.video:
            raise RecordingError(f"'{path}' has no video stream.")
        stream = container.streams.video[0]
        packets = [(p.pts, p.size, p.is_keyframe) for p in container.demux(stream) if p.pts is not None]
        base = stream.time_base
        if not packets or base is None:
            raise RecordingError(f"Video '{path}' holds no frames.")
        times, sizes, keys = (np.array(column, np.int64) for column in zip(*packets, strict=True))
        order = np.argsort(times, kind="stable")
        in_order = bool((np.diff(times) > 0).all())
        codec = stream.codec_context.name
        height, width, pixels = stream.height, stream.width, str(stream.codec_context.pix_fmt or "")
        return VideoIndex(times[order], sizes[order], keys[order] > 0, base, height, width, codec, pixels, in_order)
    raise AssertionError


def video_index(path: Path) -> VideoIndex:
    """The file's index, kept for the next who asks. Raises `RecordingError` for a missing, truncated or LFS file."""
    if not path.is_file():
        raise RecordingError(f"There is no video '{path}'.")
    refuse_lfs(path)
    status = path.stat()
    return _index(str(path), status.st_size, status.st_mtime_ns)


class _Decoder:
    """One open file, decoded one frame at a time, for all episodes that lie in it."""

    def __init__(self, path: str, index: VideoIndex) -> None:
        self.path, self.index = path, index
        self.keys = np.flatnonzero(index.is_key)
        self.lock = threading.Lock()
        with guarded(f"video '{path}'"):
            self.container = av.open(path)
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1
        self.frames: Any = None
        self.next = 0  # frame that `frames` yields next
        self.convert: Any = VideoReformatter()  # kept: setting one up takes longer than converting an image

    def picture(self, place: int) -> Image:
        """RGB of frame `place` of the file. Raises `RecordingError` where it cannot be decoded."""
        with self.lock:
            wanted = int(self.index.times[place])
            number = int(np.searchsorted(self.keys, place, side="right")) - 1
            key = int(self.keys[number]) if number >= 0 else 0
            if self.frames is None or not key <= self.next <= place:
                self.container.seek(wanted, stream=self.stream, backward=True)
                self.frames = self.container.decode(self.stream)
            # What went wrong before this frame must not be taken for its own fault: the next call seeks.
            frames, self.frames = self.frames, None
            for frame in frames:
                if frame.pts is None or frame.pts < wanted:
                    continue
                if frame.pts > wanted:
                    break
                self.frames, self.next = frames, place + 1
                return self.convert.reformat(frame, format="rgb24", **ONE_THREAD).to_ndarray()
            raise RecordingError(f"Frame {place} of video '{self.path}' cannot be decoded: the file is damaged there.")


@functools.lru_cache(maxsize=OPEN_FILES)
def _decoder(path: str, size: int, modified: int, process: int) -> _Decoder:
    """`process` keeps a forked child from reading through its parent's file position."""
    return _Decoder(path, _index(path, size, modified))


class VideoFrames:
    """Frames of one video file between two times, or all of them."""

    def __init__(self, path: Path, start: float | None = None, stop: float | None = None) -> None:
        """Times in [s] of the file; a v3.0 set puts many episodes in one file."""
        self.path = path
        index = video_index(path)
        status = path.stat()
        self._file = (str(path), status.st_size, status.st_mtime_ns)
        times = index.times
        self.height, self.width, self.codec, self.pixels = index.height, index.width, index.codec, index.pixels
        self.is_in_order = index.is_in_order
        seconds = (times - (times[0] if start is None else 0)) * float(index.base)
        # Half a frame of slack: times are stored as float32 upstream.
        slack = 0.5 * float(np.median(np.diff(seconds))) if len(seconds) > 1 else 1e-3
        first = 0 if start is None else int(np.searchsorted(seconds, start - slack))
        last = len(times) if stop is None else int(np.searchsorted(seconds, stop - slack))
        self._first = first
        self.times, self.sizes, self.is_key = times[first:last], index.sizes[first:last], index.is_key[first:last]
        self.seconds = self.times * float(index.base)

    def part(self, first: int, stop: int) -> "VideoFrames":
        """Frames `first` to `stop` of these."""
        found = copy.copy(self)
        found._first = self._first + first
        found.times, found.sizes, found.is_key = (a[first:stop] for a in (self.times, self.sizes, self.is_key))
        found.seconds = self.seconds[first:stop]
        return found

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: int, /) -> Image:
        if not 0 <= index < len(self.times):
            raise RecordingError(f"Video '{self.path}' has {len(self)} frames here, frame {index} was asked for.")
        with guarded(f"frame {index} of video '{self.path}'"):
            return _decoder(*self._file, os.getpid()).picture(self._first + index)


def encode_video(path: Path, images: Iterable[Image], fps: float) -> None:
    """Write h264 (yuv420p, crf 18, a key frame every 2 frames); one thread, so that the bytes are reproducible."""
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for image in images:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.height, stream.width = image.shape[0], image.shape[1]
                if stream.height % 2 or stream.width % 2:
                    raise RecordingError(f"h264 needs even image sides, not {image.shape[0]}x{image.shape[1]}.")
                stream.pix_fmt = "yuv420p"
                stream.thread_count = 1
                stream.options = {"crf": str(CRF), "preset": "veryfast", "g": str(KEYFRAME_EVERY), "bf": "0"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is None:
            raise RecordingError(f"There are no frames to write to '{path}'.")
        container.mux(stream.encode())


def copy_video(source: VideoFrames, path: Path) -> bool:
    """Copy the packets of `source` to a new file whose time starts at 0; False where its span cannot be cut.

    Pixels stay identical: nothing is decoded. A span must begin at a key frame, as every episode of a set does.
    """
    with guarded(f"video '{source.path}'"), av.open(str(source.path)) as reader:
        stream = reader.streams.video[0]
        first, last = int(source.times[0]), int(source.times[-1])
        packets = [p for p in reader.demux(stream) if p.pts is not None and first <= p.pts <= last]
        if not packets or not packets[0].is_keyframe or packets[0].pts != first:
            return False
        with av.open(str(path), "w", format="mp4") as writer:
            # opaque: the parameters are copied, no encoder of that name (libdav1d) is looked for.
            target = writer.add_stream_from_template(stream, opaque=True)
            offset = first
            for packet in packets:
                packet.pts -= offset
                if packet.dts is not None:
                    packet.dts -= offset
                packet.stream = target
                writer.mux(packet)
    return True
