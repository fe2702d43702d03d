"""PSNR and SSIM against scikit-image, and what must not be measured."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from dex.metrics import MetricError
from dex.metrics.pictures import Psnr, Ssim, psnr


def clip(seed: int, frames: int = 3) -> tuple[Tensor, Tensor]:
    """Smooth pictures and noisy copies, values in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 6, 6, generator=random)
    truth = torch.nn.functional.interpolate(coarse, size=(40, 48), mode="bicubic").clamp(0, 1)
    return (truth + 0.1 * torch.randn(truth.shape, generator=random)).clamp(0, 1), truth


def by_scikit_image(output: Tensor, truth: Tensor) -> tuple[float, float]:
    pairs = [(o.movedim(0, -1).numpy(), t.movedim(0, -1).numpy()) for o, t in zip(output, truth, strict=True)]
    ratios = [peak_signal_noise_ratio(t, o, data_range=1) for o, t in pairs]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    same = [structural_similarity(t, o, data_range=1, channel_axis=-1, **window) for o, t in pairs]
    return float(np.mean(ratios)), float(np.mean(same))


def test_as_scikit_image_clip_by_clip() -> None:
    measured = Psnr(), Ssim()
    wanted = []
    for seed, frames in ((0, 3), (1, 7)):
        output, truth = clip(seed, frames)
        for metric in measured:
            metric.update(output, truth)
        wanted.append(by_scikit_image(output, truth))
    for metric, values in zip(measured, zip(*wanted, strict=True), strict=True):
        assert metric.compute().item() == pytest.approx(np.mean(values), rel=1e-5)


def test_unrelated_noise_and_the_bound_by_l1() -> None:
    """Uniform noise differs by 1/6 in the mean square: 7.8 dB. By Jensen, no frame is above −20 log10(L1)."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 4, 3, 128, 128, generator=random)
    metric = Psnr()
    metric.update(a, b)
    assert metric.compute().item() == pytest.approx(10 * math.log10(6), abs=0.05)
    for output, truth in (clip(2), (a, b)):
        bound = -20 * torch.log10((output - truth).abs().mean(dim=(1, 2, 3)))
        assert (psnr(output, truth) <= bound).all()
    assert psnr(a, a).tolist() == pytest.approx([100] * 4)


def test_what_is_refused() -> None:
    output, truth = clip(0)
    holed = output.clone()
    holed[1, 0, 0, 0] = math.nan
    for wrong, right, said in (
        ((output * 255).byte(), truth, r"torch\.uint8, need float in \[0, 1\]: divide"),
        (output * 255, truth, r"need \[0, 1\]"),
        (output * 2 - 1, truth, r"output: pictures in \[-1"),
        (holed, truth, r"NaN or infinite values in frames \[1\]"),
        (output[:2], truth, "need the same frames"),
        (output[:, :1], truth[:, :1], r"need frames × 3 × height × width"),
    ):
        metric = Psnr()
        with pytest.raises(MetricError, match=said):
            metric.update(wrong, right)
        with pytest.raises(MetricError, match="no clip was given"):
            metric.compute()
    with pytest.raises(MetricError, match="need at least 11×11"):
        Ssim().update(output[..., :9], truth[..., :9])
