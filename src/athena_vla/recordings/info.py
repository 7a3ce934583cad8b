"""`athena data info`: what a recording is, from its content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.recordings.episode import RecordingInfo
from athena_vla.recordings.formats import info_json, open_recording
from athena_vla.recordings.formats.common import read_list, read_names


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Which recording is described."""

    input: Path
    """The recording: a folder or a file in any known format."""
    format: str | None = None
    """Format of the recording; found by content where not given."""
    joints: Path | None = None
    """Names of the action columns: a JSON list, a text file, or a robot whose joints they are."""
    state_joints: Path | None = None
    """Names of the recorded state columns, as for --joints; for files that name neither."""
    articulation: str = ""
    """Which recorded robot is meant where a file holds several, or its parts in order: left_arm,right_arm."""
    fps: float | None = None
    """Rate of the recording where it does not say it [Hz]."""


@dataclass(frozen=True)
class InfoResult:
    """What was found."""

    path: Path
    info: RecordingInfo

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), **info_json(self.info)}

    def __str__(self) -> str:
        info = self.info
        cameras = ", ".join(f"{n} {w}x{h}" for n, (h, w) in info.cameras.items()) or "none"
        more = " …" if len(info.joint_names) > 6 else ""
        lines = [
            f"{self.path}: {info.format} {info.version}".rstrip(),
            f"  robot      {info.robot or 'not named'}",
            f"  episodes   {info.episodes}, {info.frames} frames, {info.duration:.1f} s",
            f"  rate       {f'{info.fps:g} Hz' if info.fps else 'not recorded'}",
            f"  actions    {len(info.joint_names)}: {', '.join(info.joint_names[:6])}{more}",
            f"  states     {len(info.state_names)}",
            f"  cameras    {cameras}",
            f"  success    {'not recorded' if info.successes is None else f'{info.successes} of {info.episodes}'}",
            *(f"  task       {task}" for task in info.tasks[:10]),
            *(f"  note       {note}" for note in info.notes),
        ]
        return "\n".join(lines)


def info(config: InfoConfig) -> InfoResult:
    """Describe a recording. Raises `RecordingError`."""
    recording = open_recording(
        config.input,
        format=config.format,
        joints=read_names(config.joints),
        fps=config.fps,
        state_joints=read_names(config.state_joints),
        articulations=read_list(config.articulation),
    )
    return InfoResult(config.input, recording.info())
