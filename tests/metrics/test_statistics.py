"""Intervals and tests against scipy, a hand-computed Holm, and simulated clusters."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, permutation_test

from dex.metrics import MetricError
from dex.metrics.statistics import cluster_bootstrap, holm, sign_flip, subsampled


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_is_scipys_where_each_value_is_a_cluster(level: float) -> None:
    values = np.random.default_rng(0).exponential(1, 25)  # skewed: bias and acceleration matter
    wanted = bootstrap(
        (values,), np.mean, method="BCa", n_resamples=5000, confidence_level=level, rng=np.random.default_rng(3)
    ).confidence_interval
    labels = [f"{i:02}" for i in range(25)]
    assert cluster_bootstrap(values, labels, 5000, seed=3, level=level) == pytest.approx(tuple(wanted), rel=1e-9)


def test_covers_the_truth_of_clustered_values() -> None:
    """100 identities of 2 to 14 frames, nearly all of the variance between identities: the naive interval is less than
    half as wide as it should be. BCa itself covers a little less than it says where clusters are few (0.937 of 4000
    simulations; 0.88 for 10 identities)."""
    random = np.random.default_rng(0)
    covered = naive = 0
    for seed in range(1000):
        label = np.repeat(np.arange(100), random.integers(2, 15, 100))
        values = random.normal(0, 1, 100)[label] + random.normal(0, 0.3, len(label))
        low, high = cluster_bootstrap(values, label.tolist(), 1000, seed)
        covered += low <= 0 <= high
        naive += abs(values.mean()) <= norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(len(values))
    assert 0.92 <= covered / 1000 <= 0.97
    assert naive / 1000 < 0.6


def test_unmeasured_values_and_their_clusters_are_left_out() -> None:
    values, labels = np.array([1, 2, 4, 7, math.nan, math.nan]), ["a", "a", "b", "c", "c", "d"]
    assert cluster_bootstrap(values, labels) == cluster_bootstrap(values[:4], labels[:4])
    assert sign_flip(values, np.zeros(6), labels) == sign_flip(values[:4], np.zeros(4), labels[:4]) == 2 / 2**3
    for few in (values[:2], values[4:]):
        assert np.isnan(cluster_bootstrap(few, labels[: len(few)])).all()
    assert math.isnan(sign_flip(values[4:], np.zeros(2), labels[4:]))
    assert cluster_bootstrap(np.full(9, 0.1), list("aabbccdde")) == pytest.approx((0.1, 0.1))
    with pytest.raises(MetricError, match="for 5 cluster labels"):
        cluster_bootstrap(values, labels[:5])
    with pytest.raises(MetricError, match="infinite value at 1"):
        cluster_bootstrap(np.array([1, math.inf]), labels[:2])
    with pytest.raises(MetricError, match="2 values against 3"):
        sign_flip(values[:2], values[:3], labels[:2])


@pytest.mark.parametrize("count", [9, 30])
def test_sign_flip_is_scipys_permutation_test(count: int) -> None:
    """9 pairs are enumerated by both, 30 are sampled by both."""
    random = np.random.default_rng(count)
    a, b = random.normal(0.25, 1, count), random.normal(0, 1, count)
    wanted = permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert 0.02 < wanted < 0.9
    assert sign_flip(a, b, list(range(count))) == pytest.approx(wanted, abs=1e-12 if count == 9 else 0.02)


def test_clusters_flip_as_one() -> None:
    """All 2⁴ flips of four identities, one by one. Frames flipped singly would call the difference certain."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(4), [10, 30, 20, 25])
    a = random.normal(0, 0.1, 85) + np.array([0.5, 0.7, -0.1, 0.4])[label]
    means = [abs((np.array(s)[label] * a).mean()) for s in itertools.product((1, -1), repeat=4)]
    assert sign_flip(a, np.zeros(85), label.tolist()) == np.mean(np.array(means) >= means[0] - 1e-12) >= 2 / 2**4
    assert sign_flip(a, np.zeros(85), list(range(85))) == 1 / 10_001


def test_p_is_uniform_without_a_difference() -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(12), 5)
    p = [sign_flip(random.normal(0, 1, 12)[label], np.zeros(60), label.tolist(), 1000) for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04 × 4 3 2 1 = .02 .03 .06 .04; never below the one before: .02 .03 .06 .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([math.nan, 0.01, 0.2]) == pytest.approx([math.nan, 0.03, 0.4], nan_ok=True)
    assert len(holm([])) == 0


def test_subsets_have_no_duplicates() -> None:
    """The mean of n out of N without replacement deviates by σ √((1 − n/N) / n)."""
    values = np.random.default_rng(0).normal(3, 1, 100)
    mean, deviation = subsampled(lambda rows: float(values[rows].mean()), 100, 40, draws=2000)
    assert mean == pytest.approx(values.mean(), abs=0.01)
    assert deviation == pytest.approx(values.std(ddof=1) * math.sqrt(0.6 / 40), rel=0.06)
    assert subsampled(lambda rows: float(len(set(rows))), 50, 50) == (50, 0)
    with pytest.raises(MetricError, match="subsets of 51"):
        subsampled(lambda rows: 0.0, 50, 51)


def test_same_seed_same_numbers() -> None:
    a, labels = np.random.default_rng(0).normal(0.3, 1, 60), [i // 3 for i in range(60)]
    for measured in (
        lambda seed: cluster_bootstrap(a, labels, 500, seed),
        lambda seed: sign_flip(a, np.zeros(60), labels, 500, seed),
        lambda seed: subsampled(lambda rows: float(a[rows].mean()), 60, 20, seed=seed),
    ):
        assert measured(1) == measured(1) != measured(2)
