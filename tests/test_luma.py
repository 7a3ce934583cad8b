"""Looking at videos without decoding all of them: the same findings as from every frame, at a part of the cost."""
# The frames of these small recordings are in memory (`Pixels`), which the general type does not say.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from athena_vla.check.cameras import scan_camera
from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.formats.common import StillFrames
from athena_vla.recordings.media.luma import intervals_to_decode, luma_grids
from athena_vla.recordings.media.video import VideoFrames, encode_video
from recordings import clean

LENGTH = 240


def moving_scene(states: np.ndarray) -> np.ndarray:
    """A smooth background that sways with the joints, and a square that follows them; codes as renderings do."""
    y, x = np.mgrid[0:96, 0:128]
    images = np.empty((len(states), 96, 128, 3), np.uint8)
    for image, q in zip(images, states, strict=True):
        image[:] = (110 + 60 * np.sin((x + 20 * q[0]) / 17) * np.cos((y + 15 * q[1]) / 13))[..., None]
        left, top = int(50 + 25 * q[0]), int(40 + 25 * q[1])
        image[max(top, 0) : top + 16, max(left, 0) : left + 16] = (250, 200, 60)
    return images


def still(images: np.ndarray) -> None:
    images[100:120] = images[100]


def black(images: np.ndarray) -> None:
    images[131:135] = 2


def stale(images: np.ndarray) -> None:
    images[0] = 255 - images[0]


def repeats(images: np.ndarray) -> None:
    for i in range(1, len(images), 3):
        images[i] = images[i - 1]


DEFECTS: dict[str, Callable[[np.ndarray], None]] = {
    "camera.frozen": still, "camera.black": black, "camera.stale_start": stale, "camera.repeated": repeats,
}  # fmt: skip


def video(folder: Path, spoil: Callable[[np.ndarray], None] | None = None) -> tuple[Episode, VideoFrames]:
    episode = clean(1, length=LENGTH)
    images = moving_scene(np.asarray(episode.states, np.float64))
    if spoil is not None:
        spoil(images)
    encode_video(folder / "v.mp4", images, 10.0)
    return episode, VideoFrames(folder / "v.mp4")


@pytest.mark.parametrize("code", DEFECTS)
def test_what_is_passed_over_hides_no_defect(tmp_path, code):
    episode, stream = video(tmp_path, DEFECTS[code])
    whole, part = (scan_camera(episode, "front", stream, None, sampled) for sampled in (False, True))
    assert [f.code for f in whole.findings] == [code]
    assert [f.code for f in part.findings] == [code]
    assert np.array_equal(whole.first, part.first)
    assert np.array_equal(whole.last, part.last)


def test_a_clean_video_is_silent_and_mostly_not_decoded(tmp_path):
    episode, stream = video(tmp_path)
    assert scan_camera(episode, "front", stream, None, sampled=True).findings == ()
    chosen = intervals_to_decode(stream)
    assert chosen[:16].all()
    assert chosen[-1]
    assert chosen.mean() < 0.6
    looks = dict(luma_grids(stream, sampled=True))
    every = dict(luma_grids(stream))
    assert list(looks) == np.flatnonzero(chosen).tolist()
    assert len(every) == LENGTH
    assert all(np.array_equal(looks[i].grid, every[i].grid) for i in looks)


def test_real_video_gives_the_same_findings_either_way(shared):
    from athena_vla.recordings.formats import open_recording

    episode = open_recording(shared / "data/g1_inspire_v21").read("2")
    stream = episode.cameras["cam_high"]
    whole, part = (scan_camera(episode, "cam_high", stream, None, sampled) for sampled in (False, True))
    assert [f.code for f in whole.findings] == [f.code for f in part.findings] == []
    assert intervals_to_decode(stream).mean() < 0.6


def test_far_key_frames_are_decoded_whole(shared):
    from athena_vla.recordings.formats import open_recording

    stream = open_recording(shared / "data/gr1_pnp_v20").read("0").cameras["ego_view"]
    assert intervals_to_decode(stream).all()


def test_a_damaged_packet_costs_its_own_frames(tmp_path):
    _, stream = video(tmp_path)
    data = bytearray(stream.path.read_bytes())
    places = np.concatenate([[0], np.cumsum(stream.sizes)])
    start = data.index(b"mdat") + 4 + int(places[150])  # packets lie one after the other
    data[start : start + int(stream.sizes[150])] = bytes(int(stream.sizes[150]))
    stream.path.write_bytes(bytes(data))
    looks = dict(luma_grids(VideoFrames(stream.path)))
    bad = [i for i, look in looks.items() if isinstance(look, RecordingError)]
    assert set(bad) <= {149, 150, 151}
    assert bad
    found = scan_camera(replace(clean(1, length=LENGTH)), "front", VideoFrames(stream.path), None).findings
    assert found[0].code == "camera.unreadable"


def stamped(image: np.ndarray, kind: str, when: int, quality: int = 92) -> bytes:
    """A file of an image with the time that a camera wrote into it."""
    out, picture = io.BytesIO(), Image.fromarray(image)
    if kind == "png":
        text = PngInfo()
        text.add_text("time", str(when))
        picture.save(out, "PNG", pnginfo=text)
    else:
        exif = Image.Exif()
        exif[0x0132] = f"2026:11:27 10:00:{when % 60:02d}.{when:06d}"
        picture.save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


@dataclass(frozen=True)
class Stamped(StillFrames):
    files: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int, /) -> bytes:
        return self.files[index]

    def describe(self, index: int, /) -> str:
        return f"image {index}"


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_frozen_image_is_found_though_each_file_has_its_own_bytes(kind: str) -> None:
    episode = clean(1, length=LENGTH)
    images = moving_scene(np.asarray(episode.states, np.float64))
    moving = Stamped(tuple(stamped(image, kind, i) for i, image in enumerate(images)))
    still(images)
    frozen = Stamped(tuple(stamped(image, kind, i) for i, image in enumerate(images)))
    assert len(set(frozen.files)) == LENGTH
    found = {f.code: f.frames for f in scan_camera(episode, "head", frozen, None).findings}
    assert found == {"camera.frozen": (100, 120)}
    assert not scan_camera(episode, "head", moving, None).findings


def test_images_that_differ_in_one_pixel_are_not_the_same(tmp_path: Path) -> None:
    """A change that the reduced decode of a JPEG does not show is still one."""
    image = np.full((480, 640, 3), 90, np.uint8)
    changed = image.copy()
    changed[200:208, 300:308, 0] += 2  # within one block, below what its mean shows in grey
    for kind in ("png", "jpeg"):
        stream = Stamped((stamped(image, kind, 0), stamped(image, kind, 1), stamped(changed, kind, 2, quality=100)))
        sums = [look.checksum for _, look in luma_grids(stream) if not isinstance(look, RecordingError)]
        assert sums[0] == sums[1] != sums[2]


def test_a_light_that_changes_its_colour_is_no_frozen_image(tmp_path: Path) -> None:
    """The brightness plane stays, the colours change."""
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(4):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane, value in zip(frame.planes, (100, 60 + 20 * (i // 2), 120), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    sums = [
        look.checksum for _, look in luma_grids(VideoFrames(tmp_path / "v.mp4")) if not isinstance(look, RecordingError)
    ]
    assert sums[0] == sums[1] != sums[2] == sums[3]
