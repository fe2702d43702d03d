"""Intervals and tests of measured numbers. The unit is the cluster, a clip or an identity, never the frame.

Values that could not be measured are NaN and left out. The same seed gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtr, ndtri

from dex.metrics import MetricError

RESAMPLES = 10_000  # of an interval


def cluster_bootstrap(
    values: Float[np.ndarray, "N"],
    clusters: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The BCa interval of the mean of `values`, in their unit, whole clusters resampled (Efron & Tibshirani 1993,
    eq. 14.9–14.15); acceleration by leaving out one cluster at a time.

    (NaN, NaN) for fewer than 2 clusters. Raises `MetricError` for one label too many or too few, or infinite values.
    """
    sums, counts = _per_cluster(values, clusters)
    return bca(np.stack([sums, counts], axis=1), lambda total: total[:, 0] / total[:, 1], resamples, seed, level)


def bca(
    clusters: Float[np.ndarray, "K M"],
    statistic: Callable[[Float[np.ndarray, "R M"]], Float[np.ndarray, "R"]],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The BCa interval of a function of sums over clusters, such as a ratio: `clusters` are M sums of each cluster,
    `statistic` makes a number of each row of M totals.

    (NaN, NaN) for fewer than 2 clusters.
    """
    number = len(clusters)
    if number < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, number, (resamples, number))
    drawn += number * np.arange(resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=resamples * number).reshape(resamples, number)
    found = statistic(times @ clusters)
    (value,) = statistic(clusters.sum(axis=0, keepdims=True))
    below = ((found < value).mean() + (found <= value).mean()) / 2
    bias = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))  # 0 and 1 have no finite quantile

    without = statistic(clusters.sum(axis=0) - clusters)
    pull = without.mean() - without
    spread = (pull**2).sum() ** 1.5
    acceleration = (pull**3).sum() / (6 * spread) if spread > 0 else 0.0  # equal clusters pull nowhere

    edge = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(found, ndtr(bias + edge / (1 - acceleration * edge)))
    return float(low), float(high)


def sign_flip(
    a: Float[np.ndarray, "N"],
    b: Float[np.ndarray, "N"],
    clusters: Sequence[Hashable],
    flips: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p that the mean of a − b is 0: how often it is as far from 0 when the signs of whole clusters are
    flipped (paired permutation test). All flips where there are at most `flips`, otherwise so many at random and
    (k + 1) / (flips + 1), which is never 0 (Phipson & Smyth 2010).

    Pairs with a NaN are left out; NaN if none remains. Raises `MetricError` for lengths that differ, infinite values.
    """
    if len(a) != len(b):
        raise MetricError(f"paired test: {len(a)} values against {len(b)}, need pairs")
    sums, _ = _per_cluster(np.asarray(a, np.float64) - np.asarray(b, np.float64), clusters)
    number = len(sums)
    if not number:
        return math.nan
    exact = 2**number <= flips
    if exact:
        bits = np.arange(2**number)[:, None] >> np.arange(number) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (flips, number))
    rounding = 1e-12 * np.abs(sums).sum()  # the same sum in another order still counts as equal
    as_far = int((np.abs((1 - 2 * bits) @ sums) >= abs(sums.sum()) - rounding).sum())
    return as_far / len(bits) if exact else (as_far + 1) / (flips + 1)


def holm(p: Sequence[float]) -> Float[np.ndarray, "M"]:
    """p values adjusted for being M tests (Holm 1979), in the order given. NaN stays NaN and counts as a test."""
    order = np.argsort(p)  # NaN last
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(scaled, 1))
    return adjusted


def subsampled(
    statistic: Callable[[Int[np.ndarray, "size"]], float], count: int, size: int, draws: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of `statistic` (of indices) over `draws` subsets of `size` out of `count`, without
    replacement: for FID and FVD, which a bootstrap biases upwards by its duplicates.

    The subsets overlap, so the deviation is too small for new data where `size` is not far below `count`. Raises
    `MetricError` where `size` is above `count`.
    """
    if size > count:
        raise MetricError(f"subsets of {size}, but there are only {count} samples")
    random = np.random.default_rng(seed)
    found = [statistic(random.choice(count, size, replace=False)) for _ in range(draws)]
    return float(np.mean(found)), float(np.std(found, ddof=1))


def _per_cluster(
    values: Float[np.ndarray, "N"], clusters: Sequence[Hashable]
) -> tuple[Float[np.ndarray, "K"], Int[np.ndarray, "K"]]:
    """Sum and number of the values of each cluster, of those that have one that is not NaN. Raises `MetricError`."""
    values = np.asarray(values, np.float64)
    if values.shape != (len(clusters),):
        raise MetricError(f"values of shape {values.shape} for {len(clusters)} cluster labels, need one label a value")
    if np.isinf(values).any():
        raise MetricError(f"infinite value at {np.flatnonzero(np.isinf(values))[0]}, need numbers or NaN")
    kept = ~np.isnan(values)
    label = numbered([cluster for cluster, there in zip(clusters, kept, strict=True) if there])
    return np.bincount(label, values[kept]), np.bincount(label)


def numbered(labels: Sequence[Hashable]) -> Int[np.ndarray, "N"]:
    """0, 1, … for each label, in the order of the labels, or where they have none of their first occurrence."""
    different = dict.fromkeys(labels)
    try:
        ordered = sorted(different)  # type: ignore[type-var]
    except TypeError:
        ordered = list(different)
    number = {label: i for i, label in enumerate(ordered)}
    return np.array([number[label] for label in labels], int)
