"""Checks of words and labels: is there an instruction, does it say anything, did the demonstration succeed?"""

import re
from collections.abc import Iterator

from athena_vla.check.findings import Finding, finding
from athena_vla.recordings.episode import Episode

# What recorders write when nobody typed anything.
USELESS = {
    "perform a task", "do the task", "task", "default", "test", "none", "null", "todo", "instruction", "n/a", "na",
    "unknown", "demo", "teleop", "valid", "no instruction", "do something", "untitled", "single task", "dummy task",
}  # fmt: skip


def is_useless(text: str) -> bool:
    """True for a text that tells no two tasks apart."""
    plain = re.sub(r"[^\w\s/]", "", text).strip().lower()
    return plain in USELESS or len(re.findall(r"[^\W\d_]{2,}", plain)) < 2


def check_language(episode: Episode) -> Iterator[Finding]:
    """Missing and useless instructions."""
    if not episode.instructions:
        yield finding("language.missing", "The episode has no instruction.", episode.id)
        return
    useless = [t for t in episode.instructions if is_useless(t)]
    if useless:
        yield finding("language.useless", f"The instruction is {useless[0]!r}.", episode.id)


def check_success(episode: Episode) -> Iterator[Finding]:
    """Missing and negative success flags."""
    if episode.success is None:
        yield finding("success.missing", "The recording does not say whether the episode succeeded.", episode.id)
    elif episode.success is False:
        yield finding("success.false", "The demonstration failed.", episode.id)
