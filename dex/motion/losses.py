"""The losses of stage 1 (DeX-Portrait, sec. 3.1): L = 10·L1 + L_lpips + 100·L_clpips + L_adv, and the pose anchor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lpips
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dex import weights
from dex.batch import EYES, FACE, MOUTH
from dex.metrics.extractors.perceptual import load_lpips
from dex.pose import geodesic, split_pose

_BLENDSHAPE_DEVIATION = 0.25  # of one coefficient over frames, about

Perceptual = Literal["none", "vgg16", "stlpips_vgg", "stlpips_alex"]


@dataclass(frozen=True)
class LossWeights:
    """The paper's weights; what the paper does not have is off by default."""

    l1: float = 10.0
    lpips: float = 1.0
    clpips: float = 100.0  # the same on the facial region
    adversarial: float = 1.0
    adversarial_start: int = 0  # steps before the discriminator joins
    r1: float = 10.0  # γ of R1 (ours)
    r1_interval: int = 16
    # The anchors (ours): supervised by the shards' labels, decaying exponentially to `anchor_floor` of their weight.
    # Pose: paper. Expression: a linear read-out of e must tell the blendshapes, which gives the decoder a code that
    # says something long before reconstruction would teach it to; what else e says stays free.
    pose: float = 0.0
    expression: float = 0.0
    anchor_half_life: float = 20_000  # steps
    anchor_floor: float = 0.0
    # For runs without a perceptual network (ours): L1 also at 1/2, 1/4, 1/8 size, and again on face, eyes and mouth,
    # each as a mean over its own region, which gives small regions a say.
    multi_scale: float = 0.0
    region_face: float = 0.0
    region_eyes: float = 0.0
    region_mouth: float = 0.0
    # In place of L_clpips for the same runs (ours): what the expression encoder itself sees in the face of the output,
    # against what it sees in the target's. Pixels say little of an eyelid or a gaze; the encoder is anchored to tell.
    own_features: float = 0.0

    def __post_init__(self) -> None:
        if self.r1_interval < 1:
            raise ValueError(f"loss.r1_interval is {self.r1_interval}, need at least 1: every step; r1 0 is none")
        if not self.anchor_half_life > 0:
            raise ValueError(
                f"loss.anchor_half_life is {self.anchor_half_life}, need steps above 0; pose and expression 0 are none"
            )


# Of the losses on regions: first and last label.
_REGIONS = {"region_face": (FACE, MOUTH), "region_eyes": (EYES, EYES), "region_mouth": (MOUTH, MOUTH)}


def multi_scale_l1(fake: Float[Tensor, "N 3 H W"], real: Float[Tensor, "N 3 H W"], halvings: int = 3) -> Tensor:
    """Mean over scales 1/2, 1/4, … of the L1 between the pictures averaged down to them."""
    difference = fake - real
    total = torch.zeros((), device=fake.device)
    for _ in range(halvings):
        difference = F.avg_pool2d(difference, 2)
        total = total + difference.abs().mean()
    return total / halvings


def region_l1(
    fake: Float[Tensor, "N 3 H W"], real: Float[Tensor, "N 3 H W"], mask: Float[Tensor, "N H W"]
) -> Float[Tensor, ""]:
    """Mean |fake - real| over the masked pixels of the whole batch; 0 where the mask is empty."""
    return masked_mean((fake - real).abs().mean(dim=1), mask)


def masked_mean(values: Float[Tensor, "N H W"], mask: Float[Tensor, "N H W"]) -> Float[Tensor, ""]:
    """Over the masked places of the whole batch; 0 where the mask is empty."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def region_mask(region: Int[Tensor, "N H W"], *, lowest: int, highest: int = MOUTH) -> Float[Tensor, "N H W"]:
    """1 where the label lies in [lowest, highest], dilated by one pixel: an edge is half of a feature."""
    mask = ((region >= lowest) & (region <= highest)).float()
    return F.max_pool2d(mask[:, None], 3, stride=1, padding=1)[:, 0]


def region_masks(weight: object, region: Int[Tensor, "N H W"]) -> dict[str, Float[Tensor, "N H W"]]:
    """Of the regions whose loss has a weight among either stage's, by the name of the weight."""
    return {
        name: region_mask(region, lowest=lowest, highest=highest)
        for name, (lowest, highest) in _REGIONS.items()
        if getattr(weight, name)
    }


def reconstruction_losses(
    fake: Float[Tensor, "N 3 H W"],
    real: Float[Tensor, "N 3 H W"],
    region: Int[Tensor, "N H W"],
    weight: LossWeights,
) -> dict[str, Tensor]:
    """The pixel losses that `weight` asks for, unweighted, by name."""
    losses = {"l1": F.l1_loss(fake, real)}
    if weight.multi_scale:
        losses["multi_scale"] = multi_scale_l1(fake, real)
    return losses | {name: region_l1(fake, real, mask) for name, mask in region_masks(weight, region).items()}


