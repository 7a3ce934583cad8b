"""Checks of words and labels: is there an instruction, does it say anything, did the demonstration succeed?"""

from collections.abc import Iterator

from athena_vla.check.findings import Finding, finding
from athena_vla.recordings.episode import Episode
from athena_vla.recordings.placeholders import is_placeholder


def check_language(episode: Episode) -> Iterator[Finding]:
    """Missing and useless instructions."""
    if not episode.instructions:
        yield finding("language.missing", "The episode has no instruction.", episode.id)
        return
    useless = [t for t in episode.instructions if is_placeholder(t)]
    if useless:
        yield finding("language.useless", f"The instruction is {useless[0]!r}.", episode.id)


def check_success(episode: Episode) -> Iterator[Finding]:
    """Missing and negative success flags."""
    if episode.success is None:
        yield finding("success.missing", "The recording does not say whether the episode succeeded.", episode.id)
    elif episode.success is False:
        yield finding("success.false", "The demonstration failed.", episode.id)
