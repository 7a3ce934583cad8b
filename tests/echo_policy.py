"""A policy whose answer depends on everything it is told, so that a mixed-up answer is seen."""

import time

import numpy as np

from athena_vla import embodiment
from athena_vla.embodiment import ActionChunk, Observation
from athena_vla.errors import ModelError

TOY = embodiment.load("toy")
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)


class Echo:
    """A policy whose answer depends on everything it is told, so that a mixed-up answer is seen."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.calls = 0
        self.failing = False

    def act(self, observation: Observation) -> ActionChunk:
        self.calls += 1
        time.sleep(self.delay)
        if self.failing:
            raise ModelError("the weights are gone")
        if observation.instruction == "crash":
            raise ZeroDivisionError("secret detail")
        return expected(observation)


def expected(observation: Observation) -> ActionChunk:
    offset = float(observation.images["front"].mean()) / 255 + len(observation.instruction)
    rows = observation.state + offset + np.arange(8)[:, None] * 0.1
    return ActionChunk(rows, TOY.action_joints, 0.1, observation.time)


def observe(seed: int = 0, instruction: str = "push the red cube") -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({"front": np.roll(IMAGE, seed, 0)}, rng.uniform(TOY.lower, TOY.upper), instruction, float(seed))
