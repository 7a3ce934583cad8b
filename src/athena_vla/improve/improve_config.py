"""What `athena improve` is told; read without torch."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from athena_vla.errors import TrainingError, UnknownName
from athena_vla.finetune.finetune_config import PRESETS, FinetuneConfig, parse_changes
from athena_vla.sim.scene import Split

Corrector = Literal["script", "none", "recordings"]
TaskRule = Literal["tested", "observed"]
MOST_ROUNDS = 50
MOST_TASK_SCENES = 10_000  # more of one task than a seed's scenes surely hold would be looked for without end
ENOUGH_SCENES = 200  # a decision on fewer is said to be one
FIRST_SEED = 2000  # rounds take scenes of the seeds from here on: even ones to learn from, odd ones to be judged on
NOT_OF_THE_RESULT = ("out", "bundle", "data", "rounds", "workers", "overwrite")


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """Rounds of play, corrections, training and comparison. A new policy is kept unless it is worse."""

    bundle: Path
    """The policy to improve: a fine-tuned or merged bundle, or builtin:NAME."""
    data: Path
    """The built set that it was trained on: its share of the draws is the replay."""
    out: Path = Path("runs/improve")
    """Folder of the rounds. What is there of the same settings is kept, and the same command goes on."""
    corrector: tuple[str, ...] = ("script",)
    """script: the simulator's demonstrator takes over where the policy fails. none: what the policy solved alone.
    recordings FOLDER: what you drove and recorded with athena drive --record, one folder or several."""
    robot: str = ""
    """Robot name or TOML file of the recordings; empty takes the name in the set."""
    rounds: int = 0
    """Rounds; a larger number goes on. 0: 3, or 1 with recordings."""
    scenes: int = 60
    """Scenes that each round plays to learn from."""
    test_scenes: int = 210
    """Fresh scenes on which each round is judged, with the old and the new policy; 200 at least for a decision."""
    split: Split = "test"
    """Which scenes judge: test holds placements and instructions that training never combines."""
    replay: float = 0.5
    """Share of the draws that come from `data`."""
    correction_weight: float = 3.0
    """How much a corrected step counts in the loss."""
    level: float = 0.1
    """The chance that a policy that is as good as the old one is refused, at most."""
    margin: float = 5.0
    """Loss of an old task that refuses a policy. [points]"""
    tasks: TaskRule = "tested"
    """tested: an old task that lost so much is played on until chance does not explain it, until the loss is below
    the margin, or on task_scenes. observed: the bare number counts at once, which refuses most policies that are no
    worse unless there are thousands of scenes."""
    task_scenes: int = 1500
    """Most scenes of an old task that lost the margin; there the bare number counts. 0 plays no further scenes."""
    preset: str = "demo"
    """Preset of athena train."""
    steps: int = 200
    """Optimiser steps of each round; 0 is the preset's number."""
    change: str = ""
    """Other fields of athena train, such as rank=8,batch=16."""
    samples: int = 400
    """Recorded samples of each set for the comparison where there is no simulator."""
    seed: int = 0
    """Of scenes and training."""
    workers: int = 0
    """Processes; 0 is one per core."""
    overwrite: bool = False
    """Start anew and replace what has the name of OUT."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "corrector", tuple(self.corrector))
        kinds = get_args(Corrector)
        if not self.corrector or self.corrector[0] not in kinds:
            raise UnknownName("corrector", " ".join(self.corrector), kinds)
        if self.tasks not in get_args(TaskRule):
            raise UnknownName("rule for tasks", self.tasks, get_args(TaskRule))
        if (self.kind == "recordings") != bool(self.folders):
            raise TrainingError("--corrector is script, none, or recordings and the folders: recordings FOLDER.")
        if self.kind == "recordings" and self.rounds > 1:
            raise TrainingError(
                f"--rounds {self.rounds}: recordings are learned from once. Drive and record the new policy, then run "
                "the next round with a folder of its own."
            )
        if not 0 <= self.rounds <= MOST_ROUNDS:
            raise TrainingError(f"--rounds is a number up to {MOST_ROUNDS}, it is {self.rounds}.")
        if (
            min(self.scenes, self.test_scenes, self.samples) < 1
            or min(self.steps, self.seed, self.workers, self.task_scenes) < 0
        ):
            raise TrainingError(
                "--scenes, --test-scenes and --samples are counts of 1 and more; no number is negative."
            )
        if self.task_scenes > MOST_TASK_SCENES:
            raise TrainingError(f"--task-scenes is {MOST_TASK_SCENES:,} at most, it is {self.task_scenes:,}.")
        for name, low, high in (("replay", 0.0, 0.99), ("level", 0.001, 0.5), ("margin", 0.0, 100.0)):
            if not low <= getattr(self, name) <= high:
                raise TrainingError(f"--{name} is a number from {low:g} to {high:g}, it is {getattr(self, name)}.")
        if not (math.isfinite(self.correction_weight) and self.correction_weight > 0):
            raise TrainingError(f"--correction-weight is a positive number, it is {self.correction_weight}.")
        if self.preset not in PRESETS:
            raise UnknownName("preset", self.preset, PRESETS)
        _ = self.training  # a field or value that is none is named here

    @property
    def kind(self) -> Corrector:
        return next(k for k in get_args(Corrector) if k == self.corrector[0])

    @property
    def folders(self) -> tuple[Path, ...]:
        """Recordings to learn from."""
        return tuple(Path(f) for f in self.corrector[1:])

    @property
    def round_count(self) -> int:
        return self.rounds or (1 if self.kind == "recordings" else 3)

    @property
    def training(self) -> FinetuneConfig:
        """The preset with what was changed; data, base and place are each round's."""
        base = dataclasses.replace(PRESETS[self.preset], seed=self.seed, tensorboard=False)
        base = dataclasses.replace(base, **parse_changes(self.change))
        if not self.steps:
            return base
        warm_up = min(base.warmup_steps, max(1, self.steps // 4))
        return dataclasses.replace(
            base, max_steps=self.steps, warmup_steps=warm_up, evaluate_every=min(base.evaluate_every, self.steps)
        )

    def play_seed(self, number: int) -> int:
        """Seed of the scenes that a round learns from: even."""
        return FIRST_SEED + 2 * (self.seed * (MOST_ROUNDS + 1) + number)

    def test_seed(self, number: int) -> int:
        """Seed of the scenes that a round is judged on: odd, so that it never is one that any round learns from."""
        return self.play_seed(number) + 1

    def identity(self) -> dict[str, Any]:
        """What decides the result, but for the contents of policy, set and recordings."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in self.__dict__.items() if k not in NOT_OF_THE_RESULT
        }
