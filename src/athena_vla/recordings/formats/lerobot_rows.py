"""An episode as rows of a LeRobot set: features, columns, statistics; shared by the v2.1 and v3.0 writers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from athena_vla.errors import RecordingError
from athena_vla.recordings.episode import Episode, Frames, Image
from athena_vla.recordings.formats.common import StillFrames, decode_image
from athena_vla.recordings.formats.lerobot_schema import (
    LANGUAGE_TYPE,
    SUBTASK,
    Feature,
    Features,
    image_column,
    image_feature,
    numbers_column,
    numbers_feature,
    video_feature,
)
from athena_vla.recordings.formats.lerobot_statistics import Stats, column_stats, image_stats, sampled_indices
from athena_vla.recordings.media.png import encode_png
from athena_vla.recordings.media.video import CRF, KEYFRAME_EVERY, VideoFrames, copy_video, encode_video
from athena_vla.recordings.texts import is_whole, texts_json

ACTION, STATE, IMAGES, EXACT_TIME, LANGUAGE = (
    "action",
    "observation.state",
    "observation.images.",
    "athena.timestamp",
    "language_persistent",
)
ANNOTATIONS = "annotation.human.action."


def stream_key(name: str) -> str:
    """A stream's column name: LeRobot forbids slashes."""
    return name.replace("/", ".")


def features_of(episode: Episode, *, video: bool, language: bool, subtasks: bool = False) -> dict[str, Feature]:
    """Features of a set whose episodes look like this one. `video`: images stored singly are encoded too."""
    features: dict[str, Feature] = {}
    if episode.state_names:
        features[STATE] = numbers_feature(episode.state_names, str(episode.states.dtype))
    if episode.joint_names:
        features[ACTION] = numbers_feature(episode.joint_names, str(episode.actions.dtype))
    for name, stream in episode.cameras.items():
        height, width, codec = _shape(stream)
        if isinstance(stream, VideoFrames) or video:
            feature = video_feature(height, width, episode.fps, codec)
            if not isinstance(stream, VideoFrames) and "info" in feature:  # encoded here: the set states its quality
                feature["info"] |= {"video.crf": CRF, "video.g": KEYFRAME_EVERY}
            features[IMAGES + name] = feature
        else:
            features[IMAGES + name] = image_feature(height, width)
    for name, values in row_streams(episode).items():
        width = int(np.prod(values.shape[1:])) if values.ndim > 1 else 1
        if width and values.dtype.kind in "fiub":
            features[stream_key(name)] = {"dtype": str(values.dtype), "shape": [width], "names": None}
    if not np.array_equal(canonical_time(episode).astype(np.float64), episode.timestamps):
        features[EXACT_TIME] = {"dtype": "float64", "shape": [1], "names": None}
    if subtasks:
        features.setdefault(SUBTASK, {"dtype": "int64", "shape": [1], "names": None})
    if language:
        features[LANGUAGE] = {"dtype": "language", "shape": [1], "names": None}
    return features


def row_streams(episode: Episode) -> dict[str, np.ndarray[Any, Any]]:
    """The streams that have a row for each row of the episode; a table cannot hold others."""
    return {k: s.values for k, s in episode.streams.items() if s.clock is None}


def canonical_time(episode: Episode) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[T] [s] what readers look images up by: frame over rate, in the format's float32."""
    return (np.arange(len(episode)) / episode.fps).astype(np.float32)


