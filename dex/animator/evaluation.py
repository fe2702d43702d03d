"""What an animator is measured by while it trains: its denoising error, and drawn frames against the truth."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics import MeanMetric

from dex.batch import to_unit
from dex.metrics.pictures import psnr


class AnimatorEvaluation(nn.Module):
    """Sums over a validation set; `compute` gives means. Every entry adds up over processes (torchmetrics states)."""

    def __init__(self) -> None:
        super().__init__()
        self.error, self.psnr, self.copy_psnr = MeanMetric(), MeanMetric(), MeanMetric()

    def update_error(self, error: Float[Tensor, ""], samples: int) -> None:
        self.error.update(error, samples)

    def update_pictures(
        self, fake: Float[Tensor, "B K 3 H W"], real: Float[Tensor, "B K 3 H W"], source: Float[Tensor, "B 3 H W"]
    ) -> None:
        """Drawn frames and, for comparison, the source itself against the truth."""
        self.psnr.update(psnr(to_unit(fake), to_unit(real)))
        self.copy_psnr.update(psnr(to_unit(source[:, None].expand_as(real)), to_unit(real)))

    def compute(self) -> dict[str, Tensor]:
        """By tag. A validation that draws no frames has an error only."""
        out = {"denoising_error": self.error.compute()}
        if self.psnr.update_called:
            out |= {"psnr": self.psnr.compute(), "copy_psnr": self.copy_psnr.compute()}
        return out

    def reset(self) -> None:
        for metric in (self.error, self.psnr, self.copy_psnr):
            metric.reset()


def report(figures: Mapping[str, float]) -> str:
    """The figures of a validation, as logged under val/, in a few lines for a terminal."""
    lines = [f"On the validation set:\n  denoising error              {figures['val/denoising_error']:.4f}"]
    if "val/psnr" in figures:
        lines.append(f"  PSNR of drawn frames         {figures['val/psnr']:.2f} dB")
        lines.append(f"  PSNR of copying the source   {figures['val/copy_psnr']:.2f} dB")
    return "\n".join(lines)
