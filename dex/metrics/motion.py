"""AED and APD: expression and pose read from the output against those read from their drivers.

A frame in which the extractor found no face is a row of NaN, in output or driver. It is left out and counted in
`fail_rate`; it is never taken for 0, which would reward an output without a face.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from dex.metrics import MetricError
from dex.pose import geodesic, split_pose


class MotionDistance(Metric):
    """Means over clips of means over the frames that could be read, and the share of those that could not."""

    higher_is_better = False
    full_state_update = False
    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("clips", "frames", "failed"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.total: Tensor
        self.clips: Tensor
        self.frames: Tensor
        self.failed: Tensor

    def update(self, output: Float[Tensor, "F *m"], driver: Float[Tensor, "F *m"]) -> None:
        """One clip. Raises `MetricError` for shapes that differ."""
        if output.shape != driver.shape or not len(output):
            raise MetricError(f"output is {tuple(output.shape)}, driver {tuple(driver.shape)}: need the same frames")
        output, driver = output.double(), driver.double()
        read: Bool[Tensor, "F"] = (output.isfinite() & driver.isfinite()).flatten(1).all(dim=1)
        self.frames += len(read)
        self.failed += (~read).sum()
        if read.any():
            self.total += self.per_frame(output[read], driver[read]).mean(dim=0)
            self.clips += 1

    def per_frame(self, output: Float[Tensor, "F *m"], driver: Float[Tensor, "F *m"]) -> Float[Tensor, "F n"]:
        """The entries of `names`."""
        raise NotImplementedError

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """The means, NaN where no frame was read, and `fail_rate` in [0, 1]. Raises `MetricError` without a clip."""
        if not self.frames:
            raise MetricError(f"{type(self).__name__}: no clip was given")
        means = dict(zip(self.names, self.total / self.clips, strict=True))
        return means | {"fail_rate": self.failed.double() / self.frames}


class ExpressionDistance(MotionDistance):
    """AED, `aed.EXTRACTOR_l1mean.v1`: mean absolute difference of the coefficients (F, E), of output and expression
    driver."""

    names = ("aed",)

    def per_frame(self, output: Float[Tensor, "F E"], driver: Float[Tensor, "F E"]) -> Float[Tensor, "F 1"]:
        return (output - driver).abs().mean(dim=1, keepdim=True)


class PoseDistance(MotionDistance):
    """APD, `apd.EXTRACTOR_geodesic_deg.v1`, of poses (F, 3, 4) = [sR | t] of output and pose driver: the angle between
    the rotations in degrees; |t − t'| and |log s − log s'| apart from it."""

    names = ("apd", "translation", "log_scale")

    def per_frame(self, output: Float[Tensor, "F 3 4"], driver: Float[Tensor, "F 3 4"]) -> Float[Tensor, "F 3"]:
        (r1, t1, s1), (r2, t2, s2) = split_pose(output), split_pose(driver)
        degrees = geodesic(r1, r2) * (180 / math.pi)
        return torch.stack([degrees, (t1 - t2).norm(dim=-1), (s1.log() - s2.log()).abs()], dim=-1)
