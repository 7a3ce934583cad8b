"""Intervals and tests against scipy, slow enumeration, published examples and simulated coverage."""

import itertools
import math

import numpy as np
import pytest

from athena_vla.errors import EvaluationError
from athena_vla.evaluate import statistics as st

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle here; it comes with the dev extra")


@pytest.mark.parametrize("n", [1, 2, 7, 60, 120, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(n: int, confidence: float) -> None:
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        ours = st.wilson(k, n, confidence)
        theirs = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert ours.success == k / n
        assert ours.n == n


def test_wilson_solves_its_own_equation() -> None:
    # The bounds are the p at which the observed share lies exactly z standard errors away.
    z = st.quantile_of_normal(0.95)
    p = st.wilson(93, 100)
    for bound in (p.low, p.high):
        assert abs(0.93 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 100))


def test_wilson_without_trials_knows_nothing() -> None:
    assert st.wilson(0, 0) == st.Proportion(0.0, 0, 0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(EvaluationError, match="not possible"):
        st.wilson(k, n)


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * both + [True] * first + [False] * second + [False] * neither
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return a, b


@pytest.mark.parametrize(("first", "second"), list(itertools.product([0, 1, 2, 5, 9], repeat=2)))
def test_mcnemar_equals_the_binomial_test_and_enumeration(first: int, second: int) -> None:
    test = st.paired_test(*outcomes(11, first, second, 3))
    n = first + second
    if n == 0:
        assert test.exact_p == test.mid_p == test.first_worse_p == 1.0
        return
    assert test.exact_p == pytest.approx(scipy_stats.binomtest(first, n, 0.5).pvalue)
    assert test.first_worse_p == pytest.approx(scipy_stats.binomtest(first, n, 0.5, alternative="less").pvalue)
    # mid-p by its definition: everything strictly less likely, plus half of what is exactly as likely.
    pmf = [math.comb(n, k) / 2**n for k in range(n + 1)]
    seen = pmf[first]
    assert test.mid_p == pytest.approx(
        sum(p for p in pmf if p < seen - 1e-15) + 0.5 * sum(p for p in pmf if abs(p - seen) <= 1e-15)
    )


def test_a_paired_test_needs_pairs() -> None:
    with pytest.raises(EvaluationError, match="same scenes"):
        st.paired_test([True], [True, False])


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 2635), table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_newcombe_paired(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    interval = st.newcombe_paired(*cells)
    assert interval.low == pytest.approx(low, abs=2e-4)
    assert interval.high == pytest.approx(high, abs=2e-4)


def test_newcombe_independent_matches_the_published_example() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 873), table II (a): 56/70 against 48/80, method 10.
    interval = st.newcombe_independent(56, 70, 48, 80)
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_paired_interval_without_correlation_is_the_independent_one() -> None:
    # 25 of each cell: phi is zero.
    paired, independent = st.newcombe_paired(25, 25, 25, 25), st.newcombe_independent(50, 100, 50, 100)
    assert paired == independent


def test_paired_interval_covers_under_simulation() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        hard = generator.random(100)  # a scene is as hard for one as for the other
        a, b = hard + 0.2 * generator.random(100) < 0.8, hard + 0.2 * generator.random(100) < 0.7
        interval = st.paired_test(a.tolist(), b.tolist()).difference
        covered += interval.low <= 0.1 <= interval.high
    assert covered >= 0.92 * 400


def test_paired_interval_is_mirrored_when_the_actors_are() -> None:
    a, b = outcomes(40, 9, 2, 9)
    one, two = st.paired_test(a, b).difference, st.paired_test(b, a).difference
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert one.low < one.value < one.high


def test_bootstrap_covers_the_true_mean_where_frames_are_dependent() -> None:
    # Each episode has its own level; frames hardly vary around it. Over episodes the interval covers; over frames
    # (the usual mistake) it does not.
    generator = np.random.default_rng(0)
    covered, naive = 0, 0
    for trial in range(200):
        levels = generator.normal(1.0, 0.3, size=30)
        frames = [generator.normal(level, 0.01, size=20) for level in levels]
        sums, counts = np.array([f.sum() for f in frames]), np.full(30, 20.0)
        interval = st.bootstrap_mean(sums, counts, resamples=400, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
        pooled = np.concatenate(frames)
        half = 1.96 * pooled.std() / math.sqrt(len(pooled))
        naive += abs(pooled.mean() - 1.0) <= half
    assert covered >= 0.88 * 200
    assert naive < 0.6 * 200


def test_bootstrap_is_the_exact_distribution_for_three_episodes() -> None:
    # 27 equally likely resamples can be enumerated.
    sums, counts = np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0])
    means = sorted(sum(sums[list(pick)]) / sum(counts[list(pick)]) for pick in itertools.product(range(3), repeat=3))
    interval = st.bootstrap_mean(sums, counts, resamples=40_000, seed=3, confidence=0.8)
    assert interval.value == pytest.approx(14 / 6)
    # The 10% and 90% points of 27 atoms are atoms 3 and 24.
    assert (interval.low, interval.high) == pytest.approx((means[2], means[24]))


def test_bootstrap_is_reproducible_and_seeded() -> None:
    sums, counts = np.arange(1.0, 9.0), np.full(8, 2.0)
    assert st.bootstrap_mean(sums, counts, seed=1) == st.bootstrap_mean(sums, counts, seed=1)
    assert st.bootstrap_mean(sums, counts, seed=1) != st.bootstrap_mean(sums, counts, seed=2)


def test_difference_uses_the_pairing() -> None:
    # Both actors share the luck of the episode; the second is always worse by 0.1.
    base = np.array([1.0, 5.0, 2.0, 9.0])
    interval = st.bootstrap_difference(base + 0.1, base, np.ones(4))
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_quantile_agrees_with_numpy_and_with_slow_resampling() -> None:
    generator = np.random.default_rng(5)
    episodes = [generator.exponential(size=n) for n in (3, 8, 5, 13)]
    interval = st.bootstrap_quantile(episodes, 0.95, resamples=300, seed=7)
    assert interval.value == np.quantile(np.concatenate(episodes), 0.95, method="inverted_cdf")
    weights = st.bootstrap_weights(4, 300, 7).astype(int)
    slow = [
        np.quantile(
            np.concatenate([np.tile(e, w) for e, w in zip(episodes, row, strict=True)]), 0.95, method="inverted_cdf"
        )
        for row in weights
    ]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_no_episode_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no episode"):
        st.bootstrap_mean(np.zeros(0), np.zeros(0))


def test_minimum_episodes_is_minimal() -> None:
    n = st.minimum_episodes(0.05, 0.9)
    at, before = st.wilson(round(0.9 * n), n), st.wilson(round(0.9 * (n - 1)), n - 1)
    assert (at.high - at.low) / 2 <= 0.05 < (before.high - before.low) / 2
