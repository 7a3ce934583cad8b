"""The sidecar of annotations: segments of each episode, read back."""

from pathlib import Path

from athena_vla.errors import DatasetError
from athena_vla.recordings.episode import Segment
from athena_vla.recordings.formats.common import guarded, read_json_object


def read_annotations(path: Path) -> dict[str, tuple[Segment, ...]]:
    """Episode id -> segments of a sidecar. Raises `DatasetError` for one that is not ours."""
    raw = read_json_object(path)
    if raw.get("version") != 1 or not isinstance(raw.get("episodes"), dict):
        raise DatasetError(f"'{path}' is not a sidecar of annotations (version 1).")
    with guarded(f"'{path}'"):
        return {i: tuple(Segment(**s) for s in e["segments"]) for i, e in raw["episodes"].items()}
