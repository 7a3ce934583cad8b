"""Checks of images: present, decodable, not black, not frozen while the robot moves, not left over from before.

Every frame is looked at at most once, as a coarse grid of its brightness: equality and change survive, cost does not.
Of a video, intervals whose packets look like their neighbours' may be passed over (`luma.intervals_to_decode`).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from athena_vla.check.findings import Finding, finding, some
from athena_vla.errors import LfsPointer, RecordingError
from athena_vla.recordings.episode import Episode, Frames
from athena_vla.recordings.intervals import intervals_of
from athena_vla.recordings.media.luma import luma_grids

BLACK = 14.0  # brightness out of 255 that even the brightest part of a black image stays below
UNIFORM = 2  # grey levels between the darkest and the brightest part of an image of one colour
UNIFORM_SHARE = 0.5  # of the images
FROZEN_SECONDS = 0.5
MOVING = 0.04  # [rad] travel of the fastest joint over a span that a camera must show
VISIBLE = 1.0  # grey levels of mean change that no codec throws away
REPEATED_LEVEL = 0.1  # share of the neighbouring change below which two coded images are the same
REPEATED_KEY_LEVEL = 0.25  # the same where a key frame is coded anew, with quantisation noise of its own
REPEATED_SHARE = 0.10  # of the steps at which the robot moves
STALE_RATIO = 6.0  # first change against the typical change
STALE_LEVEL = 6.0  # and at least this many grey levels on average


@dataclass(frozen=True)
class CameraScan:
    """What one pass over a camera found; `last` serves the next episode's stale-start check."""

    findings: tuple[Finding, ...]
    first: NDArray[np.uint8] | None
    last: NDArray[np.uint8] | None


def check_missing(episode: Episode) -> Iterator[Finding]:
    """Cameras that the metadata promises and no file keeps, and recordings without any."""
    missing = [n for n in episode.notes if n.code in ("camera.missing", "column.missing", "file.lfs_pointer")]
    for note in missing:
        yield finding("camera.missing" if note.code == "column.missing" else note.code, note.text, episode.id)
    if not episode.cameras and not missing:
        yield finding("camera.none", "The episode has no images.", episode.id)


def scan_camera(
    episode: Episode, name: str, stream: Frames, previous: NDArray[np.uint8] | None, sampled: bool = False
) -> CameraScan:
    """Findings about one camera; `previous` is the last image of the episode before, `sampled` as in `luma_grids`."""
    found: list[Finding] = []
    length = len(episode)
    if len(stream) != length:
        message = f"Camera '{name}' has {len(stream)} images for {length} frames."
        found.append(finding("camera.count", message, episode.id, (min(len(stream), length), max(len(stream), length))))
    grids: list[NDArray[np.uint8]] = []
    sums: list[int] = []
    keys: list[bool] = []
    places: list[int] = []
    bad: list[tuple[int, RecordingError]] = []
    sizes: set[tuple[int, ...]] = set()
    for index, look in luma_grids(stream, sampled):
        if isinstance(look, RecordingError):
            bad.append((index, look))
            continue
        sizes.add(look.grid.shape)
        if len(sizes) == 1:
            grids.append(look.grid)
            sums.append(look.checksum)
            keys.append(look.is_key)
            places.append(index)
    if bad:
        kind = "file.lfs_pointer" if isinstance(bad[0][1], LfsPointer) else "camera.unreadable"
        message = f"Camera '{name}': {len(bad)} of {len(stream)} images cannot be read: {bad[0][1]}"
        found.append(finding(kind, message, episode.id, (bad[0][0], bad[-1][0] + 1)))
    if len(sizes) > 1:
        found.append(finding("camera.unreadable", f"Camera '{name}' changes its image size.", episode.id))
    if not grids:
        return CameraScan(tuple(found), None, None)
    pixels = np.stack(grids).astype(np.int16)  # [n, h, w]
    where = np.array(places)
    found += _black(episode, name, pixels, where)
    found += _uniform(episode, name, pixels, where)
    found += _still(episode, name, pixels, np.array(sums), np.array(keys), where)
    found += _stale(episode, name, pixels, where, previous)
    return CameraScan(tuple(found), grids[0], grids[-1])


def _black(episode: Episode, name: str, pixels: NDArray[np.int16], where: NDArray[np.intp]) -> Iterator[Finding]:
    dark = pixels.reshape(len(pixels), -1).max(axis=1) < BLACK
    if dark.any():
        spans = intervals_of(dark)
        message = f"Camera '{name}' is black in {int(dark.sum())} of {len(dark)} images."
        yield finding("camera.black", message, episode.id, (int(where[spans[0][0]]), int(where[spans[-1][1] - 1]) + 1))


def _uniform(episode: Episode, name: str, pixels: NDArray[np.int16], where: NDArray[np.intp]) -> Iterator[Finding]:
    """Images of one colour, such as 16 bit values clipped to white; black ones are said as such."""
    flat = pixels.reshape(len(pixels), -1)
    same = (np.ptp(flat, axis=1) <= UNIFORM) & (flat.max(axis=1) >= BLACK)
    if same.sum() > UNIFORM_SHARE * len(same):
        spans = intervals_of(same)
        message = f"Camera '{name}' shows one colour in {int(same.sum())} of {len(same)} images."
        yield finding(
            "camera.uniform", message, episode.id, (int(where[spans[0][0]]), int(where[spans[-1][1] - 1]) + 1)
        )


