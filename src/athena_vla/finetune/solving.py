"""Success in a simulator as what an evaluation measures. Training knows no simulator: who can play is handed in.

Scenes are shared by the processes, and what is counted is the same for any number of them.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from accelerate import Accelerator

from athena_vla.dataset.dataset import Dataset
from athena_vla.errors import TrainingError
from athena_vla.finetune import sharding
from athena_vla.finetune.evaluation import Solved
from athena_vla.finetune.written import is_small
from athena_vla.models.architecture import Architecture
from athena_vla.policy import Policy

TRIED = 2  # scenes that are played before the first step, to say what an evaluation costs


class Player(Protocol):
    """Plays scenes with a policy."""

    @property
    def scenes(self) -> tuple[int, ...]:
        """Their numbers: the same ones in every evaluation."""
        ...

    @property
    def meaning(self) -> str:
        """A sentence on which scenes these are."""
        ...

    def play(self, policy: Policy, scenes: Sequence[int]) -> list[bool]:
        """Whether the policy solves each scene."""
        ...


# Makes a player of so many scenes for a set. Raises `TrainingError` where no simulator fits the set.
Players = Callable[[Dataset, int], Player]


def nobody(dataset: Dataset, scenes: int) -> Player:
    """The player of a caller who handed none in."""
    raise TrainingError(
        "--select success needs a simulator, which finetune alone does not know. Use `athena train`, or "
        "athena_vla.evaluate.training_by_success.finetune."
    )


class SuccessOf:
    """How often the model in training solves the player's scenes; every process has to ask.

    `as_it_trains(on)` puts the model into the forms that it trains in, or into those that its bundle will have.
    """

    def __init__(
        self, model: Architecture, dataset: Dataset, player: Player, as_it_trains: Callable[[bool], None]
    ) -> None:
        self.model, self.dataset, self.player, self.as_it_trains = model, dataset, player, as_it_trains

    def measure(self, accelerator: Accelerator) -> Solved:
        """Play this process's share of the scenes; the counts are those of all."""
        mine = self.player.scenes[accelerator.process_index :: accelerator.num_processes]
        solved = sum(self._play(mine, accelerator)) if mine else 0
        every = sharding.total(torch.tensor([float(solved)], device=accelerator.device))
        return {"solved": round(float(every)), "scenes": len(self.player.scenes)}

    def cost(self, evaluations: int, accelerator: Accelerator) -> str:
        """A sentence on what evaluations cost, from a few scenes that are played for it.

        Weights that solve nothing yet play each scene to its end, so that later evaluations are rather cheaper.
        """
        scenes = self.player.scenes
        tried = scenes[:TRIED]
        self._play(tried[:1], accelerator)  # the first one also prepares the simulator
        started = time.monotonic()
        self._play(tried, accelerator)
        seconds = (time.monotonic() - started) / len(tried) * -(-len(scenes) // accelerator.num_processes)
        return (
            f"Weights are selected by success: {self.player.meaning} An evaluation plays {len(scenes)} scenes in about "
            f"{seconds:.2g} s, measured on {len(tried)} of them with the weights as they are; {evaluations} "
            f"evaluations are left, about {evaluations * seconds / 60:.2g} min in all."
        )

    def _play(self, scenes: Sequence[int], accelerator: Accelerator) -> list[bool]:
        training = self.model.training
        self.as_it_trains(False)
        self.model.eval()
        # Large models answer as they train, in the narrow type: so do the golden answers of their bundles.
        narrow = contextlib.nullcontext() if is_small(self.model) else accelerator.autocast()
        try:
            with narrow:
                policy = Policy.of_model(self.model, self.dataset.robot, self.dataset.normalizer)
                return self.player.play(policy, scenes)
        finally:
            self.model.train(training)
            self.as_it_trains(True)


def better(solved: Solved, loss: float, best: Solved, best_loss: float) -> bool:
    """Whether more scenes were solved, or as many with a smaller loss. Other scenes are no comparison."""
    if solved["scenes"] != best["scenes"]:
        return True
    return (solved["solved"], -loss) > (best["solved"], -best_loss)