def episode_rows(
    episode: Episode, features: Features, work: Path
) -> tuple[dict[str, pa.Array], Stats, dict[str, tuple[Path, float]]]:
    """(columns, statistics, videos as key -> (temporary file, seconds)). Raises where the episode does not fit."""
    length = len(episode)
    columns: dict[str, pa.Array] = {}
    stats: Stats = {}
    numbers: dict[str, np.ndarray[Any, Any]] = {
        "timestamp": canonical_time(episode),
        "frame_index": np.arange(length, dtype=np.int64),
        ACTION: episode.actions,
        STATE: episode.states,
        EXACT_TIME: episode.timestamps,
    }
    for name, values in row_streams(episode).items():
        flat = values.reshape(length, -1)
        numbers[stream_key(name)] = flat[:, 0] if flat.shape[1] == 1 else flat
    videos: dict[str, tuple[Path, float]] = {}
    for key, feature in features.items():
        if key in ("episode_index", "index", "task_index"):
            continue
        if key == LANGUAGE:
            columns[key] = _language(episode)
        elif feature["dtype"] in ("image", "video"):
            name = key.removeprefix(IMAGES)
            if name not in episode.cameras:
                raise RecordingError(f"Episode {episode.id} has no camera '{name}', which other episodes have.")
            stream = episode.cameras[name]
            if len(stream) < length:
                raise RecordingError(
                    f"Episode {episode.id}: camera '{name}' has {len(stream)} images for {length} frames."
                )
            stats[key] = image_stats([stream[i] for i in sampled_indices(length)])
            if feature["dtype"] == "image":
                columns[key] = image_column([encoded(stream, i) for i in range(length)])
            else:
                videos[key] = (_video(stream, length, episode.fps, work / f"{key}.mp4"), length / episode.fps)
        else:
            values = numbers.get(key)
            if values is None and (key == SUBTASK or key.startswith(ANNOTATIONS)):
                continue  # the writers fill these from tasks and segments
            wanted = tuple(feature["shape"]) if tuple(feature["shape"]) != (1,) else ()
            if values is None or values.shape[1:] not in (wanted, (1,) if wanted == () else wanted):
                raise RecordingError(f"Episode {episode.id} has no column '{key}' of {feature['shape'][0]} numbers.")
            values = values.reshape(length, *wanted).astype(feature["dtype"], copy=False)
            columns[key] = numbers_column(values)
            if values.dtype.kind in "fiu" and np.isfinite(values.astype(np.float64)).all():
                stats[key] = column_stats(values)
    return columns, stats, videos


def encoded(stream: Frames, index: int) -> bytes:
    """The stored image, or a lossless PNG of it."""
    return stream.encoded(index) if isinstance(stream, StillFrames) else encode_png(stream[index])


def sidecar_entry(episode: Episode) -> dict[str, Any]:
    """What the format cannot hold, read back by our readers."""
    streams = row_streams(episode)
    marks, texts = episode.marks, episode.texts
    return {
        "id": episode.origin.recorded_id or episode.id,
        "source": episode.source,
        "length": len(episode),
        "success": episode.success,
        "instructions": list(episode.instructions),
        **({} if is_whole(texts, len(episode)) else {"texts": texts_json(texts)}),
        **({"marks": marks.to_dict()} if marks.spans or marks.sources else {}),
        "kind": episode.origin.kind,
        "segments": [asdict(s) for s in episode.segments],
        "streams": {stream_key(k): {"name": k, "shape": list(v.shape[1:])} for k, v in streams.items()},
    }


def _language(episode: Episode) -> pa.Array:
    entries = [
        {
            "role": "user" if s.source == "human" else "assistant",
            "content": s.text,
            "style": "subtask",
            "timestamp": float(np.float32(s.start / episode.fps)),
            "camera": None,
        }
        for s in episode.segments
    ]
    return pa.array([entries] * len(episode), LANGUAGE_TYPE)


def _video(stream: Frames, length: int, fps: float, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(stream, VideoFrames) and len(stream) == length and copy_video(stream, path):
        return path
    encode_video(path, (_even(stream[i]) for i in range(length)), fps)
    return path


def _even(image: Image) -> Image:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return np.ascontiguousarray(image[:height, :width])


def _shape(stream: Frames) -> tuple[int, int, str]:
    if isinstance(stream, VideoFrames):
        return stream.height, stream.width, {"libdav1d": "av1"}.get(stream.codec, stream.codec)
    image = decode_image(stream.encoded(0), stream.describe(0)) if isinstance(stream, StillFrames) else stream[0]
    return image.shape[0], image.shape[1], "h264"
