"""Probe leakage: what can be read about pose and identity from codes that should hold expression alone.

Out-of-fold R² of linear and of kernel ridge regression, no identity in training and test part alike. A score of its own
only where pose and expression are independent (factorial synthetic data); on real video compare with what the true
expression already tells, R²([e, E]) − R²(E).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from dex.metrics import MetricError
from dex.metrics.distributions import check_features
from dex.metrics.statistics import numbered
from dex.pose import split_pose

ALPHAS = torch.logspace(-8, 3, 23, dtype=torch.float64)  # ridge penalties, multiples of the number of samples
_HELD = 1e-4  # radians, image units, log: a pose component that varies less is held fixed, the rest is rounding
_COMPONENTS = 512  # of the PCA of pictures
_LEAST_CEILING = 0.05

# (training codes (n, E), test codes (m, E)) → orthonormal vectors (n, r) and values (r,) of the centred Gram matrix of
# the training part, and the kernel of test against training (m, n).
Kernel = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def group_folds(groups: Sequence[Hashable], folds: int = 5, seed: int = 0) -> Int[Tensor, "N"]:
    """The fold of each sample: whole groups in random order, the largest first, each into the smallest fold so far.

    Raises `MetricError` for fewer groups than folds.
    """
    label = numbered(groups)
    sizes = np.bincount(label)
    if len(sizes) < folds:
        raise MetricError(f"{len(sizes)} groups for {folds} folds, need at least one a fold")
    filled, fold = np.zeros(folds, int), np.empty(len(sizes), int)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return torch.from_numpy(fold[label])


def ridge_r2(
    codes: Float[Tensor, "N E"], targets: Float[Tensor, "N T"], groups: Sequence[Hashable], standardise: bool = True
) -> Float[Tensor, "T"]:
    """Out-of-fold R² of ridge regression, clipped to [0, 1]; NaN for a target that does not vary.

    Codes are standardised and the penalty of each target chosen by leave-one-out, both in the training part. Not
    `standardise`: components keep their proportions, for principal ones, of which the last are noise. Raises
    `MetricError` for NaN, or lengths that differ.
    """
    return _r2(targets, _out_of_fold(codes, targets, groups, _linear, standardise))


def kernel_r2(
    codes: Float[Tensor, "N E"], targets: Float[Tensor, "N T"], groups: Sequence[Hashable], standardise: bool = True
) -> Float[Tensor, "T"]:
    """`ridge_r2` with the kernel exp(−d² / 2m²), m the median distance of two training samples. Decomposes N × N."""
    return _r2(targets, _out_of_fold(codes, targets, groups, _gaussian, standardise))


def pose_targets(pose: Float[Tensor, "N 3 4"]) -> Float[Tensor, "N 12"]:
    """z-scored rotation vector (3), t_x, t_y, log s; and the absolute values of these z-scores, which a code may tell
    though it does not tell the side. t_z, 0 by convention, is left out. A component held fixed is a column of 0.

    Raises `MetricError` for NaN.
    """
    check_features(pose.flatten(1), 12)
    rotation, translation, scale = split_pose(pose.double().cpu())
    vector = torch.from_numpy(Rotation.from_matrix(rotation.numpy()).as_rotvec())
    parts = torch.cat([vector, translation[:, :2], scale.log()[:, None]], dim=1)
    deviation = parts.std(dim=0, correction=0)
    score = (parts - parts.mean(dim=0)) / deviation.where(deviation > _HELD, torch.inf)
    return torch.cat([score, score.abs()], dim=1)


def pose_leakage(
    codes: Float[Tensor, "N E"],
    pose: Float[Tensor, "N 3 4"],
    groups: Sequence[Hashable],
    pictures: Float[Tensor, "N D"] | None = None,
) -> dict[str, float]:
    """`ridge` and `rbf`: mean R² of the `pose_targets` that vary. With pictures, flattened, also `ceiling_ridge` and
    `ceiling_rbf`, the same of the pictures' first 512 principal components, which keep their proportions (standardised,
    the last would count as much as the first, and hide it), and `normalised`: the larger of the two ratios of R² to
    ceiling, at most 1. Give over 1000 samples: of few the ceiling is low.

    Raises `MetricError` for a ceiling below 0.05: not even the picture tells the pose.
    """
    targets = pose_targets(pose)
    probes = {"ridge": ridge_r2, "rbf": kernel_r2}
    found = {name: probe(codes, targets, groups).nanmean().item() for name, probe in probes.items()}
    if pictures is None:
        return found
    components = _principal(pictures)
    ceilings = {
        name: probe(components, targets, groups, standardise=False).nanmean().item() for name, probe in probes.items()
    }
    for name, ceiling in ceilings.items():
        if not ceiling >= _LEAST_CEILING:
            raise MetricError(f"pose leakage: {name} reads R² {ceiling:.3f} from pictures, need {_LEAST_CEILING}")
    normalised = max(min(found[name] / ceilings[name], 1.0) for name in probes)
    return found | {f"ceiling_{name}": value for name, value in ceilings.items()} | {"normalised": normalised}


def identity_accuracy(codes: Float[Tensor, "N E"], identities: Sequence[Hashable]) -> tuple[float, float]:
    """Share of samples whose identity a linear probe (ridge on one-hot targets) reads off, in folds over samples, and
    chance: the share of the most frequent identity."""
    truth = torch.from_numpy(numbered(identities))
    one_hot = torch.nn.functional.one_hot(truth).double()
    found = _out_of_fold(codes, one_hot, range(len(truth)), _linear).argmax(dim=1)
    return (found == truth).double().mean().item(), int(truth.bincount().max()) / len(truth)


def _out_of_fold(
    codes: Tensor, targets: Tensor, groups: Sequence[Hashable], kernel: Kernel, standardise: bool = True
) -> Float[Tensor, "N T"]:
    """Each sample's prediction from the folds without it."""
    check_features(codes, codes.shape[-1])
    check_features(targets, targets.shape[-1])
    if not len(codes) == len(targets) == len(groups):
        raise MetricError(f"probe: {len(codes)} codes, {len(targets)} targets, {len(groups)} groups, need as many each")
    codes, targets = codes.double().cpu(), targets.double().cpu()
    fold, predicted = group_folds(groups), torch.empty_like(targets)
    for number in fold.unique():
        test = fold == number
        mean, deviation = codes[~test].mean(dim=0), codes[~test].std(dim=0, correction=0)
        if not standardise:
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        standard = (codes - mean) / deviation.where(deviation > 1e-6 * mean.abs(), torch.inf)  # constants turn 0
        predicted[test] = _fit(*kernel(standard[~test], standard[test]), targets[~test])
    return predicted


