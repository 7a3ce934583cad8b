"""Recording -> a sidecar of segments with instruction, source and confidence; the recording itself is never touched.

Segments come from whoever knows best: people, then the simulator, then motion rules. The original instruction stays.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import athena_vla.embodiment as embodiment
from athena_vla import files
from athena_vla.annotate.paraphrase import ParaphraseConfig
from athena_vla.annotate.segment_table import edited, write_table
from athena_vla.annotate.segments import episode_segments
from athena_vla.errors import RecordingError
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import BrokenEpisode, Segment
from athena_vla.recordings.reading import Reading


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig(Reading):
    """What is segmented, and where the sidecar goes."""

    input: Path
    """The recording, in any known format."""
    out: Path | None = None
    """The sidecar; RECORDING.annotations.json beside the recording where not given."""
    robot: str | None = None
    """Robot name or TOML file: joint ranges, and names for unnamed columns."""
    seed: int = 0
    """Chooses among phrasings, once per segment."""
    edit: Path | None = None
    """A tab-separated table of segments to edit: written where it is not there yet, else read into the sidecar."""
    paraphrase_url: str = ""
    """Base address (…/v1) of an OpenAI-compatible vision model that rewords segments; empty: none is asked."""
    paraphrase_model: str = ""
    """Model name for the paraphrase server."""


@dataclass(frozen=True)
class AnnotateResult:
    """What was found: per episode its segments, and what could not be read."""

    path: Path
    episodes: int
    segments: int
    kinds: dict[str, float]  # share of all frames
    sources: dict[str, int]
    broken: dict[str, str]
    without: tuple[str, ...]  # episodes for which no source says anything
    table: str = ""  # what was done with the table of --edit

    def __str__(self) -> str:
        kinds = ", ".join(f"{k} {v:.0%}" for k, v in self.kinds.items())
        lines = [f"{self.segments} segments in {self.episodes} episodes ({kinds or 'none'}), written to {self.path}"]
        lines += [
            f"nothing to say about {i}: no source segments it, and motion rules need joint names "
            "(--robot gives unnamed columns that robot's)"
            for i in self.without[:10]
        ]
        lines += [f"left out {i}: {reason}" for i, reason in self.broken.items()]
        lines += [self.table] if self.table else []
        return "\n".join(lines)


def annotate(config: AnnotateConfig, progress: Progress = quiet) -> AnnotateResult:
    """Segment every episode and write the sidecar. Raises `DatasetError` or `RecordingError`."""
    robot = embodiment.load(config.robot) if config.robot else None
    recording = config.open(config.input)
    model = None
    if config.paraphrase_url:
        model = ParaphraseConfig(url=config.paraphrase_url, model=config.paraphrase_model)
    out = config.out or config.input.with_name(f"{config.input.name}.annotations.json")
    ids = recording.ids()
    entries: dict[str, Any] = {}
    broken: dict[str, str] = {}
    without: list[str] = []
    found: dict[str, tuple[Segment, ...]] = {}
    lengths: dict[str, int] = {}
    for number, item in enumerate(recording.episodes()):
        if isinstance(item, BrokenEpisode):
            broken[item.id] = item.reason
            continue
        segments = episode_segments(item, robot, config.seed, model)
        found[item.id], lengths[item.id] = segments, len(item)
        entries[item.id] = {"length": len(item), "instructions": list(item.instructions)}
        progress(number + 1, len(ids), "annotating episodes", item.id)
    if not entries:
        reason = next(iter(broken.values()), "it holds no episodes")
        raise RecordingError(f"'{config.input}' has no episode that can be annotated: {reason}")
    told = ""
    if config.edit is not None and config.edit.exists():
        found = edited(config.edit, found, lengths)
        told = f"the segments are those of '{config.edit}'"
    elif config.edit is not None:
        write_table(config.edit, found)
        again = "the same command reads it into the sidecar"
        told = f"'{config.edit}' holds them as a table: change it, and {again}"
    frames: dict[str, int] = {}
    sources: dict[str, int] = {}
    for name, segments in found.items():
        entries[name]["segments"] = [asdict(s) for s in segments]
        without += [] if segments else [name]
        for s in segments:
            frames[s.kind] = frames.get(s.kind, 0) + s.stop - s.start
            sources[s.source] = sources.get(s.source, 0) + 1
    total = max(sum(frames.values()), 1)
    content = {"version": 1, "recording": str(config.input.name), "seed": config.seed, "episodes": entries}
    files.write_json(out, content, RecordingError)
    return AnnotateResult(
        path=out,
        episodes=len(entries),
        segments=sum(sources.values()),
        kinds={k: v / total for k, v in sorted(frames.items())},
        sources=sources,
        broken=broken,
        without=tuple(without),
        table=told,
    )
