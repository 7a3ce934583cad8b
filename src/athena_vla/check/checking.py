"""Runs all checks over a recording: one pass, one episode in memory at a time, findings merged where they repeat."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import athena_vla.embodiment as embodiment
from athena_vla.check.cameras import scan_camera
from athena_vla.check.episode_checks import episode_findings, sentence
from athena_vla.check.findings import RULES, Finding, explained, finding, in_full, lines
from athena_vla.check.joints import (
    constant_joints,
)
from athena_vla.check.predictable import FirstImages
from athena_vla.check.splits import check_leakage
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, LfsPointer, RecordingError, UnknownName
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.episode import Episode, Recording, RecordingInfo
from athena_vla.recordings.formats.common import read_names
from athena_vla.recordings.notes import Note
from athena_vla.recordings.overlaps import fingerprints, shared
from athena_vla.recordings.reading import Reading

# Said once for the recording when every episode says it.
COLLECTIVE = {
    "clock.missing", "joint.unnamed", "joint.mismatch", "joint.width", "joint.degrees", "joint.percent", "joint.ticks",
    "success.missing", "camera.none", "camera.missing", "camera.black", "action.none", "action.next_state",
    "action.delta", "action.unrelated", "action.lag", "language.missing", "language.useless", "joint.limits",
    "replay.mismatch", "column.unused", "column.unused_state", "channel.limits", "channel.rate",
    "column.unreadable", "camera.depth", "camera.joined_by_rank", "camera.joined_by_time", "camera.sparse",
    "articulation.several", "stream.unused", "joint.outside", "camera.uniform", "action.same_state",
}  # fmt: skip
COUNTS = ("count.declared", "count.gaps", "count.mask")  # notes that say that metadata and files disagree
OF_RECORDING = ("camera.shared_span", "episode.unlisted", "episode.duplicate_number")  # notes that are findings
COMMANDS_SHARE = 0.3  # of the episodes, from which on actions count as commands other than joint targets


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Reading):
    """What is checked, and against which robot."""

    input: Path
    """The recording, in any known format."""
    robot: str | None = None
    """Robot name or TOML file; limits and names are checked against it."""
    horizon: int = 8
    """Rows of an action chunk; shorter episodes are named."""
    pictures: bool = True
    """Look at the images; without it only their presence is checked."""
    every_picture: bool = False
    """Decode every frame of a video, also those coded to the size of their neighbours: two to three times slower."""
    page: Path | None = None
    """Write a self-contained HTML page here."""
    strict: bool = False
    """Warnings count as errors in the exit status."""
    full: bool = False
    """Print every finding instead of one line per code."""
    explain: str = ""
    """Print why this code matters, what to do about it, and every finding of it."""


@dataclass(frozen=True)
class CheckReport:
    """All findings, in the order of the episodes, and what the recording is."""

    path: Path
    findings: tuple[Finding, ...]
    info: RecordingInfo | None
    episodes: int
    frames: int
    strict: bool = False
    page: Path | None = None
    full: bool = False
    explain: str = ""

    @property
    def exit_status(self) -> int:
        """0 without errors, 1 with, 2 when nothing could be read."""
        if self.episodes == 0:
            return 2
        bad = {"error", "warning"} if self.strict else {"error"}
        return int(any(f.severity in bad for f in self.findings))

    def __str__(self) -> str:
        if self.explain:
            return explained(self.explain, self.findings)
        said = [in_full(f) for f in self.findings] if self.full else lines(self.findings)
        counts = {s: sum(f.severity == s for f in self.findings) for s in ("error", "warning", "info")}
        told = ", ".join(
            _count(counts[s], what) for s, what in (("error", "error"), ("warning", "warning"), ("info", "note"))
        )
        episodes = f"{_count(self.episodes, 'episode')}, {_count(self.frames, 'frame')}"
        said.append(f"{episodes}: {told}" + (f"; page: {self.page}" if self.page else ""))
        if self.findings and not self.full:
            said.append("--explain CODE says why it matters, what to do and where; --full lists every finding.")
        return "\n".join(said)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "format": self.info.format if self.info else None,
            "episodes": self.episodes,
            "frames": self.frames,
            "findings": [f.to_dict() for f in self.findings],
        }


def check(config: CheckConfig, progress: Progress = quiet) -> CheckReport:
    """Check a recording. What cannot be opened at all is a report with one finding and exit status 2."""
    if config.explain and config.explain not in RULES:
        raise UnknownName("code of a finding", config.explain, RULES)
    robot = embodiment.load(config.robot) if config.robot else None
    read_names(config.joints)  # a slip in an option is no finding
    try:
        recording = config.open(config.input)
        ids = recording.ids()
    except RecordingError as error:
        return CheckReport(config.input, (unreadable(error, None),), None, 0, 0, config.strict)
    state = _State(config, robot)
    for number, episode_id in enumerate(ids):
        try:
            episode = recording.read(episode_id)
        except AthenaError as error:
            state.found.append(unreadable(error, episode_id))
            continue
        state.add(episode)
        progress(number + 1, len(ids), "checking episodes", episode_id)
    if not ids:
        state.found.append(finding("recording.empty", f"'{config.input}' holds no episodes."))
    state.finish(recording)
    info = _info(recording, state.found)
    report = CheckReport(
        config.input,
        tuple(merged(state.found, state.episodes)),
        info,
        state.episodes,
        state.frames,
        config.strict,
        full=config.full,
        explain=config.explain,
    )
    if config.page is not None:
        from athena_vla.check.page import write_page

        write_page(config.page, report, recording, robot)
        report = CheckReport(**{**vars(report), "page": config.page})
    return report


def unreadable(error: AthenaError, episode: str | None) -> Finding:
    code = "file.lfs_pointer" if isinstance(error, LfsPointer) else "episode.unreadable"
    return finding(code, str(error), episode)


class _State:
    """What accumulates over the episodes: extremes, digests, the last images."""

    def __init__(self, config: CheckConfig, robot: Embodiment | None) -> None:
        self.config = config
        self.robot = robot
        self.found: list[Finding] = []
        self.episodes = self.frames = 0
        self.digests: dict[str, str] = {}
        self.windows: dict[str, NDArray[np.uint64]] = {}
        self.names: tuple[str, ...] | None = None
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None
        self.last: dict[str, NDArray[np.uint8] | None] = {}
        self.first_images = FirstImages()

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.frames += len(episode)
        self.found += self._one(episode)
        self._extremes(episode)
        self._duplicate(episode)
        self.windows[episode.id] = fingerprints(episode.states, episode.actions)

    def finish(self, recording: Recording) -> None:
        if self.names and self.low is not None and self.high is not None:
            self.found += constant_joints(self.low, self.high, self.names)
            bins = [(n, (b - a) / 255) for n, a, b in zip(self.names, self.low, self.high, strict=True)]
            name, width = max(bins, key=lambda p: p[1])
            if width > 0:
                each = ", ".join(f"{n} {w:.4f}" for n, w in bins if w > 0)
                self.found.append(
                    finding("token.coarse", f"The widest bin is {width:.4f} rad ({name}); per joint: {each}")
                )
        self.found += self._overlaps()
        self.found += self.first_images.findings()
        try:
            self.found += check_leakage(recording, self.digests)
        except RecordingError as error:  # what names the splits is damaged; the episodes were checked all the same
            self.found.append(unreadable(error, None))

    def _one(self, episode: Episode) -> Iterator[Finding]:
        yield from episode_findings(episode, self.robot, self.config.horizon)
        if not self.config.pictures:
            return
        first: list[NDArray[np.uint8]] = []
        for name, stream in sorted(episode.cameras.items()):
            scan = scan_camera(episode, name, stream, self.last.get(name), not self.config.every_picture)
            self.last[name] = scan.last
            first += [scan.first] if scan.first is not None else []
            yield from scan.findings
        self.first_images.add(episode, first)

    def _overlaps(self) -> Iterator[Finding]:
        """Cuts of one take; whole copies are duplicates, which are said already."""
        for (one, two), count in shared(self.windows).items():
            if self.digests.get(one) != self.digests.get(two):
                message = f"It shares at least {count} moving frames with episode {one}: both were cut from one take."
                yield finding("episode.overlap", message, two)

    def _extremes(self, episode: Episode) -> None:
        if not episode.joint_names or not np.isfinite(episode.actions).all():
            return
        if self.names is None:
            self.names = episode.joint_names
            self.low = np.full(len(self.names), np.inf)
            self.high = np.full(len(self.names), -np.inf)
        if episode.joint_names != self.names:
            message = f"Its {len(episode.joint_names)} action columns are not those of the first episode."
            self.found.append(finding("joint.mismatch", message, episode.id))
            return
        assert self.low is not None
        assert self.high is not None
        self.low = np.minimum(self.low, episode.actions.min(axis=0))
        self.high = np.maximum(self.high, episode.actions.max(axis=0))

    def _duplicate(self, episode: Episode) -> None:
        if not episode.joint_names:
            return
        # Float32 and four decimals: a copy that went through another format is still a copy.
        rounded = np.round(np.asarray(episode.actions, np.float32), 4) + 0.0
        digest = hashlib.sha256(rounded.tobytes()).hexdigest()
        twin = next((i for i, d in self.digests.items() if d == digest), None)
        if twin is not None and np.ptp(rounded, axis=0).max() > 0:
            self.found.append(finding("episode.duplicate", f"Its actions are those of episode {twin}.", episode.id))
        self.digests[episode.id] = digest


def _info(recording: Recording, found: list[Finding]) -> RecordingInfo | None:
    try:
        info = recording.info()
    except RecordingError as error:
        if not found:
            found.append(unreadable(error, None))
        return None
    lengths = {f.episode for f in found if f.code == "metadata.length"}
    said = {(f.code, f.episode) for f in found}
    found += [f for f in of_recording(info.notes) if (f.code, f.episode) not in said]
    counts = [n for n in info.notes if n.code in COUNTS and not (n.episode and n.episode in lengths)]
    found += [finding("metadata.count", n.text[0].upper() + n.text[1:] + ".") for n in counts]
    return info


def of_recording(notes: Sequence[Note]) -> list[Finding]:
    """Findings about a recording as a whole: its tables and files, not what an episode holds."""
    return [finding(n.code, sentence(n.text), n.episode or None) for n in notes if n.code in OF_RECORDING]


def merged(found: list[Finding], episodes: int) -> Iterator[Finding]:
    """One finding in place of the same one for every episode."""
    found = _commands(found, episodes)
    said: dict[str, set[str]] = {}  # code -> episodes
    for f in found:
        if f.code in COLLECTIVE and f.episode is not None:
            said.setdefault(f.code, set()).add(f.episode)
    first: dict[str, str] = {}  # code -> the episode that speaks for all; it may have several findings of the code
    for f in found:
        if f.episode is not None and len(said.get(f.code, ())) >= max(episodes, 2):
            if first.setdefault(f.code, f.episode) == f.episode:
                yield Finding(
                    f.code, f.severity, f"{f.message} (all {episodes} episodes)", None, f.frames, f.why, f.fix
                )
            continue
        yield f


def _commands(found: list[Finding], episodes: int) -> list[Finding]:
    """Where many episodes say that actions are no joint targets, say it once, and drop what only targets can fail."""
    votes = [f for f in found if f.code in ("action.delta", "action.unrelated")]
    if episodes < 3 or len(votes) < COMMANDS_SHARE * episodes:
        return found
    deltas = [f for f in votes if f.code == "action.delta"]
    chosen = (deltas if len(deltas) >= len(votes) / 2 else votes)[0]
    message = f"{chosen.message} So it is in {len(votes)} of {episodes} episodes."
    moot = {"action.delta", "action.unrelated", "action.lag", "replay.mismatch", "joint.jump"}
    kept = [f for f in found if f.code not in moot]
    return [*kept, Finding(chosen.code, chosen.severity, message, None, None, chosen.why, chosen.fix)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
