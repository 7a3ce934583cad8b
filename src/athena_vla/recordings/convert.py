"""Any recording -> another format, numbers bit for bit; what the format cannot hold goes into a sidecar we read back.

Episodes stream through one at a time; a broken one is named and left out; nothing is at the target until it is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from athena_vla import files
from athena_vla.errors import AthenaError, RecordingError, UnknownName
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.annotations import read_annotations
from athena_vla.recordings.episode import BrokenEpisode, Episode, Recording, Segment
from athena_vla.recordings.fixes import FIXES, apply_fixes
from athena_vla.recordings.formats import open_recording
from athena_vla.recordings.formats.isaac_folder import write_episode
from athena_vla.recordings.formats.lerobot import LeRobot
from athena_vla.recordings.formats.lerobot_rows import episode_rows, features_of, sidecar_entry
from athena_vla.recordings.formats.lerobot_schema import SUBTASK, Feature
from athena_vla.recordings.formats.lerobot_v2_write import LeRobotV21Writer
from athena_vla.recordings.formats.lerobot_write import LeRobotV3Writer
from athena_vla.recordings.formats.rlds_write import RLDSWriter
from athena_vla.recordings.reading import Reading
from athena_vla.recordings.several import chosen, read_or_broken
from athena_vla.recordings.texts import NO_TEXT, first_of_frames

Target = Literal["lerobot_v3", "lerobot_v21", "rlds", "isaac_folder"]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Reading):
    """What is converted, and into what."""

    input: Path
    """The recording, in any known format."""
    out: Path
    """Where the result is written."""
    also: tuple[Path, ...] = ()
    """More recordings that go into the same result."""
    exclude: tuple[str, ...] = ()
    """Episodes that are left out, by their number or name; RECORDING/EPISODE where there are several recordings."""
    to: Target = "lerobot_v3"
    """Format of the result."""
    annotations: Path | None = None
    """Sidecar of `athena data annotate` whose segments are written along."""
    video: bool = False
    """Encode single images as h264 video (crf 18); without it they are kept losslessly."""
    language_columns: bool = False
    """Write segments as a LeRobot `language_persistent` column (needs lerobot 0.6 to read)."""
    fix: tuple[str, ...] = ()
    """Explicit repairs, recorded in the sidecar: trim-idle, drop-failed, drop-duplicates, drop-first-frame."""
    strict: bool = False
    """One broken episode fails the conversion instead of being named and left out."""
    overwrite: bool = False
    """Replace what has the name of OUT already; it stays until the new one is whole."""


@dataclass(frozen=True)
class ConvertResult:
    """What was written, and what was left out and why."""

    path: Path
    format: str
    episodes: int
    frames: int
    broken: Mapping[str, str]
    fixed: Mapping[str, Sequence[str]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.episodes} episodes, {self.frames} frames as {self.format}"]
        lines += [f"fixed {i}: {'; '.join(what)}" for i, what in self.fixed.items()]
        lines += [f"left out {i}: {reason}" for i, reason in self.broken.items()]
        return "\n".join([*lines, *(f"note: {n}" for n in dict.fromkeys(self.notes))])


def convert(config: ConvertConfig, progress: Progress = quiet) -> ConvertResult:
    """Convert a recording. Raises `RecordingError`; leaves nothing at `out` unless it is whole."""
    for name in config.fix:
        if name not in FIXES:
            raise UnknownName("fix", name, FIXES)
    recording = config.open(config.input, *config.also)
    segments = read_annotations(config.annotations) if config.annotations else {}
    files.require_room(config.out, files.size_of((config.input, *config.also)), "The result", RecordingError)
    with (
        files.claim(
            config.out,
            overwrite=config.overwrite,
            what="a recording",
            ours=_is_recording,
            reads=config.input,
            error=RecordingError,
        ),
        files.whole_folder(config.out, RecordingError) as folder,
    ):
        return _convert(config, recording, segments, folder, progress)


def _convert(
    config: ConvertConfig,
    recording: Recording,
    segments: Mapping[str, tuple[Segment, ...]],
    folder: Path,
    progress: Progress,
) -> ConvertResult:
    sink = _SINKS[config.to](folder, config)
    broken: dict[str, str] = {}
    fixed: dict[str, list[str]] = {}
    seen: set[str] = set()
    left: dict[str, None] = {}
    frames = episodes = 0
    ids = chosen(recording.ids(), config.exclude)
    tasks = recording.meta.tasks if isinstance(recording, LeRobot) else {}
    try:
        for number, episode_id in enumerate(ids):
            progress(number + 1, len(ids), "converting episodes", episode_id)
            item = read_or_broken(recording, episode_id)
            if isinstance(item, BrokenEpisode):
                broken[item.id] = item.reason
                continue
            try:
                episode = replace(item, segments=segments[item.id]) if item.id in segments else item
                changed, said = apply_fixes(episode, config.fix, seen)
                if said:
                    fixed[item.id] = said
                if changed is None:
                    continue
                sink.add(changed, tasks)
            except AthenaError as error:
                if error.of_writing:
                    raise
                broken[item.id] = str(error)
                continue
            left |= dict.fromkeys(_left_behind(changed, config.to))
            episodes, frames = episodes + 1, frames + len(changed)
        if broken and config.strict:
            first = next(iter(broken.items()))
            raise RecordingError(f"{len(broken)} of {len(ids)} episodes are broken (--strict): {first[0]}: {first[1]}")
        if not episodes:
            reason = next(iter(broken.values()), "no episode is left after the fixes" if fixed else "there are none")
            raise RecordingError(f"Nothing of '{config.input}' can be converted: {reason}")
        sink.finish(fixed)
    except BaseException:
        sink.abandon()
        raise
    return ConvertResult(config.out, config.to, episodes, frames, broken, fixed, (*sink.notes, *left))


def _left_behind(episode: Episode, target: str) -> Iterator[str]:
    """What of an episode does not reach the new recording, for one line each."""
    yield from (n.text for n in episode.notes if n.code in ("stream.unused", "camera.depth", "column.unreadable"))
    if target != "isaac_folder":
        own = sorted(k for k, s in episode.streams.items() if s.clock is not None)
        if own:
            yield (
                f"{len(own)} streams have a clock of their own and no place in {target}: {', '.join(own)}; "
                "--to isaac_folder keeps them"
            )


def _is_recording(path: Path) -> bool:
    try:
        open_recording(path)
    except AthenaError:
        return False
    return True


class _LeRobotSink:
    """Both LeRobot versions: the first episode decides the features."""

    def __init__(self, folder: Path, config: ConvertConfig) -> None:
        self.folder = folder
        self.config = config
        self.writer: LeRobotV3Writer | LeRobotV21Writer | None = None
        self.features: dict[str, Feature] = {}
        self.entries: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def add(self, episode: Episode, tasks: Mapping[int, str]) -> None:
        if not episode.instructions:
            self.notes[:] = [*self.notes, f"episode {episode.id} has no instruction"]
        spans = [(s.start, s.stop, s.text) for s in episode.segments if s.text]
        if self.writer is None:
            said = bool(spans) or self.config.annotations is not None
            self.features = features_of(
                episode,
                video=self.config.video,
                language=self.config.language_columns,
                subtasks=said and self.config.to == "lerobot_v3",
            )
            kind = LeRobotV3Writer if self.config.to == "lerobot_v3" else LeRobotV21Writer
            self.writer = kind(self.folder, self.features, episode.fps, episode.origin.robot)
            self.features = self.writer.features
            # Columns of task indices (GR00T) stay true only if every task keeps its number.
            self.writer.tasks.update({text: index for index, text in sorted(tasks.items())})
        columns, stats, videos = episode_rows(episode, self.features, self.folder / ".videos")
        texts = list(episode.instructions) or [NO_TEXT]
        per_frame = [t or NO_TEXT for t in first_of_frames(episode.texts, len(episode))]
        per_frame = None if len(set(per_frame)) == 1 else per_frame
        self.writer.add(columns, len(episode), texts, stats, videos, per_frame, segments=spans)
        if spans and self.config.to == "lerobot_v3" and SUBTASK not in self.features:
            self.notes.append(
                f"segments of episode {episode.id} are in our sidecar alone: the first episode has none, "
                "so that the set has no column of subtasks"
            )
        self.entries.append(sidecar_entry(episode))

    def finish(self, fixed: Mapping[str, Sequence[str]]) -> None:
        assert self.writer is not None
        self.writer.finish()
        shutil.rmtree(self.folder / ".videos", ignore_errors=True)
        content = {"version": 1, "source": str(self.config.input.name), "fixes": fixed, "episodes": self.entries}
        (self.folder / "meta" / "athena_recording.json").write_text(json.dumps(content, indent=1))

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.abandon()


class _RLDSSink:
    def __init__(self, folder: Path, config: ConvertConfig) -> None:
        self.folder = folder / "1.0.0"
        self.name = "".join(c if c.isalnum() else "_" for c in config.out.name.lower()).strip("_") or "dataset"
        self.writer: RLDSWriter | None = None
        self.notes: list[str] = ["stock OpenVLA trains on end-effector actions only; this set holds joint targets"]

    def add(self, episode: Episode, tasks: Mapping[int, str]) -> None:
        if self.writer is None:
            self.writer = RLDSWriter(self.folder, episode, self.name)
        first = self.writer.first
        if episode.joint_names != first.joint_names or list(episode.cameras) != list(first.cameras):
            raise RecordingError(f"Episode {episode.id} has other joints or cameras than episode {first.id}.")
        self.writer.add(episode)

    def finish(self, fixed: Mapping[str, Sequence[str]]) -> None:
        assert self.writer is not None
        self.writer.finish()

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.abandon()


class _FolderSink:
    def __init__(self, folder: Path, config: ConvertConfig) -> None:
        self.folder = folder
        self.count = 0
        self.notes: list[str] = []

    def add(self, episode: Episode, tasks: Mapping[int, str]) -> None:
        if not episode.joint_names:
            raise RecordingError(f"Episode {episode.id} has no actions, which the folder layout needs.")
        name = episode.origin.recorded_id or episode.id
        name = f"episode_{int(name):06d}" if name.isdigit() else name.replace("/", "_")
        write_episode(self.folder, replace(episode, id=name))
        self.count += 1

    def finish(self, fixed: Mapping[str, Sequence[str]]) -> None:
        if fixed:
            (self.folder / "fixes.json").write_text(json.dumps(fixed, indent=1))

    def abandon(self) -> None:
        return


_SINKS: dict[str, Callable[[Path, ConvertConfig], Any]] = {
    "lerobot_v3": _LeRobotSink,
    "lerobot_v21": _LeRobotSink,
    "rlds": _RLDSSink,
    "isaac_folder": _FolderSink,
}
