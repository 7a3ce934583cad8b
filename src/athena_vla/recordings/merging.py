"""Several recordings of one robot become one recording, in the format that is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from athena_vla.errors import RecordingError
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.convert import ConvertConfig, ConvertResult, Target, convert
from athena_vla.recordings.episode import RecordingInfo
from athena_vla.recordings.reading import Reading
from athena_vla.recordings.several import Several


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which recordings become one, and in which format."""

    input: Path
    """The first recording, in any known format."""
    out: Path
    """Where the result is written."""
    also: tuple[Path, ...] = ()
    """The other recordings: athena data merge A B C OUT."""
    to: Target = "lerobot_v3"
    """Format of the result."""
    exclude: tuple[str, ...] = ()
    """Episodes that are left out: RECORDING/EPISODE, or a name that holds in all of them."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""


def merge(config: MergeConfig, progress: Progress = quiet) -> ConvertResult:
    """Raises `RecordingError` where the recordings are not of one robot at one rate, with what differs."""
    if not config.also:
        raise RecordingError(f"'{config.input}' alone is nothing to merge; name two or more recordings before OUT.")
    recording = Reading().open(config.input, *config.also)
    assert isinstance(recording, Several)
    _require_one_robot({name: part.info() for name, part in recording.parts.items()})
    return convert(
        ConvertConfig(
            input=config.input,
            also=config.also,
            out=config.out,
            to=config.to,
            exclude=config.exclude,
            overwrite=config.overwrite,
        ),
        progress,
    )


def _require_one_robot(found: Mapping[str, RecordingInfo]) -> None:
    (first, head), *others = found.items()
    for name, info in others:
        for what, ours, theirs in (
            ("action columns", list(head.joint_names), list(info.joint_names)),
            ("state columns", list(head.state_names), list(info.state_names)),
            ("cameras", sorted(head.cameras), sorted(info.cameras)),
            ("rate [Hz]", head.fps, info.fps),
        ):
            if ours != theirs:
                raise RecordingError(
                    f"'{name}' cannot be merged with '{first}': its {what} are {theirs}, there {ours}. A build joins "
                    "recordings of other rates and column orders by name: athena data build A B OUT --robot ROBOT."
                )