def _r2(targets: Float[Tensor, "N T"], predicted: Float[Tensor, "N T"]) -> Float[Tensor, "T"]:
    targets = targets.double().cpu()
    varied = (targets - targets.mean(dim=0)).square().sum(dim=0)
    varied = varied.where(varied > 1e-12 * targets.square().sum(dim=0), torch.nan)
    return (1 - (targets - predicted).square().sum(dim=0) / varied).clamp(0, 1)


def _fit(vectors: Tensor, values: Tensor, cross: Tensor, targets: Tensor) -> Float[Tensor, "m T"]:
    """Predictions for the test part by ridge regression in its dual form, with an intercept that is not penalised."""
    number, mean = len(targets), targets.mean(dim=0)
    loadings = vectors.mT @ (targets - mean)
    penalties = number * ALPHAS
    errors = []
    for penalty in penalties:  # leave-one-out in closed form: residual / (1 − leverage)
        kept = values / (values + penalty)
        leverage = 1 / number + vectors.square() @ kept
        residual = targets - mean - vectors @ (kept[:, None] * loadings)
        errors.append((residual / (1 - leverage)[:, None]).square().sum(dim=0))
    best = penalties[torch.stack(errors).argmin(dim=0)]
    return mean + cross @ (vectors @ (loadings / (values[:, None] + best)))


def _linear(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    vectors, values, _ = torch.linalg.svd(train, full_matrices=False)
    return vectors, values.square(), test @ train.mT


def _gaussian(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    width = torch.pdist(train).median().clamp_min(1e-12)
    gram, cross = (torch.exp(-(torch.cdist(x, train) / width).square() / 2) for x in (train, test))
    mean = gram.mean(dim=0)
    values, vectors = torch.linalg.eigh(gram - mean - mean[:, None] + mean.mean())
    # Of the centred cross kernel the terms that are the same for all of `train` meet coefficients of sum 0.
    return vectors, values.clamp_min(0), cross - mean


def _principal(pictures: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
    """Scores of the first principal components, at most 512."""
    check_features(pictures, pictures.shape[-1])
    centred = pictures.double() - pictures.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred @ centred.mT)
    kept = (values > 1e-10 * values[-1]).nonzero().flatten()[-_COMPONENTS:]
    return vectors[:, kept] * values[kept].sqrt()
