"""Column names and language of LeRobot sets, in the many forms they are found in."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.recordings.episode import Segment


def column_names(feature: Mapping[str, Any], modality: Any, column: str, width: int) -> list[str] | None:
    """Names of the columns: a list, a list in a list (Unitree), a dict of lists (aloha), or GR00T's modality slices.

    None where nothing names all columns. Generic names (`motor_0`) yield to modality slices, which say which limb.
    """
    flat = _flatten(feature.get("names"))
    is_generic = bool(flat) and all(re.fullmatch(r"(motor|joint|dim|action|state)_?\d+", n) for n in flat)
    if len(flat) == width and not is_generic:
        return flat
    sliced = _from_slices(modality, column, width)
    return sliced or (flat if len(flat) == width else None)


def _flatten(names: Any) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, Mapping):
        return [n for value in names.values() for n in _flatten(value)]
    if isinstance(names, list):
        return [n for value in names for n in _flatten(value)]
    return []


def _from_slices(modality: Any, column: str, width: int) -> list[str] | None:
    if not isinstance(modality, Mapping) or len(modality) < 2:
        return None  # one slice for everything names nothing
    names: list[str | None] = [None] * width
    for key, part in modality.items():
        if not isinstance(part, Mapping) or str(part.get("original_key") or column) != column:
            continue
        start, stop = part.get("start"), part.get("end")
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= width):
            continue
        for i in range(start, stop):
            names[i] = f"{key}_{i - start}" if stop - start > 1 else str(key)
    filled = [n for n in names if n is not None]
    return filled if len(filled) == width and len(set(filled)) == width else None


def runs(values: NDArray[Any]) -> list[tuple[int, int, Any]]:
    """(start, stop, value) of the intervals of equal values."""
    if not len(values):
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = [0, *edges.tolist()]
    return [(a, b, values[a].item()) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]


def language_segments(entries: Any, stamps: NDArray[Any] | None, length: int) -> list[Segment]:
    """Segments of a `language_persistent` column: a subtask holds from its time to the next one's."""
    if not isinstance(entries, list) or stamps is None:
        return []
    tasks = [e for e in entries if isinstance(e, Mapping) and e.get("style") == "subtask" and e.get("content")]
    times = [float(e.get("timestamp") or 0.0) for e in tasks]
    starts = [int(np.searchsorted(stamps.reshape(-1) + 1e-4, t)) for t in times]
    found = []
    for entry, start, stop in zip(tasks, starts, [*starts, length][1:], strict=True):
        if start < stop:
            source = "human" if entry.get("role") == "user" else "model"
            found.append(Segment(start, stop, "task", str(entry["content"]), source, 0.8))
    return found
