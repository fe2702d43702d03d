"""Distances of two sets of features: Fréchet (FID, FVD) and kernel (KID). In float64, without `sqrtm`.

Which network the features come from belongs into the name of the number: Inception makes it FID, I3D makes it FVD.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from dex.metrics import MetricError


def frechet_distance(
    mean_a: Float[Tensor, "D"],
    covariance_a: Float[Tensor, "D D"],
    mean_b: Float[Tensor, "D"],
    covariance_b: Float[Tensor, "D D"],
) -> Float[Tensor, ""]:
    """|μ_a − μ_b|² + tr(A + B − 2 (A^½ B A^½)^½) (Dowson & Landau 1982; Heusel et al. 2017).

    A^½ B A^½ is symmetric and has the eigenvalues of AB, so both roots come from symmetric eigendecompositions, which
    neither fail nor turn complex on covariances of few samples, as `sqrtm` of AB does.
    """
    mean_a, covariance_a, mean_b, covariance_b = (x.double() for x in (mean_a, covariance_a, mean_b, covariance_b))
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    middle = root @ covariance_b @ root
    common = torch.linalg.eigvalsh((middle + middle.mT) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * common
    return distance.clamp_min(0)  # roots of eigenvalues near 0 round to some 1e-6


class FeatureDistance(Metric):
    """A distance of real from generated features, rows of D numbers."""

    higher_is_better = False
    full_state_update = False

    def __init__(self, features: int) -> None:
        """`features`: D."""
        super().__init__()
        self.features = features

    def update(self, features: Float[Tensor, "N D"], real: bool) -> None:
        """Raises `MetricError` for another number of features, or NaN."""
        check_features(features, self.features)
        self.add("real" if real else "fake", features.double())

    def add(self, kind: str, rows: Float[Tensor, "N D"]) -> None:
        """Takes up rows of a kind, "real" or "fake"."""
        raise NotImplementedError


class FrechetDistance(FeatureDistance):
    """Fréchet distance of Gaussians fitted to real and to generated features; ≥ 0, 0 for equal sets.

    Biased upwards by few samples: compare at equal N only, and beside the distance of two halves of the real set.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        for kind in ("real", "fake"):
            self.add_state(f"{kind}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{kind}_sum", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
            outer = torch.zeros(features, features, dtype=torch.float64)
            self.add_state(f"{kind}_outer", outer, dist_reduce_fx="sum")

    def add(self, kind: str, rows: Float[Tensor, "N D"]) -> None:
        for name, value in (("count", len(rows)), ("sum", rows.sum(dim=0)), ("outer", rows.mT @ rows)):
            setattr(self, f"{kind}_{name}", getattr(self, f"{kind}_{name}") + value)

    def compute(self) -> Float[Tensor, ""]:
        """Raises `MetricError` for fewer than 2 rows of either kind."""
        return frechet_distance(*self._gaussian("real"), *self._gaussian("fake"))

    def _gaussian(self, kind: str) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"]]:
        count = getattr(self, f"{kind}_count")
        check_rows(int(count), kind)
        mean = getattr(self, f"{kind}_sum") / count
        return mean, (getattr(self, f"{kind}_outer") - count * torch.outer(mean, mean)) / (count - 1)


class KernelDistance(FeatureDistance):
    """KID: the unbiased squared MMD of two sets under k(x, y) = (x·y / D + 1)³ (Bińkowski et al. 2018), over all pairs
    instead of random subsets: nothing to seed. May be below 0 by chance. Holds all features."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        for kind in ("real", "fake"):
            self.add_state(kind, [], dist_reduce_fx="cat")

    def add(self, kind: str, rows: Float[Tensor, "N D"]) -> None:
        getattr(self, kind).append(rows)

    def compute(self) -> Float[Tensor, ""]:
        """Raises `MetricError` for fewer than 2 rows of either kind."""
        real, fake = self._rows("real"), self._rows("fake")

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.mT / self.features + 1) ** 3

        def within(x: Tensor) -> Tensor:
            k = kernel(x, x)
            return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

        return within(real) + within(fake) - 2 * kernel(real, fake).mean()

    def _rows(self, kind: str) -> Float[Tensor, "N D"]:
        held = getattr(self, kind)  # a list, or one tensor once processes have joined theirs
        rows = held if isinstance(held, Tensor) else torch.cat(held) if held else torch.zeros(0, self.features)
        check_rows(len(rows), kind)
        return rows


def check_rows(count: int, kind: str) -> None:
    """Raises `MetricError`."""
    if count < 2:
        raise MetricError(f"{count} {kind} samples, need at least 2")


def check_features(features: Tensor, wanted: int) -> None:
    """Raises `MetricError`."""
    if features.ndim != 2 or features.shape[1] != wanted:
        raise MetricError(f"features of shape {tuple(features.shape)}, need samples × {wanted}")
    if not features.isfinite().all():
        raise MetricError("features hold NaN or infinite values")
