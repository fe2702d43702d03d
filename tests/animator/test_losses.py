import pytest
import torch

from dex.animator.losses import DiffusionLoss, region_errors, snr_weight
from dex.batch import EYES, HEAD, MOUTH


def test_min_snr_weights_are_the_papers() -> None:
    """Hang et al. 2023: min(SNR, γ) on the error of z_0; that of ε is 1 / SNR of it, that of v 1 / (SNR + 1)."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas, t = torch.cumprod(1 - beta, 0), torch.tensor([1, 300, 999])
    snr = alphas[t] / (1 - alphas[t])
    for prediction, divisor in (("epsilon", snr), ("v_prediction", snr + 1), ("sample", 1)):
        found = snr_weight(DiffusionLoss(prediction=prediction, min_snr=5), alphas.float(), t)
        torch.testing.assert_close(found.double(), snr.clamp_max(5) / divisor, rtol=1e-4, atol=0)
    assert snr_weight(DiffusionLoss(), alphas, t).tolist() == [1, 1, 1]


def test_errors_on_regions_are_means_over_them() -> None:
    """One wrong cell, of 4×4 pixels, whose middle is an eye: the eye's edge grows by a pixel, as in stage 1."""
    loss = DiffusionLoss(region_face=1, region_eyes=4)
    error = torch.zeros(1, 2, 48, 8, 8)
    error[0, 1, :, 3, 5] = 6.0
    region = torch.full((1, 2, 32, 32), HEAD)
    region[0, 1, 13:15, 21:23] = EYES  # with its edge just the cell of the error
    found = region_errors(loss, error, region)
    assert found["region_eyes"].item() == pytest.approx(6)
    assert found.keys() == {"region_face", "region_eyes"}
    region[0, 0, 9:11, 9:11] = MOUTH  # as large, without error: of the face, no eye
    found = region_errors(loss, error, region)
    assert (found["region_eyes"].item(), found["region_face"].item()) == (pytest.approx(6), pytest.approx(3))
    assert all(value == 0 for value in region_errors(loss, error, torch.full_like(region, HEAD)).values())
    assert region_errors(DiffusionLoss(), error, region) == {}
