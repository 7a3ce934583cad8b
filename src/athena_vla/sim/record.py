"""Recordings from the simulator, in parallel and resumable, in the folder layout that people record on real robots.

Knows nothing of models. An episode depends on its number and the configuration alone: any number of workers writes the
same bytes. Every frame holds what was seen and the joint targets for the next control step.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from athena_vla import files
from athena_vla.embodiment import Embodiment, load
from athena_vla.errors import RecordingError, SimulationError, UnknownName
from athena_vla.jobs import ordered, run_jobs
from athena_vla.progress import Progress, quiet
from athena_vla.recordings.formats.common import OpenOptions
from athena_vla.recordings.formats.isaac_folder import open_path, write_episode
from athena_vla.sim.demonstrate import demonstrate
from athena_vla.sim.rail import scene_of
from athena_vla.sim.robot import SimRobot
from athena_vla.sim.scene import Scene, Split
from athena_vla.sim.tasks import SPLITS, twin

CONFIG_FILE = "recording.json"
VERSION = 2  # changes whenever the same configuration would record something else
BYTES_PER_FRAME_PIXEL = 1.3  # generous: images plus everything else, to see a full disk coming
SEEDS_PER_RECORDING = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Record language-instructed demonstrations of athena in the embedded simulator."""

    out: Path = Path("runs/recordings")
    """Folder of the recording; finished episodes in it are kept when the settings are the same."""
    episodes: int = 400
    """How many episodes."""
    seed: int = 0
    """Which recording: episode i shows the scene of number seed * 1,000,000 + i (with twins, + i // 2)."""
    workers: int = 2
    """Processes; the recording is the same for any number."""
    image_size: int = 96
    """Height and width of the head camera's image. [px]"""
    split: Split = "train"
    """train: the demo's tasks; test: its unseen combinations; base: the generic tasks of the base model."""
    failures: float = 0.05
    """Share of demonstrations that fail on purpose."""
    noise: float = 0.01
    """Amplitude of slow disturbances of the executed motion; the recorded actions stay clean. [rad]"""
    renderer: str = "auto"
    """What draws the images: auto, rays, egl or osmesa; auto takes rays, which need no graphics driver."""
    robot: str = "athena"
    """A robot with a model for the simulator: athena, or athena_rail, whose base is lifted and turned."""
    twins: bool = False
    """Every second episode shows the scene of the one before, told of another object there: one image, two texts.
    Scenes in which no other object can be asked for are followed by a fresh one."""
    quiet: bool = False
    """Show no progress."""
    overwrite: bool = False
    """Start anew and replace what has the name of OUT; without, a run with the same settings goes on."""


@dataclass(frozen=True)
class EpisodeResult:
    """One line of a recording."""

    number: int
    family: str
    success: bool
    failed_on_purpose: bool
    frames: int
    reused: bool


@dataclass(frozen=True)
class RecordResult:
    """What a recording holds and what it took."""

    path: Path
    episodes: int
    reused: int
    frames: int
    successes: int
    failed_on_purpose: int
    seconds: float
    frames_per_second: float  # of the episodes recorded now; 0 where all were there
    families: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        speed = f", {self.frames_per_second:.0f} frames/s" if self.frames_per_second else ""
        return (
            f"{self.episodes} episodes ({self.reused} were there already) with {self.frames} frames in {self.path}: "
            f"{self.successes} succeeded, {self.failed_on_purpose} fail on purpose; {self.seconds:.1f} s{speed}. "
            "Next: athena data check " + str(self.path)
        )


def record(config: RecordConfig, progress: Progress = quiet) -> RecordResult:
    """Record what is missing and return what is there.

    Raises `SimulationError` for settings that cannot be recorded, another recording in the folder, a full disk or a
    dead worker; finished episodes stay.
    """
    _require(config)
    with files.lock(config.out, SimulationError):
        _open_folder(config)
        return _record(config, quiet if config.quiet else progress)


def _record(config: RecordConfig, progress: Progress) -> RecordResult:
    started = time.perf_counter()
    results: list[EpisodeResult] = []
    workers = min(config.workers, config.episodes)
    recorded = run_jobs(
        _recorder, config, range(config.episodes), workers=workers, describe="episode {}".format, error=SimulationError
    )
    try:
        with contextlib.closing(recorded):
            for result in ordered(recorded):
                results.append(result)
                progress(len(results), config.episodes, "recording episodes")
    except (OSError, RecordingError, SimulationError) as error:
        raise SimulationError(
            f"Recording stopped after {len(results)} of {config.episodes} episodes: {error} They are whole: "
            "run the same command again to go on."
        ) from error
    seconds = time.perf_counter() - started
    new = sum(r.frames for r in results if not r.reused)
    families: dict[str, int] = {}
    for r in results:
        families[r.family] = families.get(r.family, 0) + 1
    return RecordResult(
        path=config.out,
        episodes=len(results),
        reused=sum(r.reused for r in results),
        frames=sum(r.frames for r in results),
        successes=sum(r.success for r in results),
        failed_on_purpose=sum(r.failed_on_purpose for r in results),
        seconds=seconds,
        frames_per_second=new / seconds if new else 0.0,
        families=dict(sorted(families.items())),
    )


