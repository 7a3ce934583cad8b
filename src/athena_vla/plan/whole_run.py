"""How many hours a training takes and what it costs: steps of a set and its epochs, times the time of a step."""

import math
from dataclasses import dataclass

THOUSAND = 1000  # steps that are counted where no set says how many there are


@dataclass(frozen=True)
class WholeRun:
    """Of one row of the plan. Evaluations, checkpoints and preparing images are not in it."""

    steps: int
    epochs: float  # 0: not known, a thousand steps are counted
    samples: int  # of the training split; 0: not known
    hours: tuple[float, float]  # fast and slow end, by the clock
    cost: tuple[float, float] | None  # of all cards, in the unit of the price; None without a price

    def __str__(self) -> str:
        fast, slow = self.hours
        what = f"{self.steps:,} steps"
        if self.samples:
            what = f"{self.epochs:.3g} epochs of {self.samples:,} samples are {what}"
        said = f"{what}: {between(fast, slow)} h"
        if self.cost is not None:
            said += f", at a price of {between(*self.cost)}"
        return said + " (evaluations and checkpoints not counted)"


def between(low: float, high: float) -> str:
    """An interval in words, or one number where both ends are written alike."""
    a, b = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (low, high))
    return a if a == b else f"{a} to {b}"


def whole_run(
    step_seconds: tuple[float, float],
    samples_per_step: int,
    *,
    samples: int = 0,
    epochs: float = 0.0,
    max_steps: int = 0,
    price: float = 0.0,
    cards: int = 1,
) -> WholeRun:
    """`samples` of the training split, `epochs` over them unless `max_steps` is set; `price` per card and hour."""
    steps = max_steps or (max(1, math.ceil(math.ceil(epochs * samples) / samples_per_step)) if samples else THOUSAND)
    hours = (steps * step_seconds[0] / 3600, steps * step_seconds[1] / 3600)
    cost = (hours[0] * price * cards, hours[1] * price * cards) if price else None
    seen = steps * samples_per_step / samples if samples else 0.0
    return WholeRun(steps, seen if max_steps else epochs if samples else 0.0, samples, hours, cost)
