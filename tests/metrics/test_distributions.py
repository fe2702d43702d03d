"""Fréchet and kernel distance against closed forms and against other implementations."""

import math

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from dex.metrics import MetricError
from dex.metrics.distributions import FrechetDistance, KernelDistance, frechet_distance

D = 12


def features(seed: int, count: int, shift: float = 0.0) -> Tensor:
    """Correlated features of unequal spread."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, D, generator=random) @ mix * (1 + shift) + shift


def frechet(real: Tensor, fake: Tensor, parts: int = 1) -> float:
    metric = FrechetDistance(D)
    for kind, rows in ((True, real), (False, fake)):
        for part in rows.chunk(parts):
            metric.update(part, real=kind)
    return metric.compute().item()


def test_two_gaussians_in_closed_form() -> None:
    """Σ_a = diag(a²), Σ_b = diag(b²): |Δμ|² + Σ (a − b)²."""
    a, b, shift = torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 2, 0.5]), torch.tensor([1.0, 0, -2])
    found = frechet_distance(torch.zeros(3), torch.diag(a**2), shift, torch.diag(b**2))
    assert found.item() == pytest.approx((shift.square() + (a - b).square()).sum().item(), rel=1e-12)


def test_as_pytorch_fid() -> None:
    real, fake = features(0, 200), features(1, 150, 0.3)
    moments = [(rows.numpy().mean(axis=0), np.cov(rows.double().numpy(), rowvar=False)) for rows in (real, fake)]
    want = calculate_frechet_distance(*moments[0], *moments[1])
    assert frechet(real, fake) == pytest.approx(want, rel=1e-6)
    assert frechet(real, fake, parts=7) == pytest.approx(want, rel=1e-6)


def test_fewer_samples_than_features_and_equal_sets() -> None:
    real = features(0, 5)
    assert frechet(real, real) == pytest.approx(0, abs=1e-5)
    assert math.isfinite(frechet(real, features(1, 6, 1.0)))
    assert frechet(features(0, 400), features(1, 400)) < frechet(features(0, 400), features(1, 400, 0.5))


def test_kernel_distance_as_torchmetrics() -> None:
    """Over one subset that is the whole set, there is nothing random left in theirs."""
    real, fake = features(0, 40), features(1, 40, 0.3)
    theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=40)
    ours = KernelDistance(D)
    for kind, rows in ((True, real), (False, fake)):
        (theirs.real_features if kind else theirs.fake_features).append(rows.double())
        for part in rows.chunk(3):
            ours.update(part, real=kind)
    assert ours.compute().item() == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
def test_what_is_refused(kind: type) -> None:
    metric = kind(D)
    with pytest.raises(MetricError, match="need samples × 12"):
        metric.update(torch.zeros(3, 4), real=True)
    with pytest.raises(MetricError, match="NaN"):
        metric.update(torch.full((3, D), math.nan), real=True)
    metric.update(features(0, 4), real=True)
    metric.update(features(0, 1), real=False)
    with pytest.raises(MetricError, match="1 fake samples, need at least 2"):
        metric.compute()
