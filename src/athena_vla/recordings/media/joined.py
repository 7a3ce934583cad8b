"""Images of a video joined to the rows of an episode by their time stamps.

A rank is no key: rows may have been cut where the images were not, and an image may have been lost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Frames, Image
from athena_vla.recordings.media.video import VideoFrames
from athena_vla.recordings.notes import Note

MEETS = 0.3  # [image periods] a row and its image are apart at most; stamps are rounded, clocks drift
NONE = -1


@dataclass(frozen=True)
class Joined:
    """One image for each row of an episode; a row without one raises when it is asked for."""

    stream: Frames
    place: NDArray[np.intp]  # [T] number of the image of each row, -1 where there is none
    what: str

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: int, /) -> Image:
        if not 0 <= index < len(self.place):
            raise RecordingError(f"{self.what} has {len(self)} images, image {index} was asked for.")
        if self.place[index] == NONE:
            raise RecordingError(f"Row {index} has no image in {self.what}.")
        return self.stream[int(self.place[index])]


def joined(stream: Frames, place: NDArray[np.intp], what: str) -> Frames:
    """The images of rows; the stream itself, or a part of its video, where they follow each other without a gap.

    Rows at the end that have no image are left off: the episode is longer than the stream, and a check says so.
    """
    has = np.flatnonzero(place != NONE)
    place = place[: has[-1] + 1 if len(has) else 0]
    if len(place) and (place == place[0] + np.arange(len(place))).all():
        first, stop = int(place[0]), int(place[-1]) + 1
        if (first, stop) == (0, len(stream)):
            return stream
        if isinstance(stream, VideoFrames):
            return stream.part(first, stop)
    return Joined(stream, place, what)


def by_time(
    rows: NDArray[np.float64], images: NDArray[np.float64], camera: str, episode: str
) -> tuple[NDArray[np.intp], list[Note]]:
    """(number of the image of each row `[T]`, what there is to say), from the times of rows and of images [s].

    Where no image lies at the time of most rows, the stamps are no key: images are then taken in their order, with a
    note, if there are as many of them as rows. Raises `RecordingError` where there are not.
    """
    ranks = np.arange(len(rows), dtype=np.intp)
    if not len(images) or not len(rows):
        return np.full(len(rows), NONE, np.intp), []
    period = float(np.median(np.diff(images))) if len(images) > 1 else 1.0
    place, meets = _nearest(rows, images, period)
    if meets.all() and _is_ascending(place):
        return place, _said(place, camera, episode)
    if len(images) == len(rows):
        why = f"camera '{camera}': time stamps of rows and images do not meet; images are taken in their order"
        return ranks, [Note("camera.joined_by_rank", why, (camera,), episode)]
    at_start, meets_start = _nearest(rows - rows[0] + images[0], images, period)
    if not meets.any() and meets_start.all() and _is_ascending(at_start):
        why = f"camera '{camera}': time stamps count from {rows[0]:g} s; images are taken from the first row on"
        return at_start, [Note("camera.joined_by_rank", why, (camera,), episode)]
    if meets.mean() > 0.5 and _is_ascending(place[meets]):
        lost = int((~meets).sum())
        why = f"camera '{camera}' has no image for {lost} of {len(rows)} rows"
        return np.where(meets, place, NONE), [Note("camera.pictures_lost", why, (camera,), episode)]
    spans = f"{rows[0]:g}..{rows[-1]:g} s and {images[0]:g}..{images[-1]:g} s"
    raise RecordingError(
        f"{len(images)} images for {len(rows)} rows, and their time stamps do not meet ({spans}): which image "
        "belongs to which row cannot be told"
    )


def _nearest(
    rows: NDArray[np.float64], images: NDArray[np.float64], period: float
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    after = np.clip(np.searchsorted(images, rows), 1, max(len(images) - 1, 1))
    after = np.minimum(after, len(images) - 1)
    before = np.maximum(after - 1, 0)
    place = np.where(np.abs(images[before] - rows) <= np.abs(images[after] - rows), before, after).astype(np.intp)
    return place, np.abs(images[place] - rows) <= MEETS * period


def _is_ascending(place: NDArray[np.intp]) -> bool:
    return bool((np.diff(place) > 0).all())


def _said(place: NDArray[np.intp], camera: str, episode: str) -> list[Note]:
    """What to say where the key and the rank of an image disagree."""
    off = np.flatnonzero(place != np.arange(len(place)))
    if not len(off):
        return []
    row = int(off[0])
    why = f"camera '{camera}': rows were cut and images were not; row {row} has image {int(place[row])}, by time stamp"
    return [Note("camera.joined_by_time", why, (camera,), episode)]
