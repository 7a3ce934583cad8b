"""`athena data info`: what a recording is, from its content."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from athena_vla.embodiment import load
from athena_vla.recordings.episode import RecordingInfo
from athena_vla.recordings.formats import info_json
from athena_vla.recordings.reading import Reading


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Reading):
    """Which recording is described."""

    input: Path
    """The recording: a folder or a file in any known format."""
    robot: str = ""
    """Robot name or TOML file: say which of its joints and channels the recorded columns are, by name."""


@dataclass(frozen=True)
class ColumnFit:
    """Recorded columns beside those of a robot, by name."""

    what: str  # actions or states
    robot: str
    found: tuple[str, ...]
    missing: tuple[str, ...]  # of the robot, not recorded
    left_over: tuple[str, ...]  # recorded, and none of the robot's

    @classmethod
    def of(cls, what: str, robot: str, wanted: Sequence[str], recorded: Sequence[str]) -> "ColumnFit":
        """Both lists keep the robot's, or the recording's, order."""
        return cls(
            what,
            robot,
            tuple(n for n in wanted if n in recorded),
            tuple(n for n in wanted if n not in recorded),
            tuple(n for n in recorded if n not in wanted),
        )

    def __str__(self) -> str:
        every = len(self.found) + len(self.missing)
        words = f"{len(self.found)} of the {every} of '{self.robot}' are recorded under their names"
        words += f"; missing: {', '.join(self.missing)}" if self.missing else ""
        return words + (f"; none of its own: {', '.join(self.left_over)}" if self.left_over else "")


@dataclass(frozen=True)
class InfoResult:
    """What was found."""

    path: Path
    info: RecordingInfo
    fits: tuple[ColumnFit, ...] = ()  # of actions and of states, where a robot was named

    def to_dict(self) -> dict[str, Any]:
        fits = {"robot_fit": {f.what: asdict(f) for f in self.fits}} if self.fits else {}
        return {"path": str(self.path), **info_json(self.info), **fits}

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
            *(f"  {fit.what:<10} {fit}" for fit in self.fits),
            *(f"  task       {task}" for task in info.tasks[:10]),
            *(f"  note       {note}" for note in info.notes),
        ]
        return "\n".join(lines)


def info(config: InfoConfig) -> InfoResult:
    """Describe a recording. Raises `RecordingError`, and what `embodiment.load` raises for the robot."""
    robot = load(config.robot) if config.robot else None
    recording = config.open(config.input)
    found = recording.info()
    if robot is None:
        return InfoResult(config.input, found)
    actions = ColumnFit.of("actions", robot.name, robot.command_names, found.joint_names)
    states = ColumnFit.of("states", robot.name, robot.state_names, found.state_names)
    return InfoResult(config.input, found, (actions, states))
