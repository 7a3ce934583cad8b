"""The commands `athena trials draw`, `run` and `report`: configurations, and the way from them to the trials."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from athena_vla.errors import EvaluationError
from athena_vla.evaluate.statistics import minimum_episodes
from athena_vla.trials.asking import Console, Drive
from athena_vla.trials.drawing import PLAN, Stop, TrialScene, draw, write
from athena_vla.trials.reporting import TrialReport, report_trials
from athena_vla.trials.running import run_trials

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Draw the order of trials: every scene with every policy, in random order, before the first trial."""

    out: Path
    """Folder of the trials."""
    policy: tuple[str, ...]
    """Two policies or more: NAME=WHERE (ws://HOST:PORT or a bundle), or NAME where a person starts it."""
    scenes: Path | None = None
    """TOML file with [[scene]] tables: name, instruction, task, checklist."""
    scene: tuple[str, ...] = ()
    """Names of scenes, instead of a file."""
    rounds: int = 1
    """How often each scene is tried with each policy."""
    seed: int = 0
    """Decides the order and the slots."""
    stop: Stop = "fixed"
    """`fixed` makes all trials; `evidence` ends them earlier, once the policies differ by 20 to 1 at any time."""
    emergencies: int = 3
    """Emergency stops of one policy that end the trials; 0 is never."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn."""

    folder: Path
    trials: int
    hash: str
    half_width: float  # of the Wilson interval at 50%

    def __str__(self) -> str:
        return (
            f"{self.trials} trials in '{self.folder / PLAN}'.\nHash {self.hash}: note it where it cannot be changed, "
            f"before the first trial.\nThe interval of a policy: +/-{100 * self.half_width:.0f} points at worst."
            f"\nNext: athena trials run '{self.folder}'"
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run trials: scene, robot, verdict. Interrupted, the same command goes on."""

    folder: Path
    """Folder of the trials."""
    manual: bool = False
    """A person starts the policies by their slot; nothing is driven from here."""
    robot: str = "sim"
    """Robot adapter, as for athena drive."""
    option: tuple[str, ...] = ()
    """Options of the adapter, as NAME=VALUE."""
    duration: float = 30.0
    """A trial ends after this long, `q` or Ctrl-C. [s]"""
    speed: float = 1.0
    """Share of the velocity limits, from 0.1 to 1."""
    video: bool = False
    """Ask for a link to a video after each trial."""


@dataclass(frozen=True)
class Ran:
    """Why it stopped."""

    folder: Path
    ended_by: str

    def __str__(self) -> str:
        if self.ended_by == "paused":
            return f"Paused; nothing is lost. Go on with: athena trials run '{self.folder}'"
        return f"The trials are over: {self.ended_by}.\nNext: athena trials report '{self.folder}'"


@dataclass(frozen=True, kw_only=True)
class TrialReportConfig:
    """Open the names of the policies and count."""

    folder: Path
    """Folder of the trials."""
    now: bool = False
    """End unfinished trials here, for good."""


def trials_draw(config: DrawConfig) -> Drawn:
    """Raises `EvaluationError` for policies or scenes that do not fit, and where trials were drawn already."""
    policies: dict[str, str] = {}
    for text in config.policy:
        name, _, where = text.partition("=")
        if not name or name in policies:
            raise EvaluationError(f"'{text}' is no policy of its own name: NAME=WHERE.")
        policies[name] = where
    if (config.scenes is None) == (not config.scene):
        raise EvaluationError("Give scenes: --scenes FILE.toml, or --scene NAME NAME; one of the two.")
    scenes = [TrialScene(n) for n in config.scene] if config.scenes is None else read_scenes(config.scenes)
    plan, sealed = draw(policies, scenes, config.rounds, config.seed, config.stop, config.emergencies)
    write(config.out, plan, sealed)
    each = len(plan.order) // len(policies)
    half = next(w / 100 for w in range(1, 101) if minimum_episodes(w / 100, 0.5) <= each)
    return Drawn(config.out, len(plan.order), plan.hash, half)


def trials_run(config: RunConfig) -> Ran:
    """Raises what `run_trials` raises."""
    return Ran(
        config.folder,
        run_trials(config.folder, Console(), None if config.manual else _drive(config), video=config.video),
    )


def trials_report(config: TrialReportConfig) -> TrialReport:
    """Raises what `report_trials` raises."""
    return report_trials(config.folder, now=config.now)


def read_scenes(path: Path) -> list[TrialScene]:
    """Scenes of a TOML file. Raises `EvaluationError` for what is none."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"The scenes '{path}' cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EvaluationError(f"'{path}' is no TOML file: {error}.") from error
    tables = content.pop("scene", None)
    if content or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise EvaluationError(f"'{path}' holds [[scene]] tables and nothing else, each with a name.")
    return [TrialScene.from_dict(t, f"'{path}', scene {i}") for i, t in enumerate(tables, 1)]


def _drive(config: RunConfig) -> Drive:
    def drive_once(place: str, instruction: str) -> str:
        from athena_vla.drive.driving import DriveConfig, drive

        return drive(
            DriveConfig(
                robot=config.robot,
                option=config.option,
                policy=place,
                task=instruction,
                duration=config.duration,
                speed=config.speed,
            )
        ).ended_by

    return drive_once
