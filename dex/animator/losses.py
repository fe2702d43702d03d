"""What stage 2 learns by: the denoising error and what is added to it for training from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dex.motion.losses import masked_mean, region_masks

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class DiffusionLoss:
    """‖ε − ε_θ(z_t, c; t)‖², and how often conditions are left out so that guidance has something to compare with.

    `prediction` (in the words of diffusers' schedulers) "v_prediction" has the network estimate v = α ε − σ z_0 instead
    (Salimans & Ho 2022, sec. 4), "sample" z_0 itself: the one way for latents of many channels, since a narrow network
    cannot hand their noise through (Li & He 2025, arXiv:2511.13720) **(ours)**.
    """

    prediction: Prediction = "epsilon"
    schedule: Literal["stable_diffusion", "zero_terminal_snr"] = "stable_diffusion"  # see `dex.animator.sampler`
    min_snr: float = 0.0  # γ of min-SNR weighting (Hang et al. 2023), usually 5; 0: none, as in the paper
    drop_expression: float = 0.1  # share of samples without expression (ours)
    drop_all: float = 0.05  # share of samples without pose, reference and expression (ours)
    # For training from nothing (ours). "rising": a time step is drawn the more often the more noise it has, which is
    # where pose and expression must be told by the conditions since z_t does not show them.
    timesteps: Literal["uniform", "rising"] = "uniform"
    # The error again on face, eyes and mouth, each as a mean over its own region, as in stage 1's loss.
    region_face: float = 0.0
    region_eyes: float = 0.0
    region_mouth: float = 0.0
    # What the expression encoder sees in the face of ẑ_0, decoded, against what it sees in the target's: as in stage 1.
    own_features: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule == "zero_terminal_snr" and self.prediction == "epsilon":
            raise ValueError(
                "loss: schedule zero_terminal_snr with prediction epsilon: at its end ε says nothing of the picture; "
                "set loss.prediction to v_prediction or sample"
            )
        if self.own_features and self.prediction != "sample":
            raise ValueError(
                f"loss: own_features looks at the network's estimate of the picture, and prediction is "
                f"{self.prediction}; set loss.prediction to sample"
            )


def wanted(
    prediction: Prediction,
    noising: Any,
    latent: Float[Tensor, "B F c h w"],
    noise: Float[Tensor, "B F c h w"],
    t: Int[Tensor, "B"],
) -> Float[Tensor, "B F c h w"]:
    """What the network is to estimate: ε, v or z_0. `noising`: a scheduler of diffusers."""
    match prediction:
        case "epsilon":
            return noise
        case "v_prediction":
            return noising.get_velocity(latent, noise, t)
        case "sample":
            return latent


def snr_weight(loss: DiffusionLoss, alphas_cumprod: Float[Tensor, "T"], t: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """min(SNR, γ) for z_0, / SNR for ε, / (SNR + 1) for v (Hang et al. 2023), of ᾱ at t; 1 with γ = 0."""
    if not loss.min_snr:
        return torch.ones_like(t, dtype=torch.float32)
    alpha = alphas_cumprod.to(t.device)[t]
    snr = alpha / (1 - alpha)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[loss.prediction]
    return snr.clamp_max(loss.min_snr) / divisor


def region_errors(
    loss: DiffusionLoss, error: Float[Tensor, "B F c h w"], region: Int[Tensor, "B F H W"]
) -> dict[str, Float[Tensor, ""]]:
    """Means of a squared error over the regions that the loss names, by its names. A latent's cell belongs to a
    region as much as its pixels do."""
    cells, (height, width) = error.mean(dim=2).flatten(0, 1), error.shape[-2:]
    return {
        name: masked_mean(cells, F.adaptive_avg_pool2d(mask, (height, width)))
        for name, mask in region_masks(loss, region.flatten(0, 1)).items()
    }
