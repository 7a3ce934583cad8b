"""One recorded episode -> one finished shard: aligned, checked for finiteness, images stored, statistics, digest.

A pure function of its job, run by any worker in any order; the shard's bytes depend on nothing else.
"""
# pyarrow's stubs take no list of columns for `use_dictionary`.
# pyright: reportArgumentType=false

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image as PillowImage

from athena_vla import files
from athena_vla.annotate.segments import episode_segments
from athena_vla.check.cameras import check_samples
from athena_vla.check.episode_checks import episode_findings
from athena_vla.dataset.episode_facts import Facts, Prepared
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, DatasetError
from athena_vla.recordings.alignment import AlignedEpisode, Alignment, align
from athena_vla.recordings.annotations import read_annotations
from athena_vla.recordings.episode import Episode, Recording, Segment
from athena_vla.recordings.fixes import Cut, StillCut, apply_fixes
from athena_vla.recordings.formats.common import StillFrames, decode_image
from athena_vla.recordings.formats.lerobot_schema import image_column, numbers_column
from athena_vla.recordings.formats.lerobot_statistics import Stats, column_stats, image_stats, sampled_indices
from athena_vla.recordings.media.png import encode_png
from athena_vla.recordings.media.video import VideoFrames
from athena_vla.recordings.notes import Note
from athena_vla.recordings.overlaps import fingerprints
from athena_vla.recordings.placeholders import is_placeholder
from athena_vla.recordings.reading import Reading
from athena_vla.recordings.texts import TextSpan, all_texts, also_said, filled, is_whole, kept, texts_json

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
LEFT_OUT = ("episode.cut", "stream.unused", "camera.depth", "column.unreadable", "clock.guessed")
WINDOWS = ".windows.npy"  # fingerprints of an episode's motion, beside its shard
PICTURE = "athena.picture"  # in a linked set, the recorded frame that a step shows


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to prepare any episode of one recording; small, and picklable."""

    inputs: tuple[str, ...]
    reading: Reading
    robot: dict[str, Any]
    alignment: Alignment
    image_size: tuple[int, int] | None
    keep_failed: bool
    fix: tuple[str, ...]
    link: bool
    annotate: bool
    annotations: str
    segment_texts: bool
    seed: int
    fallback_instruction: str
    horizon: int
    work: str
    context: Mapping[str, Any] = field(default_factory=dict)


def preparer(job: Job) -> Callable[[str], Facts]:
    """What prepares the episodes of a build in one process."""
    return lambda episode_id: prepare(job, episode_id)


def prepare(job: Job, episode_id: str) -> Facts:
    """Write the shard of one episode and return its facts; an episode already prepared is only looked up.

    Facts of an episode that cannot be used have `status` "broken" or "failed" and a `reason`.
    """
    stem = Path(job.work) / hashlib.sha256(episode_id.encode()).hexdigest()[:24]
    facts_path = stem.with_suffix(".json")
    if facts_path.is_file():
        return _without_stats(json.loads(facts_path.read_text()))
    try:
        facts = _prepare(job, episode_id, stem)
    except AthenaError as error:
        if error.of_writing:
            raise
        facts = {"id": episode_id, "status": "broken", "reason": str(error)}
    files.write_json(facts_path, facts, DatasetError, indent=None)
    return _without_stats(facts)


def read_stats(work: Path, episode_id: str) -> Stats:
    """Statistics of a prepared episode; they stay on disk, for they are most of the facts' size."""
    return json.loads(shard_path(work, episode_id).with_suffix(".json").read_text())["stats"]


def _without_stats(facts: Facts) -> Facts:
    if facts["status"] == "ok":
        facts.pop("stats", None)
    return facts


def read_windows(work: Path, episode_id: str) -> NDArray[np.uint64]:
    """Fingerprints of the windows of a prepared episode, as it was recorded."""
    return np.load(shard_path(work, episode_id).with_suffix(WINDOWS), allow_pickle=False)


def shard_path(work: Path, episode_id: str) -> Path:
    return (work / hashlib.sha256(episode_id.encode()).hexdigest()[:24]).with_suffix(".parquet")


