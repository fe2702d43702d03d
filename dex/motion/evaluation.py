"""What a motion trainer is measured by while it trains: relative poses, and swaps against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanMetric, PearsonCorrCoef

from dex.batch import EYES, MOUTH, Batch
from dex.motion.losses import masked_mean, region_mask
from dex.pose import POSE_COMPONENTS, full_precision, geodesic, pose_components, relative_pose, split_pose

# Swap errors are taken over the whole picture and over the parts that expression moves.
SWAP_REGIONS = {"all": (0, MOUTH), "eyes": (EYES, EYES), "mouth": (MOUTH, MOUTH), "eyes_mouth": (EYES, MOUTH)}


class MotionEvaluation(nn.Module):
    """Sums over a validation set; `compute` gives means. Every entry adds up over processes (torchmetrics states)."""

    def __init__(self) -> None:
        super().__init__()
        self.pose_error = MeanMetric()
        self.correlation = PearsonCorrCoef(num_outputs=len(POSE_COMPONENTS))
        # Any: a ModuleDict forgets what its modules are
        self.swap: Any = nn.ModuleDict({name: MeanMetric() for name in SWAP_REGIONS})
        self.copy: Any = nn.ModuleDict({name: MeanMetric() for name in SWAP_REGIONS})

    def update(
        self,
        batch: Batch,
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        fake: Float[Tensor, "B K 3 H W"],
    ) -> None:
        """Poses are the model's; the batch holds the truth. Pictures in [-1, 1] are compared in [0, 1]."""
        drivers = driving_pose.shape[1]
        source = batch.source.repeat_interleave(drivers, dim=0)
        self._update_pose(batch, source_pose.repeat_interleave(drivers, dim=0), driving_pose.flatten(0, 1))
        truth, region = batch.driving.flatten(0, 1), batch.driving_region.flatten(0, 1)
        for name, (lowest, highest) in SWAP_REGIONS.items():
            mask = region_mask(region, lowest=lowest, highest=highest)
            for metric, picture in ((self.swap[name], fake.flatten(0, 1)), (self.copy[name], source)):
                error = ((picture.clamp(-1, 1) - truth) / 2).abs().mean(dim=1)
                metric.update(masked_mean(error, mask), mask.sum())

    def _update_pose(self, batch: Batch, source: Float[Tensor, "N 3 4"], driving: Float[Tensor, "N 3 4"]) -> None:
        drivers = batch.driving_pose.shape[1]
        known = (batch.driving_pose_weight * batch.source_pose_weight[:, None]).flatten() > 0
        if not known.any():
            return
        with full_precision(source):
            truth = relative_pose(
                batch.source_pose.repeat_interleave(drivers, dim=0)[known], batch.driving_pose.flatten(0, 1)[known]
            )
            found = relative_pose(source[known], driving[known])
        self.pose_error.update(geodesic(split_pose(found)[0], split_pose(truth)[0]) * (180 / math.pi))
        self.correlation.update(pose_components(found), pose_components(truth))

    def compute(self) -> dict[str, Tensor]:
        """By tag: pose error in degrees, its correlations by component, swap errors and their ratio to copying."""
        out = {"pose_error_deg": self.pose_error.compute()}
        correlations = self.correlation.compute()
        out |= {f"correlation_{name}": value for name, value in zip(POSE_COMPONENTS, correlations, strict=True)}
        for name in SWAP_REGIONS:
            swap, copy = self.swap[name].compute(), self.copy[name].compute()
            out |= {f"swap_l1_{name}": swap, f"copy_l1_{name}": copy, f"swap_ratio_{name}": swap / copy}
        return out

    def reset(self) -> None:
        for metric in (self.pose_error, self.correlation, *self.swap.values(), *self.copy.values()):
            metric.reset()


def report(figures: Mapping[str, float]) -> str:
    """The figures of a validation, as logged under val/, in a few lines for a terminal."""
    correlations = ", ".join(f"{name} {figures[f'val/correlation_{name}']:.2f}" for name in POSE_COMPONENTS)
    lines = [
        "On identities that training never saw:",
        f"  relative pose error          {figures['val/pose_error_deg']:.1f}°",
        f"  correlation with the truth   {correlations}",
        "  L1 to the truth              output  copying the source  ratio",
    ]
    for name in SWAP_REGIONS:
        values = [figures[f"val/{kind}_{name}"] for kind in ("swap_l1", "copy_l1", "swap_ratio")]
        lines.append("    {:<26} {:.4f}  {:.4f}              {:.2f}".format(name.replace("_", " and "), *values))
    return "\n".join(lines)