def own_feature_loss(
    encoder: nn.Module, fake: Float[Tensor, "N 3 H W"], real: Float[Tensor, "N 3 H W"]
) -> Float[Tensor, ""]:
    """What the expression encoder sees on its way in faces of outputs, against what it sees in those of targets."""
    with torch.no_grad():
        wanted = encoder(real, layers=True)
    return feature_loss(encoder(fake, layers=True), wanted)


def feature_loss(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Sum over layers of the mean distance in units of the layer's deviation in a real picture; mean over pictures."""
    terms = []
    for a, b in zip(fake, real, strict=True):
        deviation = b.flatten(1).std(dim=1).clamp_min(1e-6)
        terms.append(((a - b).abs().flatten(1).mean(dim=1) / deviation).mean())
    return torch.stack(terms).sum()


class PerceptualLoss(nn.Module):
    """LPIPS over the whole picture, and over the facial region M: ‖M ⊙ (VGG_i(I_d) - VGG_i(Î))‖².

    `vgg16` is the paper's: VGG16's features through the `lpips` package, M resized to each layer. The `stlpips_*`
    networks (Ghildyal & Liu 2022) come as TorchScript that returns one distance for a pair of pictures; there M is
    applied to the pictures. Frozen; kept out of the trainer's parameters and checkpoints by its owner.
    """

    def __init__(self, name: Perceptual) -> None:
        """Raises `WeightsError` where the network's file is missing or is not the registered one."""
        super().__init__()
        self.name = name
        self.network: Any  # LPIPS, or a script module
        if name == "vgg16":
            self.network = load_lpips()
        else:
            self.network = weights.load_torchscript(name)
        self.requires_grad_(False).eval()

    def forward(
        self, fake: Float[Tensor, "N 3 H W"], real: Float[Tensor, "N 3 H W"], mask: Float[Tensor, "N H W"]
    ) -> tuple[Tensor, Tensor]:
        """(L_lpips, L_clpips) of pictures in [-1, 1], means over the batch."""
        mask = mask[:, None]
        if self.name != "vgg16":
            return self.network(fake, real).mean(), self.network(fake * mask, real * mask).mean()
        whole = masked = torch.zeros((), device=fake.device)
        for distance in self.layer_distances(fake, real):
            whole = whole + distance.mean()
            masked = masked + (distance * F.interpolate(mask, size=distance.shape[-2:], mode="area")).mean()
        return whole, masked

    def layer_distances(self, fake: Tensor, real: Tensor) -> list[Float[Tensor, "N 1 h w"]]:
        """Squared, channel-weighted distances of the unit-normalised features of each layer (Zhang et al. 2018)."""
        network = self.network
        pair = [network.net(network.scaling_layer(picture)) for picture in (fake, real)]
        distances = []
        for layer, linear in zip(zip(*pair, strict=True), network.lins, strict=True):
            a, b = (lpips.normalize_tensor(feature) for feature in layer)
            distances.append(linear((a - b) ** 2))
        return distances


def pose_loss(
    predicted: Float[Tensor, "N 3 4"], label: Float[Tensor, "N 3 4"], weight: Float[Tensor, "N"]
) -> Float[Tensor, ""]:
    """L_pose = geodesic(R, R_label) + |t - t_label| + |log s - log s_label|, a mean weighted by the labels' confidence.

    Radians, normalised units and nats respectively: all of the order 0.1 for a plausible error.
    """
    (r1, t1, s1), (r2, t2, s2) = split_pose(predicted), split_pose(label)
    error = geodesic(r1, r2) + (t1 - t2).abs().sum(-1) + (s1.log() - s2.log()).abs()
    return (error * weight).sum() / weight.sum().clamp_min(1e-6)


def expression_loss(predicted: Float[Tensor, "*b 51"], label: Float[Tensor, "*b 51"]) -> Float[Tensor, ""]:
    """Mean squared error over the blendshapes that are known (not NaN), in units of their usual deviation."""
    known = ~label.isnan()
    error = (predicted - label.nan_to_num()) / _BLENDSHAPE_DEVIATION
    return (error.square() * known).sum() / known.sum().clamp_min(1)


def anchor_factor(weight: LossWeights, step: int) -> float:
    """Of both anchors' weights at a step: halves every `anchor_half_life`, never below `anchor_floor`."""
    return max(weight.anchor_floor, 0.5 ** (step / weight.anchor_half_life))


def generator_adversarial(fake_logits: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """softplus(-D(Î)), the non-saturating loss."""
    return F.softplus(-fake_logits).mean()


def discriminator_adversarial(fake_logits: Float[Tensor, "N"], real_logits: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """softplus(D(Î)) + softplus(-D(I_d))."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def r1_penalty(discriminator: nn.Module, real: Float[Tensor, "N 3 H W"]) -> Float[Tensor, ""]:
    """½ E‖∇D(I_d)‖² (Mescheder et al. 2018), to be multiplied by γ and by the interval of the lazy update."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return 0.5 * gradient.square().sum(dim=(1, 2, 3)).mean()