def check_samples(episode: str, name: str, samples: Sequence[NDArray[np.uint8]]) -> Iterator[Finding]:
    """Findings about some images `[H, W, 3]` of a camera, as training will see them."""
    black = sum(int(image.max()) < BLACK for image in samples)
    uniform = sum(int(np.ptp(image.mean(axis=2))) <= UNIFORM and int(image.max()) >= BLACK for image in samples)
    for count, code, what in ((black, "camera.black", "black"), (uniform, "camera.uniform", "of one colour")):
        if samples and count > UNIFORM_SHARE * len(samples):
            yield finding(code, f"Camera '{name}': {count} of {len(samples)} images looked at are {what}.", episode)


def _still(
    episode: Episode,
    name: str,
    pixels: NDArray[np.int16],
    sums: NDArray[np.int64],
    keys: NDArray[np.bool_],
    where: NDArray[np.intp],
) -> Iterator[Finding]:
    """Images equal in every pixel, counted only where the robot moves and the scene visibly changes around them.

    Lossy video codes a small change as no change, but only in frames that depend on the one before: repeats that never
    fall on key frames are the codec's. A repeated camera frame falls on key frames too, nearly but not quite equal.
    """
    travel = joint_travel(episode)
    if travel is None or len(pixels) < 3:
        return
    same = sums[1:] == sums[:-1]
    dark = pixels.reshape(len(pixels), -1).max(axis=1) < BLACK
    same &= ~dark[1:]
    least = max(4, round(FROZEN_SECONDS * episode.fps)) if episode.clock.has_rate else 6
    frozen = np.zeros(len(same), bool)
    for start, stop in intervals_of(same):
        first, last = int(where[start]), int(where[stop])
        if last - first >= least and _moved(travel, first, last) > MOVING:
            frozen[start:stop] = True
            message = f"Camera '{name}' shows one image for {last - first + 1} frames while the robot moves."
            yield finding("camera.frozen", message, episode.id, (first, last + 1))
    # Over frames that were passed over an image changes by more than its share: such pairs are not compared.
    is_next = np.diff(where) == 1
    change = np.abs(np.diff(pixels, axis=0)).reshape(len(pixels) - 1, -1).mean(axis=1) * is_next
    # What the image should have changed by: the larger of the real changes just before and just after.
    ahead = np.concatenate([change[1:], [0.0]])
    behind = np.concatenate([[0.0], change[:-1]])
    step = np.array([_moved(travel, int(a), int(b)) for a, b in itertools.pairwise(where)])
    visible = (step > MOVING / 8) & ((ahead > VISIBLE) | (behind > VISIBLE)) & ~frozen & ~dark[1:] & is_next
    level = np.where(keys[1:] & ~keys.all(), REPEATED_KEY_LEVEL, REPEATED_LEVEL)
    repeated = (same | (change < level * np.maximum(ahead, behind))) & visible
    on_keys = repeated & keys[1:]
    is_codec = not keys.all() and on_keys.sum() < 0.3 * repeated.sum() * (keys[1:] & visible).sum() / max(
        visible.sum(), 1
    )
    # What was looked at on suspicion holds more than its share of repeats.
    share = REPEATED_SHARE * len(episode) / len(where)
    if not is_codec and repeated.sum() >= 3 and repeated.sum() > share * visible.sum():
        places = np.flatnonzero(repeated)
        message = (
            f"Camera '{name}' repeats its image at {int(repeated.sum())} of {int(visible.sum())} frames at which "
            f"the robot visibly moves (frames {some((where[places] + 1).tolist())})."
        )
        yield finding("camera.repeated", message, episode.id, (int(where[places[0]]), int(where[places[-1]]) + 2))


def _stale(
    episode: Episode,
    name: str,
    pixels: NDArray[np.int16],
    where: NDArray[np.intp],
    previous: NDArray[np.uint8] | None,
) -> Iterator[Finding]:
    if len(pixels) < 8 or where[0] != 0:
        return
    changes = np.abs(np.diff(pixels, axis=0)).reshape(len(pixels) - 1, -1).mean(axis=1)
    is_next = np.diff(where) == 1
    if not is_next[:7].all():
        return
    start, typical = float(changes[0]), float(np.median(changes[1:20][is_next[1:20]]))
    if start < STALE_LEVEL or start < STALE_RATIO * max(typical, 0.2):
        return
    ratio = start / max(typical, 0.2)
    message = f"The first image of camera '{name}' differs from the second {ratio:.0f} times more than usual."
    if previous is not None and previous.shape == pixels[0].shape:
        to_previous = float(np.abs(pixels[0] - previous.astype(np.int16)).mean())
        if to_previous < start / 2:
            message += " It is the last image of the episode before."
    yield finding("camera.stale_start", message, episode.id, (0, 1))


def joint_travel(episode: Episode) -> NDArray[np.float64] | None:
    """[T, D] joint positions (else targets) that say whether the robot moves; None where nothing is recorded."""
    for values in (episode.states, episode.actions):
        if values.shape[1] and np.isfinite(values).all() and len(values) > 1 and np.ptp(values, axis=0).max() > 0:
            return values.astype(np.float64)
    return None


def _moved(travel: NDArray[np.float64], first: int, last: int) -> float:
    """[rad] largest travel of a joint between two frames."""
    part = travel[max(first, 0) : last + 1]
    return float(np.ptp(part, axis=0).max()) if len(part) > 1 else 0.0
