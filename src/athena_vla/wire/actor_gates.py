"""Checks that a policy has to pass before anyone may talk to it: it repeats itself, it looks, it listens.

Knows actors, observations and chunks; nothing of models or files.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from athena_vla.embodiment import Array, Observation
from athena_vla.errors import BlindPolicy, ServerError
from athena_vla.wire.queue import Actor

Gate = Callable[[Actor], None]
SAME = 1e-9  # [rad] two chunks closer than this are the same


def golden_gate(observations: Sequence[Observation], chunks: Sequence[Array], tolerance: float) -> Gate:
    """The actor must answer the golden observations with the golden chunks [H, D] within `tolerance` [rad]."""

    def gate(actor: Actor) -> None:
        for number, (observation, expected) in enumerate(zip(observations, chunks, strict=True)):
            chunk = actor.act(observation)
            if chunk.positions.shape != expected.shape:
                raise ServerError(
                    f"Golden example {number}: the chunk is {list(chunk.positions.shape)}, not {list(expected.shape)}."
                )
            away = np.abs(chunk.positions - expected)
            if not away.max() <= tolerance:  # also refuses NaN
                row, column = np.unravel_index(int(np.argmax(np.nan_to_num(away, nan=np.inf))), away.shape)
                raise ServerError(
                    f"Golden example {number} is not replayed: joint '{chunk.joint_names[column]}' differs by "
                    f"{away[row, column]:.3g} rad in row {row}, allowed are {tolerance:.3g} rad. The weights, the "
                    "runtime or the bundle's files changed since the golden example was written."
                )

    return gate


def sensitivity_gate(observation: Observation, other_instruction: str) -> Gate:
    """A black and a white picture, and two instructions, must give different actions."""

    def gate(actor: Actor) -> None:
        black = {c: np.zeros_like(i) for c, i in observation.images.items()}
        white = {c: np.full_like(i, 255) for c, i in observation.images.items()}
        dark, bright = (actor.act(replace(observation, images=i)).positions for i in (black, white))
        if np.abs(dark - bright).max() <= SAME:
            raise BlindPolicy(
                "A black and a white picture give the same actions: the policy does not look. Check that the vision "
                "tower's output reaches the language model (a known fault of ports to newer transformers)."
            )
        told, told_otherwise = (
            actor.act(replace(observation, instruction=text)).positions
            for text in (observation.instruction, other_instruction)
        )
        if np.abs(told - told_otherwise).max() <= SAME:
            raise BlindPolicy(
                f"'{observation.instruction}' and '{other_instruction}' give the same actions: the policy does not "
                "listen. It was trained on one instruction only, or the prompt is cut off."
            )

    return gate
