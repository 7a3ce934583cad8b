"""Intervals and tests for success counts and for errors; the unit is always the episode, never the frame.

Frames of one episode are nearly copies of each other: treating them as independent makes every interval far too
narrow. Pure arithmetic on numbers; knows nothing of robots or models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from athena_vla.errors import EvaluationError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence bounds."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Proportion:
    """Successes of `n` trials with the Wilson score interval."""

    success: float  # fraction
    n: int
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return {"success": self.success, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class PairedTest:
    """Two actors on the very same scenes: exact McNemar test on the scenes where they disagree."""

    only_first: int  # scenes that only the first one solved
    only_second: int
    both: int
    neither: int
    exact_p: float  # two-sided, exact conditional binomial: never too small
    mid_p: float  # two-sided mid-p: less conservative, the usual recommendation for small counts
    first_worse_p: float  # one-sided, exact: how likely this or more if the first were not worse
    difference: Interval  # success of the first minus the second, Newcombe's paired interval

    def to_dict(self) -> dict[str, Any]:
        numbers = {k: v for k, v in self.__dict__.items() if k != "difference"}
        return {**numbers, "difference": self.difference.to_dict()}


def quantile_of_normal(confidence: float) -> float:
    """z such that a standard normal lies within [-z, z] with this probability."""
    if not 0 < confidence < 1:
        raise EvaluationError(f"A confidence of {confidence} is not between 0 and 1; 0.95 is usual.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson score interval; with no trial at all everything is possible, so [0, 1] and a success of 0.

    Source: Wilson 1927. Preferred to Wald, which gives [1, 1] for 20 of 20.
    """
    if not 0 <= successes <= n:
        raise EvaluationError(f"{successes} successes of {n} trials is not possible.")
    if n == 0:
        return Proportion(0.0, 0, 0.0, 1.0)
    z = quantile_of_normal(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The closed form is exactly 0 (or 1) at the ends; floating point is not.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Proportion(p, n, low, high)


def binomial_half_cdf(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2), by exact integer arithmetic."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def paired_test(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> PairedTest:
    """Compare two actors scene by scene. Raises `EvaluationError` when they did not see equally many scenes."""
    if len(first) != len(second):
        raise EvaluationError(
            f"A paired test needs the same scenes; {len(first)} and {len(second)} results were given."
        )
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    both, neither = int((a & b).sum()), int((~a & ~b).sum())
    discordant = only_first + only_second
    smaller = min(only_first, only_second)
    tail = binomial_half_cdf(smaller, discordant)
    point = math.comb(discordant, smaller) / 2**discordant
    exact = min(1.0, 2 * tail)
    # mid-p: all that is less likely plus half of what is exactly as likely (Fagerland, Lydersen, Laake 2013).
    # Where both sides are equal the two tails share the middle point.
    mid = 1.0 - point / 2 if only_first == only_second else 2 * tail - point
    return PairedTest(
        only_first,
        only_second,
        both,
        neither,
        exact,
        mid if discordant else 1.0,
        binomial_half_cdf(only_first, discordant),
        newcombe_paired(both, only_first, only_second, neither, confidence),
    )


def anytime_evidence(only_first: int, only_second: int) -> float:
    """How much discordant pairs speak against equal policies, at any time they are looked at.

    Under equality each discordant pair falls to either side with 1/2, and this ratio of a uniform mixture over all
    other chances to 1/2 is a martingale of mean 1: the chance that it ever reaches `e` is at most 1/e (Ville), however
    often one looks. Source: Robbins 1970, mixture over a Beta(1, 1) prior.
    """
    n = only_first + only_second
    try:
        return 2**n / ((n + 1) * math.comb(n, only_first))
    except OverflowError:
        return math.inf


def newcombe_paired(both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Difference of two proportions on the same trials.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10 (Wilson limits, phi with continuity
    correction).
    """
    n = both + only_first + only_second + neither
    if n == 0:
        return Interval(0.0, -1.0, 1.0)
    one = wilson(both + only_first, n, confidence)
    two = wilson(both + only_second, n, confidence)
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if product == 0:
        phi = 0.0
    else:
        numerator = both * neither - only_first * only_second
        if numerator > 0:
            numerator = max(numerator - n / 2, 0)
        phi = numerator / math.sqrt(product)
    difference = one.success - two.success
    return Interval(
        difference,
        difference - _spread(one.success - one.low, two.high - two.success, phi),
        difference + _spread(one.high - one.success, two.success - two.low, phi),
    )


def newcombe_independent(
    successes_one: int, n_one: int, successes_two: int, n_two: int, confidence: float = 0.95
) -> Interval:
    """Difference of two proportions on different trials. Source: Newcombe 1998, 873-890, method 10."""
    one, two = wilson(successes_one, n_one, confidence), wilson(successes_two, n_two, confidence)
    difference = one.success - two.success
    return Interval(
        difference,
        difference - _spread(one.success - one.low, two.high - two.success, 0.0),
        difference + _spread(one.high - one.success, two.success - two.low, 0.0),
    )


def _spread(one: float, two: float, phi: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * phi * one * two + two * two))


def bootstrap_weights(episodes: int, resamples: int, seed: int) -> Floats:
    """[resamples, episodes]: how often each episode was drawn, with replacement."""
    if episodes < 1:
        raise EvaluationError("There is no episode to resample: the split holds none.")
    generator = np.random.default_rng(seed)
    return generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=resamples).astype(np.float64)


def bootstrap_mean(
    sums: Floats, counts: Floats, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Mean over all frames of the episodes, with the percentile interval over resampled episodes.

    `sums` and `counts` are per episode, [episodes] each. With fewer than about ten episodes percentile intervals are
    too narrow: say how many there were beside the number.
    """
    weights = bootstrap_weights(len(sums), resamples, seed)
    draws = (weights @ sums) / (weights @ counts)
    return _percentiles(float(sums.sum() / counts.sum()), draws, confidence)


def bootstrap_difference(
    first: Floats, second: Floats, counts: Floats, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Mean of the first minus the second on the same episodes: both are resampled together, so shared luck cancels."""
    return bootstrap_mean(first - second, counts, resamples=resamples, seed=seed, confidence=confidence)


def bootstrap_quantile(
    values: Sequence[Floats], q: float, *, resamples: int = 500, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """A quantile of all frames, resampling whole episodes; `values` holds one array per episode.

    The quantile is the smallest value that at least a share `q` of the (repeated) frames does not exceed.
    """
    weights = bootstrap_weights(len(values), resamples, seed)
    everything = np.concatenate(values)
    owner = np.repeat(np.arange(len(values)), [len(v) for v in values])
    order = np.argsort(everything, kind="stable")
    everything, owner = everything[order], owner[order]
    draws = np.array([_weighted_quantile(everything, w[owner], q) for w in weights])
    return _percentiles(_weighted_quantile(everything, np.ones(len(everything)), q), draws, confidence)


def _weighted_quantile(sorted_values: Floats, weights: Floats, q: float) -> float:
    cumulative = np.cumsum(weights)
    # The tolerance keeps a whole-numbered rank from moving up by one through rounding of q * total.
    place = int(np.searchsorted(cumulative, q * cumulative[-1] - 1e-9, side="left"))
    return float(sorted_values[min(place, len(sorted_values) - 1)])


def _percentiles(value: float, draws: Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def minimum_episodes(half_width: float, success: float, confidence: float = 0.95) -> int:
    """How many episodes give a Wilson interval no wider than +-`half_width` at this success; for planning."""
    n = 1
    while True:
        p = wilson(round(success * n), n, confidence)
        if (p.high - p.low) / 2 <= half_width:
            return n
        n += 1
