"""Fine-tuning that can select its weights by success: who plays the scenes is the embedded simulator."""

from collections import Counter
from collections.abc import Sequence
from itertools import count, islice

from athena_vla.dataset.dataset import Dataset
from athena_vla.embodiment import Embodiment
from athena_vla.errors import AthenaError, MissingDependency, TrainingError
from athena_vla.evaluate.actors import ActorSpec
from athena_vla.evaluate.results import Setup, driven_by_policy
from athena_vla.plan.advised_finetune import PRESETS, FinetuneConfig, FinetuneResult
from athena_vla.plan.advised_finetune import finetune as advised_finetune
from athena_vla.policy import Policy
from athena_vla.progress import Progress
from athena_vla.sim.rail import on_rail, scene_of
from athena_vla.sim.scene import Split
from athena_vla.sim.task_language import BASE_FAMILIES, DEMO_FAMILIES, RAIL_FAMILIES, family_of

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneResult", "finetune"]

# Recordings and evaluations take scenes from seed * 1,000,000 on: these are those of seed 900.
FIRST_SCENE = 900_000_000
_LOOKED_AT = 20_000  # scenes in search of the families of a set


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> FinetuneResult:
    """Fine-tune as configured. Raises what `athena_vla.finetune.finetune` raises."""
    return advised_finetune(config, progress, InSimulator)


class InSimulator:
    """Scenes of the families that a set names, played in this process with the deployed loop and safety filter.

    They are of the split that recordings for training are made of, so what the test holds out is never selected by.
    Raises `TrainingError` where no simulator fits the set.
    """

    def __init__(self, dataset: Dataset, scenes: int) -> None:
        robot = dataset.robot
        self.split: Split
        self.split, self.families = families_of(dataset)
        self.scenes = tuple(islice(self._numbers(robot), scenes))
        if len(self.scenes) < scenes:
            raise TrainingError(f"The simulator has no {scenes} scenes of {', '.join(self.families)}.")
        # Whole chunks are played, whatever their length, as on the robot.
        self.setup = Setup(
            robot=robot.name, split=self.split, replan_every=dataset.horizon, owners=driven_by_policy(robot)
        )
        from athena_vla.evaluate.rollout import Stage  # needs the simulator, which `families_of` asked for

        try:
            self.stage = Stage(self.setup, robot)
        except AthenaError as error:
            raise TrainingError(f"--select success cannot play: {error}") from error

    @property
    def meaning(self) -> str:
        """Which scenes these are."""
        return (
            f"scenes of {', '.join(self.families)} with '{self.setup.robot}', split {self.split}, from number "
            f"{FIRST_SCENE:,} on, which no recording or evaluation has but those of --seed 900."
        )

    def play(self, policy: Policy, scenes: Sequence[int]) -> list[bool]:
        """Whether the policy solves each scene."""
        spec = ActorSpec("in training", source="in memory")
        robot = self.stage.robot
        return [self.stage.play(scene_of(robot, s, self.split), spec, policy).success for s in scenes]

    def _numbers(self, robot: Embodiment) -> "filter[int]":
        looked_at = islice(count(FIRST_SCENE), _LOOKED_AT)
        return filter(lambda s: scene_of(robot, s, self.split).goal.family in self.families, looked_at)


def families_of(dataset: Dataset) -> tuple[Split, tuple[str, ...]]:
    """The split and task families of the simulator that a set is of, by its instructions.

    Raises `TrainingError` where there is no simulator of the robot, or its tasks are not the set's.
    """
    robot = dataset.robot
    if not robot.mjcf:
        raise TrainingError(
            f"--select success needs a simulator, and there is none of robot '{robot.name}'. Use --select best."
        )
    try:
        import mujoco  # noqa: F401  asked for here, so that its absence is a sentence
    except ImportError as error:
        raise MissingDependency("mujoco", "sim", "for --select success") from error
    known: dict[Split, tuple[str, ...]] = {"train": DEMO_FAMILIES, "base": BASE_FAMILIES}
    if on_rail(robot):
        known = {"train": RAIL_FAMILIES}
    named = Counter(
        next((f for t in dataset.texts(i) if (f := family_of(t))), "") for i in range(len(dataset.episodes))
    )
    counts: dict[Split, int] = {split: sum(named[f] for f in families) for split, families in known.items()}
    split = max(counts, key=lambda s: counts[s])
    if 2 * counts[split] < len(dataset.episodes):
        listed = ", ".join(f for families in known.values() for f in families)
        raise TrainingError(
            f"--select success plays tasks of the embedded simulator ({listed}); the instructions of "
            f"{counts[split]} of {len(dataset.episodes)} episodes of '{dataset.path}' are of them. Use --select best."
        )
    return split, tuple(f for f in known[split] if named[f])
