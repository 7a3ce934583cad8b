"""Columns of a LeRobot table: which hold actions and states, which hold words, and which hold neither.

Actions and states may be one column, or be spread over several that modality.json or a common prefix declares.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from athena_vla.errors import RecordingError
from athena_vla.recordings.formats.arrow import numbers
from athena_vla.recordings.formats.lerobot_names import column_names
from athena_vla.recordings.formats.lerobot_schema import Features
from athena_vla.recordings.notes import Note

SINGLE = {"action": ("action", "actions"), "state": ("observation.state", "state")}
PREFIXES = {"action": ("action.", "actions."), "state": ("observation.state.", "observation.states.", "state.")}
INDICES = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
# Annotation columns that hold language; others hold labels such as quality, validity or progress.
LANGUAGE = re.compile(
    r"task|instruction|description|language|(?:coarse|fine)_action|subtask|segment|skill", re.IGNORECASE
)
LABEL = re.compile(r"valid|quality|progress|success|score|reward|index$", re.IGNORECASE)
STRINGS = re.compile(r"^(?:observation\.)?(?:task|(?:natural_)?language_instruction(?:_\d+)?|instruction)$")


@dataclass(frozen=True)
class Part:
    """Columns `start` to `stop` of one recorded column."""

    column: str
    start: int
    stop: int
    names: tuple[str, ...]  # () where nothing names them


@dataclass
class Columns:
    """What a table holds beside images."""

    numbers: dict[str, NDArray[Any]] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)  # string columns, a text per frame
    notes: list[Note] = field(default_factory=list)


def read_columns(table: Any, features: Features, where: str, episode: str) -> Columns:
    """All columns but images. One that holds no numbers costs itself and not the episode, unless it is needed."""
    found = Columns()
    for name in table.column_names:
        kind, column = str(features.get(name, {}).get("dtype", "")), table[name]
        if kind in ("image", "language") or pa.types.is_struct(column.type):
            continue
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found.words[name] = [str(t or "") for t in column.to_pylist()]
            continue
        try:
            found.numbers[name] = numbers(column, f"column '{name}' of '{where}'")
        except RecordingError as error:
            if name in INDICES or _is_kept(name):
                raise
            found.notes.append(Note("column.unreadable", f"{error} It is left out.", (name,), episode))
    return found


def parts_of(kind: str, columns: Mapping[str, NDArray[Any]], features: Features, modality: Any) -> list[Part]:
    """Where the actions or states (`kind`) lie: one column, those that modality.json maps, or those of a prefix."""
    single = next((n for n in SINGLE[kind] if n in columns), None)
    if single is not None:
        width = _width(columns[single])
        names = column_names(features.get(single, {}), modality, single, width)
        return [Part(single, 0, width, tuple(names or ()))]
    mapped = _mapped(modality, columns, features)
    if mapped:
        return mapped
    chosen = [n for n in (*features, *columns) if n in columns and n.startswith(PREFIXES[kind])]
    return [_whole(n, columns, features) for n in dict.fromkeys(chosen)]


def joined_parts(parts: Sequence[Part], columns: Mapping[str, NDArray[Any]], length: int) -> NDArray[Any]:
    """`[T, D]` of all parts side by side, in one floating type."""
    if not parts:
        return np.zeros((length, 0), np.float32)
    slices = [_matrix(columns[p.column])[:, p.start : p.stop] for p in parts]
    return slices[0] if len(slices) == 1 else np.concatenate(slices, axis=1)


def names_of(parts: Sequence[Part]) -> list[str] | None:
    """Names of all columns of the parts; None where some have none, or two have one."""
    names = [n for p in parts for n in p.names]
    complete = all(len(p.names) == p.stop - p.start for p in parts)
    return names if complete and names and len(set(names)) == len(names) else None


def language_columns(columns: Mapping[str, NDArray[Any]]) -> list[str]:
    """Annotation columns of task indices that are language."""
    return [
        k
        for k, v in columns.items()
        if k.startswith("annotation.") and v.dtype.kind in "iu" and LANGUAGE.search(k) and not LABEL.search(k)
    ]


def _mapped(modality: Any, columns: Mapping[str, NDArray[Any]], features: Features) -> list[Part]:
    """The parts that modality.json declares by `original_key`."""
    parts: list[Part] = []
    for key, entry in modality.items() if isinstance(modality, Mapping) else ():
        column = str(entry.get("original_key") or "") if isinstance(entry, Mapping) else ""
        if column not in columns:
            continue
        whole = _whole(column, columns, features)
        start, stop = entry.get("start", 0), entry.get("end", whole.stop)
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= whole.stop):
            continue
        own = tuple(f"{key}_{i}" for i in range(stop - start)) if stop - start > 1 else (str(key),)
        parts.append(Part(column, start, stop, whole.names[start:stop] or own))
    return parts


def _whole(column: str, columns: Mapping[str, NDArray[Any]], features: Features) -> Part:
    width = _width(columns[column])
    names = column_names(features.get(column, {}), None, column, width)
    prefix = next((p for k in PREFIXES for p in PREFIXES[k] if column.startswith(p)), "")
    own_name = column.removeprefix(prefix)
    own = tuple(f"{own_name}_{i}" for i in range(width)) if width > 1 else (own_name,)
    return Part(column, 0, width, tuple(names or own))


def _is_kept(name: str) -> bool:
    return any(name in SINGLE[k] or name.startswith(PREFIXES[k]) for k in SINGLE)


def _width(values: NDArray[Any]) -> int:
    return int(np.prod(values.shape[1:])) if values.ndim > 1 else 1


def _matrix(values: NDArray[Any]) -> NDArray[Any]:
    matrix = values.reshape(len(values), -1) if len(values) else values.reshape(0, _width(values))
    return matrix if matrix.dtype.kind == "f" else matrix.astype(np.float64)