def _prepare(job: Job, episode_id: str, stem: Path) -> Facts:
    recording = _recording(job.inputs, job.reading)
    episode = recording.read(episode_id)
    if episode.success is False and not job.keep_failed:
        return {"id": episode_id, "status": "failed", "reason": "recorded with success = false"}
    placeholders = tuple(t for t in episode.instructions if is_placeholder(t))
    episode = replace(episode, texts=kept(episode.texts, lambda t: t not in placeholders))
    if not episode.instructions and not job.fallback_instruction:
        only = f" but the recorder's placeholder {placeholders[0]!r}" if placeholders else ""
        raise DatasetError(
            f"Episode {episode_id} ({episode.source}) has no instruction{only}. Give one with --instruction."
        )
    if job.fallback_instruction:
        episode = replace(episode, texts=filled(episode.texts, len(episode), job.fallback_instruction))
    robot = _robot(json.dumps(job.robot))
    if job.annotations:
        episode = replace(episode, segments=_annotations(job.annotations).get(episode_id, ()))
    elif job.annotate:
        episode = replace(episode, segments=episode_segments(episode, robot, job.seed))
    if job.segment_texts:
        named = tuple(TextSpan(s.start, s.stop, (s.text,)) for s in episode.segments if s.text)
        episode = replace(episode, texts=also_said(episode.texts, named, len(episode)))
    # Duplicates are seen by whoever sees all episodes.
    episode, fixes = apply_fixes(episode, [f for f in job.fix if f != "drop-duplicates"], set())
    if episode is None:
        return {"id": episode_id, "status": "failed", "reason": "; ".join(fixes)}
    aligned = align(episode, robot, job.alignment)
    length = len(aligned.actions)
    found = list(episode_findings(episode, robot, job.horizon, job.alignment.joint_map, replay=False))
    columns: dict[str, pa.Array] = {}
    digest = hashlib.sha256()
    columns[STATE] = numbers_column(aligned.states)
    columns[ACTION] = numbers_column(aligned.actions)
    stats = {STATE: column_stats(aligned.states), ACTION: column_stats(aligned.actions)}
    digest.update(aligned.states.tobytes())
    digest.update(aligned.actions.tobytes())
    motion = digest.copy().hexdigest()
    sizes: dict[str, list[int]] = {}
    for camera in aligned.cameras if job.link else ():
        sizes[camera] = list(_looked_at(aligned, camera, job.image_size, digest))
    if job.link:
        # Frames of the recording, also where a fix cut the episode.
        offset = next((s.start for s in aligned.cameras.values() if isinstance(s, Cut | StillCut)), 0)
        columns[PICTURE] = numbers_column(aligned.picture.astype(np.int64) + offset)
        stats[PICTURE] = column_stats(aligned.picture.astype(np.int64) + offset)
    for camera in () if job.link else aligned.cameras:
        pictures, samples, size = _pictures(aligned, camera, job.image_size)
        found += check_samples(episode.id, camera, samples)
        for picture in pictures:
            digest.update(picture)
        columns[IMAGES + camera] = image_column(pictures)
        stats[IMAGES + camera] = image_stats(samples)
        sizes[camera] = list(size)
    times = (np.arange(length) / aligned.record["control_hz"]).astype(np.float32)
    frame_index = np.arange(length, dtype=np.int64)
    columns |= {"timestamp": numbers_column(times), "frame_index": numbers_column(frame_index)}
    stats |= {"timestamp": column_stats(times), "frame_index": column_stats(frame_index)}
    facts: Prepared = {
        "id": episode_id,
        "status": "ok",
        "source": episode.source,
        "length": length,
        "success": episode.success,
        "instructions": list(all_texts(aligned.texts)),
        "kind": episode.origin.kind,
        "segments": [asdict(s) for s in aligned.segments],
        "fixes": fixes,
        "alignment": aligned.record,
        "sizes": sizes,
        "motion": motion,
        "digest": "",
        "notes": [n.to_dict() for n in (*aligned.notes, *_of_reader(episode), *_left_out(placeholders))],
        "findings": [f.to_dict() for f in found],
    }
    # What does not hold for the whole episode is added where there is such a thing, so that other sets keep their hash.
    if not is_whole(aligned.texts, length):
        facts["texts"] = texts_json(aligned.texts)
    if aligned.marks.spans or aligned.marks.sources:
        facts["marks"] = aligned.marks.to_dict()
    taught = ("length", "success", "instructions", "kind", "segments", "alignment", "sizes", "texts", "marks")
    said = {k: v for k, v in facts.items() if k in taught}
    digest.update(json.dumps(said, sort_keys=True).encode())
    facts["digest"] = digest.hexdigest()
    facts["stats"] = stats
    with files.whole_file(stem.with_suffix(WINDOWS), DatasetError) as path, open(path, "wb") as file:
        np.save(file, fingerprints(episode.states, episode.actions), allow_pickle=False)
    table = pa.table(columns)
    plain = [name for name in columns if not name.startswith(IMAGES)]
    with files.whole_file(stem.with_suffix(".parquet"), DatasetError) as file:
        pq.write_table(table, file, compression="none", use_dictionary=plain, row_group_size=max(length, 1))
    return facts


