"""Some episodes of a recording as a recording of their own: by finding, length, success or words."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from athena_vla.check.checking import CheckConfig, check
from athena_vla.check.findings import RULES
from athena_vla.errors import RecordingError, UnknownName
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.convert import ConvertConfig, ConvertResult, Target, convert
from athena_vla.recordings.episode import BrokenEpisode, Episode
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.several import chosen

SHOWN = 20  # episodes that are named with their reason


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which episodes are kept; what is not asked for keeps all of them."""

    input: Path
    """The recording, in any known format."""
    out: Path
    """Where the chosen episodes are written."""
    without: tuple[str, ...] = ()
    """Leave out episodes with a finding of these codes of athena data check."""
    robot: str | None = None
    """Robot name or TOML file that the findings of --without are judged against."""
    least_frames: int = 0
    """Leave out shorter episodes."""
    most_frames: int = 0
    """Leave out longer episodes; 0 is no limit."""
    success: Literal["any", "yes", "no", "unsaid"] = "any"
    """Keep episodes that are recorded as successes, as failures, or as neither."""
    words: str = ""
    """Keep episodes with an instruction that matches this regular expression, upper or lower case."""
    exclude: tuple[str, ...] = ()
    """Leave out these episodes, by their number or name."""
    to: Target = "lerobot_v3"
    """Format of the result."""
    dry_run: bool = False
    """Say which episodes would be kept, and write nothing."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""


@dataclass(frozen=True)
class Selected:
    """Which episodes were kept, and why the others were not."""

    kept: tuple[str, ...]
    left_out: dict[str, str]  # episode -> reason
    written: ConvertResult | None

    def __str__(self) -> str:
        lines = [f"left out {i}: {reason}" for i, reason in list(self.left_out.items())[:SHOWN]]
        more = len(self.left_out) - SHOWN
        lines += [f"left out {more} more"] if more > 0 else []
        total = len(self.kept) + len(self.left_out)
        lines.append(f"{len(self.kept)} of {total} episodes are kept")
        return "\n".join([*lines, str(self.written) if self.written else "nothing is written (--dry-run)"])


def select(config: SelectConfig, progress: Progress = quiet) -> Selected:
    """Choose and write. Raises `RecordingError` where no episode is left, `UnknownName` for codes there are not."""
    for code in config.without:
        if code not in RULES:
            raise UnknownName("code of a finding", code, RULES)
    try:
        pattern = re.compile(config.words, re.IGNORECASE)
    except re.error as error:
        raise RecordingError(f"--words {config.words!r} is no regular expression: {error}.") from error
    recording = open_recording(config.input)
    wanted = set(chosen(recording.ids(), config.exclude))
    spoiled = _spoiled(config, progress) if config.without else {}
    reasons: dict[str, str] = {}
    kept: list[str] = []
    for episode in recording.episodes():
        reason = "excluded" if episode.id not in wanted else spoiled.get(episode.id, "")
        reason = reason or next(_reasons(episode, config, pattern), "")
        if reason:
            reasons[episode.id] = reason
        else:
            kept.append(episode.id)
    if not kept:
        first = next(iter(reasons.items()), ("", "there are none"))
        raise RecordingError(f"Not one of the {len(reasons)} episodes is left: {first[0]}: {first[1]}.")
    if config.dry_run:
        return Selected(tuple(kept), reasons, None)
    written = convert(
        ConvertConfig(
            input=config.input, out=config.out, to=config.to, exclude=tuple(reasons), overwrite=config.overwrite
        ),
        progress,
    )
    return Selected(tuple(kept), reasons, written)


def _spoiled(config: SelectConfig, progress: Progress) -> dict[str, str]:
    """Episode -> the first unwanted finding. Raises `RecordingError` for one that holds of the whole recording."""
    report = check(CheckConfig(input=config.input, robot=config.robot), progress)
    found = [f for f in report.findings if f.code in config.without]
    whole = next((f for f in found if f.episode is None), None)
    if whole is not None:
        raise RecordingError(f"{whole.code} holds of the whole recording, so nothing would be left: {whole.message}")
    return {f.episode: f"{f.code}: {f.message}" for f in reversed(found) if f.episode is not None}


def _reasons(episode: Episode | BrokenEpisode, config: SelectConfig, pattern: re.Pattern[str]) -> Iterator[str]:
    if isinstance(episode, BrokenEpisode):
        yield episode.reason
        return
    if len(episode) < config.least_frames:
        yield f"{len(episode)} frames, fewer than {config.least_frames}"
    if 0 < config.most_frames < len(episode):
        yield f"{len(episode)} frames, more than {config.most_frames}"
    is_success = {True: "yes", False: "no", None: "unsaid"}[episode.success]
    if config.success not in ("any", is_success):
        yield {"yes": "recorded as a success", "no": "recorded as a failure", "unsaid": "success is not recorded"}[
            is_success
        ]
    if config.words and not any(pattern.search(t) for t in episode.instructions):
        yield f"no instruction matches {config.words!r}: {', '.join(map(repr, episode.instructions[:2])) or 'none'}"
