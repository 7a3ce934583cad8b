"""What the rounds share: policy, set and corrector that fit each other, and a folder that is theirs."""

from dataclasses import dataclass
from pathlib import Path

from athena_vla import files
from athena_vla.bundle import Bundle
from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.evaluate.results import Setup, driven_by_policy
from athena_vla.evaluate.training_by_success import families_of
from athena_vla.improve.collecting import has_episodes, listing
from athena_vla.improve.improve_config import ImproveConfig
from athena_vla.sim.rail import on_rail

SETTINGS = "improve.json"
VERSION = 2  # changes whenever the same settings would give other rounds


@dataclass(frozen=True)
class Improving:
    """What all rounds share."""

    config: ImproveConfig
    data: Dataset
    setup: Setup | None  # None without a simulator
    old: tuple[str, ...]  # tasks of the set, as the simulator calls them

    def folder(self, number: int) -> Path:
        return self.config.out / f"round_{number}"

    def recordings(self, number: int, now: Path) -> tuple[Path, ...]:
        """All corrections until this round, whose folder is still `now`."""
        if self.config.folders:
            return self.config.folders
        rounds = [*(self.folder(n) for n in range(1, number)), now]
        return tuple(f / "recordings" for f in rounds if has_episodes(f / "recordings"))


def open_inputs(config: ImproveConfig) -> Improving:
    """Policy, set and corrector, if they fit."""
    bundle, data = Bundle.open(config.bundle, verify=False), Dataset.open(config.data)
    robot, stage = bundle.robot, bundle.manifest.stage
    if not bundle.manifest.adapter and stage not in ("base", "merged"):
        raise TrainingError(
            f"'{config.bundle}' is a bundle of stage '{stage}'; only float weights can be trained on. Improve the "
            "bundle that it was made from, then make this one again."
        )
    if robot.hash != data.robot.hash:
        raise TrainingError(
            f"'{config.bundle}' drives '{robot.name}' ({robot.hash}), '{config.data}' holds motions of "
            f"'{data.robot.name}' ({data.robot.hash}). Give the set that the policy was trained on."
        )
    for folder in config.folders:
        if not folder.exists():
            raise TrainingError(f"There are no recordings '{folder}'; athena drive --record makes them.")
    if not robot.mjcf or on_rail(robot):
        if not config.folders:
            raise TrainingError(
                f"--corrector {config.kind} plays scenes of the embedded simulator, which has none for '{robot.name}'. "
                "Drive the robot with athena drive --teleop --record FOLDER, and give --corrector recordings FOLDER."
            )
        return Improving(config, data, None, ())
    setup = Setup(robot=robot.name, replan_every=data.horizon, owners=driven_by_policy(robot))
    try:
        old = families_of(data)[1]
    except TrainingError:
        if not config.folders:
            raise
        return Improving(config, data, None, ())
    return Improving(config, data, setup, old)


def claim_folder(config: ImproveConfig, work: Improving) -> None:
    """Lay claim to the folder: it is new, or holds rounds of the same settings."""
    settings = {
        "version": VERSION,
        **config.identity(),
        "policy": Bundle.open(config.bundle, verify=False).hash,
        "set": work.data.hash,
        "recordings": listing(config.folders),
    }
    marker = config.out / SETTINGS
    if marker.is_file() and config.overwrite:
        files.discard(config.out, TrainingError)
    elif marker.is_file():
        there = files.read_json_object(marker, TrainingError)
        differ = sorted(k for k in there.keys() | settings.keys() if there.get(k) != settings.get(k))
        if differ:
            raise TrainingError(
                f"'{config.out}' holds rounds of other settings ({', '.join(differ)}). Choose another folder with "
                "--out, or replace it with --overwrite."
            )
        return
    files.require_free(
        config.out, overwrite=False, what="a folder of rounds", ours=lambda _: False, error=TrainingError
    )
    config.out.mkdir(parents=True, exist_ok=True)
    files.write_json(marker, settings, TrainingError)
