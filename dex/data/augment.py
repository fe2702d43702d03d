"""The two augmentations that force pose and expression apart (DeX-Portrait, fig. 3; the exact operations are ours).

Both act on what an encoder sees, never on the target. They run on the device, on whole batches, and draw from the given
generator only, so that a resumed run repeats them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dex.batch import EYES, MOUTH
from dex.pose import base_grid, full_precision


@dataclass(frozen=True)
class PoseAugmentation:
    """What is done to the expression encoder's input, so that the code cannot carry pose."""

    rotation: float = 45.0  # degrees, ±
    scale: float = 0.25  # 1 ± scale
    translation: float = 0.12  # share of the picture, ±
    perspective: float = 0.1  # change of depth over half of the picture, ±
    colour: float = 0.2  # brightness, contrast, saturation and channel gains, ±


@dataclass(frozen=True)
class ExpressionAugmentation:
    """What is done to the pose encoder's input, so that the pose cannot carry expression."""

    warp: float = 0.06  # local displacement of eyes and mouth in normalised units, standard deviation
    mask_probability: float = 0.3  # of hiding the eyes, and of hiding the mouth
    colour: float = 0.2


def pose_augment(
    picture: Float[Tensor, "N 3 H W"], settings: PoseAugmentation, generator: torch.Generator
) -> Float[Tensor, "N 3 H W"]:
    """Random rotation, scale, translation, perspective and colour. Picture in [-1, 1]; borders are reflected."""
    n, device = picture.shape[0], picture.device
    angle, growth, tx, ty, px, py = (
        amount * _uniform((n,), generator, device)
        for amount in (
            math.radians(settings.rotation),
            settings.scale,
            2 * settings.translation,
            2 * settings.translation,
            settings.perspective,
            settings.perspective,
        )
    )
    scale = 1 + growth
    cos, sin = angle.cos() / scale, angle.sin() / scale
    homography = torch.stack(
        [cos, sin, tx, -sin, cos, ty, px, py, torch.ones_like(px)],
        dim=-1,
    ).unflatten(-1, (3, 3))
    plane = F.pad(base_grid(*picture.shape[-2:], device=device), (0, 1), value=1.0)
    with full_precision(picture):
        moved = torch.einsum("nij,hwj->nhwi", homography, plane)
    grid = moved[..., :2] / moved[..., 2:].clamp_min(0.1)
    warped = F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)
    return colour_jitter(warped, settings.colour, generator)


def expression_augment(
    picture: Float[Tensor, "N 3 H W"],
    region: Int[Tensor, "N H W"],
    settings: ExpressionAugmentation,
    generator: torch.Generator,
) -> Float[Tensor, "N 3 H W"]:
    """Smooth local warps and random masking of eyes and mouth, and colour; the global transform is left alone.

    `region` holds the labels of `Batch`; a picture without labels (all zero) gets the colour change only.
    """
    n, device = picture.shape[0], picture.device
    masks = torch.stack([region == EYES, region == MOUTH], dim=1).to(picture.dtype)
    soft = _blur(masks, radius=picture.shape[-1] // 16)
    # A 6×6 field of displacements is smooth at the scale of an eye.
    field = settings.warp * torch.randn(n, 2, 6, 6, generator=generator, device=device)
    field = F.interpolate(field, size=picture.shape[-2:], mode="bicubic", align_corners=False)
    field = field * (2 * soft.amax(dim=1, keepdim=True)).clamp_max(1)
    grid = base_grid(*picture.shape[-2:], device=device) + field.movedim(1, -1)
    warped = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    hide = torch.rand(n, 2, 1, 1, generator=generator, device=device) < settings.mask_probability
    hidden = (hide * (3 * soft).clamp_max(1)).amax(dim=1, keepdim=True)
    # A random flat colour: a fixed one would itself say that something is hidden, and where.
    fill = _uniform((n, 3, 1, 1), generator, device)
    return colour_jitter(warped * (1 - hidden) + fill * hidden, settings.colour, generator)


def colour_jitter(
    picture: Float[Tensor, "N 3 H W"], amount: float, generator: torch.Generator
) -> Float[Tensor, "N 3 H W"]:
    """Brightness, contrast, saturation and the gain of each channel, each by up to ± `amount`; result in [-1, 1]."""
    n, device = picture.shape[0], picture.device

    def factor(*shape: int) -> Tensor:
        return amount * _uniform((n, *shape), generator, device)

    mean = picture.mean(dim=(1, 2, 3), keepdim=True)
    grey = picture.mean(dim=1, keepdim=True)
    picture = grey + (1 + factor(1, 1, 1)) * (picture - grey)
    picture = mean + (1 + factor(1, 1, 1)) * (1 + factor(3, 1, 1)) * (picture - mean)
    return (picture + factor(1, 1, 1)).clamp(-1, 1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return 2 * torch.rand(shape, generator=generator, device=device) - 1


def _blur(mask: Float[Tensor, "N C H W"], radius: int) -> Float[Tensor, "N C H W"]:
    kernel = 2 * max(1, radius) + 1
    return F.avg_pool2d(mask, kernel, stride=1, padding=kernel // 2)
