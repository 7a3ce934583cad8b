"""Words and rates in the metadata of files that have no scheme of their own: attributes, and JSON inside attributes.

RoboCasa writes a demo's words into `ep_meta`, LIBERO a file's into `problem_info`; robosuite's rate is in `env_kwargs`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

TEXT_KEYS = (
    "language_instruction", "natural_language_instruction", "instruction", "instructions", "lang", "language",
    "task_description", "task",
)  # fmt: skip
RATE_KEYS = ("control_freq", "control_frequency", "control_hz", "fps", "hz", "frequency")
DEPTH = 3  # levels of objects inside objects that are looked through
MOST_CHARACTERS = 1000  # of an instruction; a longer text is a document


def text_of(value: Any) -> str | None:
    """A text, decoded and stripped; None for anything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value.strip() if isinstance(value, str) and value.strip() else None


def texts_in(source: Mapping[str, Any], depth: int = DEPTH) -> list[str]:
    """The instructions of an object of attributes: under known keys, also inside JSON and inner objects."""
    found: list[str] = []
    for key, value in source.items():
        inner = _opened(value)
        if inner is not None:
            found += texts_in(inner, depth - 1) if depth else []
        elif key in TEXT_KEYS:
            words = value if isinstance(value, list | tuple) else [value]
            found += [t for w in words if (t := text_of(w)) is not None and len(t) <= MOST_CHARACTERS]
    return list(dict.fromkeys(found))


def rate_in(*sources: Mapping[str, Any]) -> float | None:
    """[Hz] the first rate that any of the objects declares, also inside JSON and inner objects."""
    return next((rate for source in sources if (rate := _rate(source, DEPTH))), None)


def _rate(source: Mapping[str, Any], depth: int) -> float | None:
    for key in RATE_KEYS:
        value = source.get(key)
        if isinstance(value, np.generic | np.ndarray) and value.size == 1:
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e5:
            return float(value)
    inner = (found for value in source.values() if depth and (found := _opened(value)) is not None)
    return next((rate for found in inner if (rate := _rate(found, depth - 1))), None)


def _opened(value: Any) -> Mapping[str, Any] | None:
    """An inner object, or the one that a text holds as JSON."""
    if isinstance(value, Mapping):
        return value
    text = text_of(value)
    if text is None or not text.startswith("{"):
        return None
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