def _of_reader(episode: Episode) -> list[Note]:
    """What the reader left out and nobody else speaks of."""
    return [n for n in episode.notes if n.code in LEFT_OUT]


def _left_out(placeholders: tuple[str, ...]) -> list[Note]:
    said = f"texts that the recorder writes when nobody typed one are left out: {', '.join(map(repr, placeholders))}"
    return [Note("language.placeholder", said, placeholders)] if placeholders else []


def _pictures(
    aligned: AlignedEpisode, camera: str, size: tuple[int, int] | None
) -> tuple[list[bytes], list[NDArray[np.uint8]], tuple[int, int]]:
    """(encoded images, sampled pixels for statistics, (height, width)); every image is decoded once, as a check.

    Images that are stored singly and keep their size are copied byte for byte, all others become PNG.
    """
    stream = aligned.cameras[camera]
    wanted = set(sampled_indices(len(aligned.picture)))
    encoded: list[bytes] = []
    samples: list[NDArray[np.uint8]] = []
    shape: tuple[int, int] | None = None
    for step, source in enumerate(aligned.picture):
        if isinstance(stream, StillFrames):
            data = stream.encoded(int(source))
            pixels = decode_image(data, stream.describe(int(source)))
        else:
            data, pixels = b"", stream[int(source)]
        if size is not None and pixels.shape[:2] != size:
            pixels = resize(pixels, size)
            data = b""
        if shape is not None and pixels.shape[:2] != shape:
            raise DatasetError(
                f"Episode {aligned.episode.id}: camera '{camera}' changes size from {shape} to {pixels.shape[:2]}."
            )
        shape = (pixels.shape[0], pixels.shape[1])
        encoded.append(data or encode_png(pixels))
        if step in wanted:
            samples.append(pixels)
    assert shape is not None
    return encoded, samples, shape


def _looked_at(aligned: AlignedEpisode, camera: str, size: tuple[int, int] | None, digest: Any) -> tuple[int, int]:
    """(height, width) of images that stay where they are; what is stored of them goes into the digest, undecoded."""
    stream = aligned.cameras[camera]
    whole = stream.stream if isinstance(stream, Cut | StillCut) else stream
    if isinstance(whole, VideoFrames):
        digest.update(whole.sizes.tobytes() + whole.times.tobytes())
    for place in aligned.picture.tolist() if not isinstance(whole, VideoFrames) else ():
        digest.update(stream.encoded(place) if isinstance(stream, StillFrames) else stream[place].tobytes())
    first = stream[int(aligned.picture[0])]
    return size or (first.shape[0], first.shape[1])


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image at (height, width), Lanczos with antialiasing, as OpenVLA's data pipeline resizes."""
    picture = PillowImage.fromarray(pixels).resize((size[1], size[0]), PillowImage.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)


@functools.lru_cache(maxsize=2)
def _recording(paths: tuple[str, ...], reading: Reading) -> Recording:
    return reading.open(*paths)


@functools.lru_cache(maxsize=2)
def _annotations(path: str) -> dict[str, tuple[Segment, ...]]:
    return read_annotations(Path(path))


@functools.lru_cache(maxsize=2)
def _robot(description: str) -> Embodiment:
    return Embodiment.from_dict(json.loads(description))
