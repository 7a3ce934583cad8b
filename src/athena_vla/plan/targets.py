"""The targets that a deployment is judged by, each against a predicted interval: met, missed, or open."""

from dataclasses import dataclass
from typing import Literal

from athena_vla.engines.deployment_config import TARGET_TOKENS
from athena_vla.plan.whole_run import between

WISHED_TOKENS = 12.0  # [tokens/s] the upper end of what is wanted; from `TARGET_TOKENS` on the target is met
CHUNK_MS = {True: 220.0, False: 90.0}  # [ms] from observation to chunk, on a Jetson and on other cards
TRAINING_GB = 24.0  # [GB] of the card that is to be trained on

Verdict = Literal["met", "missed", "open"]


@dataclass(frozen=True)
class Target:
    """One figure that is wanted, and the interval that is predicted; both ends in the target's unit."""

    name: str
    limit: float
    at_least: bool
    predicted: tuple[float, float]  # low, high
    unit: str
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Open where only a part of the interval keeps the limit."""
        kept = [value >= self.limit if self.at_least else value <= self.limit for value in self.predicted]
        return "met" if all(kept) else "open" if any(kept) else "missed"

    def __str__(self) -> str:
        said = {"met": "MET", "missed": "MISSED", "open": "OPEN, the interval holds both"}[self.verdict]
        wanted = f"{'at least' if self.at_least else 'at most'} {self.limit:g} {self.unit}{self.note}"
        return f"  {self.name}: {wanted}: predicted {between(*self.predicted)}: {said}"


def device_targets(
    action_seconds: tuple[float, float],
    joint_targets: int,
    tokens_per_second: tuple[float, float] | None,
    *,
    jetson: bool,
) -> tuple[Target, ...]:
    """Of acting: `joint_targets` in one action (steps times joints), and the rate of decoding alone where there is one.

    One token of a token family is one joint target of one step, so both are held against the same figure.
    """
    fast, slow = action_seconds
    wish = f" ({TARGET_TOKENS:g} to {WISHED_TOKENS:g} wanted)"
    found = [
        Target("joint targets", TARGET_TOKENS, True, (joint_targets / slow, joint_targets / fast), "tokens/s", wish)
    ]
    if tokens_per_second is not None:
        found.append(Target("decoding alone", TARGET_TOKENS, True, tokens_per_second, "tokens/s", wish))
    found.append(Target("one chunk", CHUNK_MS[jetson], False, (fast * 1e3, slow * 1e3), "ms"))
    return tuple(found)


def training_target(total_gb: float) -> Target:
    """Of training: its peak on one card."""
    return Target("training memory", TRAINING_GB, False, (total_gb, total_gb), "GB")
