"""Frames against the truth: PSNR and SSIM, per frame, mean over the frames of a clip, then over clips."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from dex.metrics import MetricError

_WINDOW, _SIGMA = 11, 1.5  # pixels
_LEAST_ERROR = 1e-10  # mean squared; equal frames have 100 dB, not infinitely many


def psnr(a: Float[Tensor, "*b 3 H W"], b: Float[Tensor, "*b 3 H W"]) -> Float[Tensor, "*b"]:
    """−10 log10 of the mean squared difference of pictures in [0, 1]; decibels, at most 100."""
    return -10 * torch.log10((a - b).square().mean(dim=(-3, -2, -1)).clamp_min(_LEAST_ERROR))


def ssim(a: Float[Tensor, "F 3 H W"], b: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
    """Structural similarity of pictures in [0, 1] (Wang et al. 2004, eq. 13; K₁ = 0.01, K₂ = 0.03): Gaussian window of
    11 pixels, σ = 1.5, where it lies wholly inside the picture; mean of channels. At most 1.

    Raises `MetricError` for pictures smaller than the window.
    """
    if min(a.shape[-2:]) < _WINDOW:
        raise MetricError(f"SSIM: pictures of {a.shape[-2]}×{a.shape[-1]}, need at least {_WINDOW}×{_WINDOW}")
    down, across = _windows(a.shape[-2], a), _windows(a.shape[-1], a)

    def local_mean(x: Tensor) -> Tensor:
        return down @ x @ across.mT

    mean_a, mean_b = local_mean(a), local_mean(b)
    variance_a, variance_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    same = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    same = same / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
    return same.mean(dim=(1, 2, 3))


def _windows(length: int, like: Tensor) -> Float[Tensor, "length-10 length"]:
    """The Gaussian window at each of its places, a row each. As a matrix product: torch convolves float64 at a seventh
    of its speed on a CPU."""
    place = torch.arange(_WINDOW, dtype=like.dtype, device=like.device) - _WINDOW // 2
    line = torch.softmax(-(place**2) / (2 * _SIGMA**2), dim=0)
    return torch.eye(length, dtype=like.dtype, device=like.device).unfold(0, _WINDOW, 1) @ line


class ClipMean(Metric):
    """The mean over clips of a clip's mean over frames: the clip is the unit, long ones do not count more."""

    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.total: Tensor
        self.clips: Tensor

    def update(self, output: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"]) -> None:
        """One clip, pictures in [0, 1]. Raises `MetricError` for integers, other ranges, NaN, or shapes that differ."""
        check_pictures("output", output)
        check_pictures("truth", truth)
        if output.shape != truth.shape:
            raise MetricError(f"output is {tuple(output.shape)}, truth {tuple(truth.shape)}: need the same frames")
        self.total += self.per_frame(output, truth).double().mean()
        self.clips += 1

    def per_frame(self, output: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
        raise NotImplementedError

    def compute(self) -> Float[Tensor, ""]:
        """Raises `MetricError` where no clip was given."""
        if not self.clips:
            raise MetricError(f"{type(self).__name__}: no clip was given")
        return self.total / self.clips


class Psnr(ClipMean):
    """`psnr.v1`, decibels."""

    def per_frame(self, output: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
        return psnr(output.double(), truth.double())


class Ssim(ClipMean):
    """`ssim.gauss11.v1`."""

    def per_frame(self, output: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
        return ssim(output.double(), truth.double())


def check_pictures(name: str, pictures: Tensor) -> None:
    """Raises `MetricError` for all but float pictures (F, 3, H, W) in [0, 1]: 8-bit differences wrap around."""
    if not pictures.is_floating_point():
        raise MetricError(f"{name}: pictures are {pictures.dtype}, need float in [0, 1]: divide 8-bit ones by 255")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not len(pictures):
        raise MetricError(f"{name}: pictures of shape {tuple(pictures.shape)}, need frames × 3 × height × width")
    if not pictures.isfinite().all():
        bad = (~pictures.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise MetricError(f"{name}: NaN or infinite values in frames {bad[:5]}")
    low, high = pictures.min().item(), pictures.max().item()
    if low < 0 or high > 1:
        raise MetricError(f"{name}: pictures in [{low:.3g}, {high:.3g}], need [0, 1]")
