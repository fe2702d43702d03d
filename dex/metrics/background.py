"""Background drift: what an edit of the expression alone moves where no head is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from dex.metrics import MetricError
from dex.metrics.pictures import check_pictures


class BackgroundDrift(Metric):
    """B = mean |Δ| outside the dilated union of head masks / mean |Δ| inside the face, over all pixels and channels, of
    outputs before and after an expression-only edit; ≥ 0, 0 for the oracle.

    A ratio, so that a model which changes nothing at all is refused instead of praised.
    """

    higher_is_better = False
    full_state_update = False

    def __init__(self, dilation: float = 0.03, **kwargs: Any) -> None:
        """`dilation`: margin around the heads, share of the picture's shorter side; hair and soft edges lie in it;
        `kwargs` of torchmetrics' `Metric`."""
        super().__init__(**kwargs)
        self.dilation = dilation
        for name in ("outside", "inside"):
            self.add_state(f"{name}_change", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{name}_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.outside_change: Tensor
        self.outside_pixels: Tensor
        self.inside_change: Tensor
        self.inside_pixels: Tensor

    def update(
        self,
        edited: Float[Tensor, "N 3 H W"],
        unedited: Float[Tensor, "N 3 H W"],
        heads: Bool[Tensor, "N 2 H W"],
        faces: Bool[Tensor, "N H W"],
    ) -> None:
        """N pairs in [0, 1], the masks of the head in both, and of the face: in the unedited picture, or in either,
        which gives another third digit and needs another name. Raises `MetricError` for pictures that are not of this
        kind, masks that are not bool, or shapes that do not fit."""
        check_pictures("edited", edited)
        check_pictures("unedited", unedited)
        n, _, height, width = edited.shape
        for name, given, shape in (
            ("unedited", unedited, (n, 3, height, width)),
            ("heads", heads, (n, 2, height, width)),
            ("faces", faces, (n, height, width)),
        ):
            if given.shape != shape:
                raise MetricError(f"{name}: {tuple(given.shape)}, need {shape} for these edited pictures")
        for name, mask in (("heads", heads), ("faces", faces)):
            if mask.dtype != torch.bool:
                raise MetricError(f"{name}: masks are {mask.dtype}, need bool")
        change = (edited.double() - unedited.double()).abs().mean(dim=1)
        outside = ~dilated(heads.any(dim=1), round(self.dilation * min(height, width)))
        for name, mask in (("outside", outside), ("inside", faces)):
            setattr(self, f"{name}_change", getattr(self, f"{name}_change") + change[mask].sum())
            setattr(self, f"{name}_pixels", getattr(self, f"{name}_pixels") + mask.sum())

    def compute(self) -> Float[Tensor, ""]:
        """Raises `MetricError` where the background or the face has no pixel, or the face does not change."""
        for name, pixels in (("outside the heads", self.outside_pixels), ("inside the faces", self.inside_pixels)):
            if not pixels:
                raise MetricError(f"background drift: no pixel {name}, nothing to measure")
        if not self.inside_change > 0:
            raise MetricError("background drift: the edit changes nothing inside the faces, nothing to compare with")
        return (self.outside_change / self.outside_pixels) / (self.inside_change / self.inside_pixels)


def dilated(masks: Bool[Tensor, "N H W"], radius: int) -> Bool[Tensor, "N H W"]:
    """Grown by `radius` pixels to all sides, by a square."""
    return F.max_pool2d(masks[:, None].float(), 2 * radius + 1, stride=1, padding=radius)[:, 0].bool()
