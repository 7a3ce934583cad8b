"""Latency samples and what may be said about them. Knows no models.

A percentile is reported only where the samples carry it: the 99th of 100 samples is just the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

P99_FROM = 1000  # samples


class LatencySummary(TypedDict):
    """Figures of one stage [ms], as result files hold them."""

    n: int
    p50_ms: float
    p50_low_ms: float  # the median's 95% interval
    p50_high_ms: float
    mean_ms: float
    p95_ms: float
    p99_ms: float | None  # None where the samples are too few for it
    min_ms: float
    max_ms: float


class Deadlines(TypedDict):
    """How many requests at a fixed rate would have been late."""

    rate_hz: float
    served: int
    missed: int
    missed_share: float
    dropped: int
    worst_ms: float
    method: str


@dataclass(frozen=True)
class Samples:
    """Raw latencies of one stage [s], in the order they were taken."""

    name: str
    seconds: tuple[float, ...]

    def summary(self) -> LatencySummary:
        """Milliseconds: median with its 95% bootstrap interval, mean, p95, p99 where there are enough, extremes."""
        values = np.asarray(self.seconds) * 1e3
        generator = np.random.default_rng(0)
        medians = np.median(generator.choice(values, (200, len(values))), axis=1)
        return {
            "n": len(values),
            "p50_ms": float(np.median(values)),
            "p50_low_ms": float(np.quantile(medians, 0.025)),
            "p50_high_ms": float(np.quantile(medians, 0.975)),
            "mean_ms": float(values.mean()),
            "p95_ms": float(np.quantile(values, 0.95)),
            "p99_ms": float(np.quantile(values, 0.99)) if len(values) >= P99_FROM else None,
            "min_ms": float(values.min()),
            "max_ms": float(values.max()),
        }


def deadlines(seconds: Sequence[float], rate_hz: float) -> Deadlines:
    """Requests that arrive at a fixed rate, served in order with the measured latencies: how many are late.

    Latency counts from the scheduled arrival, so that a slow request also delays those behind it. A request that
    arrives while an older one waits replaces it: the newest observation wins, and the old one counts as dropped.
    """
    period = 1.0 / rate_hz
    free, late, dropped, worst, served = 0.0, 0, 0, 0.0, 0
    samples = iter(seconds)
    arrival, index = 0.0, 0
    for latency in samples:
        if free > arrival + period:  # newer observations have arrived meanwhile
            newest = int(free / period)
            dropped += newest - index
            index = newest
            arrival = index * period
        start = max(arrival, free)
        free = start + latency
        served += 1
        late += free - arrival > period
        worst = max(worst, free - arrival)
        index += 1
        arrival = index * period
    return {
        "rate_hz": rate_hz,
        "served": served,
        "missed": late,
        "missed_share": late / served,
        "dropped": dropped,
        "worst_ms": worst * 1e3,
        "method": "replayed with the measured latencies",
    }


@dataclass
class Stopwatch:
    """Collects samples by stage name; a stage that runs several times per action is summed per action."""

    running: dict[str, list[float]] = field(default_factory=dict)
    done: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.running.setdefault(name, []).append(seconds)

    def finish_action(self) -> None:
        """Close one action: each stage gets one sample, its calls' sum."""
        for name, values in self.running.items():
            self.done.setdefault(name, []).append(sum(values))
        self.running = {}

    def samples(self) -> list[Samples]:
        return [Samples(name, tuple(values)) for name, values in self.done.items()]
