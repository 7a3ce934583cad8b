"""Why episodes are no successes: one cause for each, and by how much the goal was missed. Arithmetic; plays nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from athena_vla.evaluate.results import EpisodeResult

ANOTHER, NO_ANSWER, STOPPED, SHORT, NOT_HELD = (
    "another object",
    "the policy failed",
    "stopped by the filter",
    "short of the goal",
    "reached, not held",
)
CAUSES = (ANOTHER, NO_ANSWER, STOPPED, SHORT, NOT_HELD)
UNSAID = "not said"  # recorded before causes were


def cause(out_of_reach: str, *, chunks: int, stopped: bool, missed_by: float | None) -> str:
    """The first that holds: a wrong object, no chunk at all, a stop of the filter, and what the world measured."""
    if out_of_reach:
        return ANOTHER
    if chunks == 0:
        return NO_ANSWER
    if stopped:
        return STOPPED
    return NOT_HELD if missed_by == 0.0 else SHORT


@dataclass(frozen=True)
class Failures:
    """The failures of one cause."""

    cause: str
    count: int
    missed: dict[str, float]  # unit -> median of what was lacking
    episodes: tuple[EpisodeResult, ...]  # most lacking first

    def __str__(self) -> str:
        return f"{self.count} {self.cause}" + (f" (by {', '.join(amounts(self.missed))})" if self.missed else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "cause": self.cause,
            "count": self.count,
            "missed": self.missed,
            "episodes": [
                {"scene": e.scene, "instruction": e.instruction, "missed_by": e.missed_by, "unit": e.unit}
                for e in self.episodes
            ],
        }


def by_cause(episodes: Sequence[EpisodeResult]) -> tuple[Failures, ...]:
    """Failures sorted by cause, the most frequent first."""
    failed = [e for e in episodes if not e.success]
    found = []
    for name in (*CAUSES, UNSAID):
        these = [e for e in failed if (e.cause or UNSAID) == name]
        if these:
            lacking = {u: [e.missed_by for e in these if e.unit == u and e.missed_by] for u in ("m", "deg")}
            missed = {u: float(np.median(x)) for u, x in lacking.items() if x} if name == SHORT else {}
            order = sorted(these, key=lambda e: (e.unit, -(e.missed_by or 0.0), e.scene))
            found.append(Failures(name, len(these), missed, tuple(order)))
    return tuple(sorted(found, key=lambda f: -f.count))


def amounts(missed: dict[str, float]) -> list[str]:
    """In the units people use."""
    return [amount(value, unit) for unit, value in missed.items()]


def amount(value: float | None, unit: str) -> str:
    if value is None or not unit:
        return ""
    return f"{100 * value:.1f} cm" if unit == "m" else f"{value:.1f} degrees"