def _recorder(config: RecordConfig) -> Callable[[int], EpisodeResult]:
    """What records the episodes in one process."""
    return lambda number: _record_one(config, number)


def _record_one(config: RecordConfig, number: int) -> EpisodeResult:
    name = f"episode_{number:04d}"
    folder = config.out / name
    if folder.is_dir():
        episode = open_path(folder, OpenOptions()).read(name)
        truth = episode.truth
        if truth is None:
            raise SimulationError(f"'{folder}' is no recording of this simulator. Remove it, or record elsewhere.")
        return EpisodeResult(
            number=number,
            family=str(truth.task["family"]),
            success=bool(episode.success),
            failed_on_purpose=bool(truth.failed_on_purpose),
            frames=len(episode),
            reused=True,
        )
    robot = _stage(config.renderer, config.image_size, config.robot)
    scene = _scene(config, robot.embodiment, number)
    episode = demonstrate(robot, scene, failures=config.failures, noise=config.noise)
    episode = replace(episode, id=name)
    write_episode(config.out, episode)
    return EpisodeResult(
        number=number,
        family=scene.goal.family,
        success=bool(episode.success),
        failed_on_purpose=episode.truth is not None and bool(episode.truth.failed_on_purpose),
        frames=len(episode),
        reused=False,
    )


def _scene(config: RecordConfig, robot: Embodiment, number: int) -> Scene:
    """What an episode shows."""
    first = config.seed * SEEDS_PER_RECORDING
    if not config.twins:
        return scene_of(robot, first + number, config.split)
    scene = scene_of(robot, first + number // 2, config.split)
    if number % 2 == 0:
        return scene
    # Half of the seed's scenes are more than its episodes need: the others are fresh.
    return twin(scene) or scene_of(robot, first + SEEDS_PER_RECORDING // 2 + number // 2, config.split)


@lru_cache(maxsize=2)
def _stage(renderer: str, image_size: int, robot: str) -> SimRobot:
    """The robot of this process; every episode resets it."""
    body = load(robot)
    return SimRobot(scene_of(body, 0, "train"), body, renderer=renderer, image_size=(image_size, image_size))


def _require(config: RecordConfig) -> None:
    """Refuse what cannot work before anything is written."""
    if config.split not in SPLITS:
        raise UnknownName("split", config.split, SPLITS)
    if not 1 <= config.episodes <= SEEDS_PER_RECORDING:
        raise SimulationError(f"Cannot record {config.episodes} episodes: ask for 1 to {SEEDS_PER_RECORDING}.")
    if not 0.0 <= config.failures <= 1.0 or not 0.0 <= config.noise <= 0.2:
        raise SimulationError(
            f"failures {config.failures} must be a share from 0 to 1, noise {config.noise} from 0 to 0.2 rad."
        )
    if config.workers < 1:
        raise SimulationError(f"{config.workers} workers cannot record anything: ask for 1 or more.")
    if config.seed < 0:
        raise SimulationError(f"The seed is {config.seed}; it must not be negative.")
    _stage(
        config.renderer, config.image_size, config.robot
    )  # a renderer or size that does not work is named here, once


def _open_folder(config: RecordConfig) -> None:
    """Lay claim to the folder: it is new, or holds a recording of the same settings."""
    settings = {
        "version": VERSION,
        **{k: getattr(config, k) for k in ("seed", "image_size", "split", "failures", "noise")},
        "renderer": _stage(config.renderer, config.image_size, config.robot).renderer.name,
    }
    if config.robot != RecordConfig.robot:  # folders of before say nothing of a robot
        settings["robot"] = config.robot
    if config.twins:
        settings["twins"] = True
    marker = config.out / CONFIG_FILE
    try:
        if marker.is_file() and config.overwrite:
            files.discard(config.out, SimulationError)
        elif marker.is_file():
            there = files.read_json(marker, SimulationError)
            if there != settings:
                raise SimulationError(
                    f"'{config.out}' holds another recording: {there}, wanted {settings}. Choose another folder, or "
                    "replace it with --overwrite."
                )
        elif config.out.is_dir() and any(config.out.iterdir()):
            raise SimulationError(f"'{config.out}' is not empty and not a recording of ours. Choose another folder.")
        config.out.mkdir(parents=True, exist_ok=True)
        needed = int(config.episodes * 40 * config.image_size**2 * BYTES_PER_FRAME_PIXEL)
        free = shutil.disk_usage(config.out).free
        if free < needed:
            raise SimulationError(
                f"'{config.out}' has {free / 1e6:.0f} MB free, the recording may need {needed / 1e6:.0f} MB. "
                "Make room, or record fewer episodes."
            )
        if not marker.is_file():
            files.write_json(marker, settings, SimulationError)
    except OSError as error:
        raise SimulationError(f"Cannot record into '{config.out}': {error}.") from error
