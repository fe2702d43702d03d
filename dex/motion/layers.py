"""Building blocks shared by the networks of stage 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of at least four channels, at most 32 groups.

    Group instead of batch statistics: the four driving frames of a batch are of one subject, and an average of weights
    (EMA) needs no re-estimated statistics.
    """
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class ResBlock2d(nn.Module):
    """norm-act-conv twice with a shortcut; `stride` 2 halves the picture by average pooling on both paths."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        hidden = self.pool(self.conv1(F.silu(self.norm1(x))))
        return self.shortcut(self.pool(x)) + self.conv2(F.silu(self.norm2(hidden)))


class ResBlock3d(nn.Module):
    """The same on a volume; `stride` halves height and width, never depth."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.pool = nn.AvgPool3d((1, stride, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B C2 D H2 W2"]:
        hidden = self.pool(self.conv1(F.silu(self.norm1(x))))
        return self.shortcut(self.pool(x)) + self.conv2(F.silu(self.norm2(hidden)))


class StyleConv(nn.Module):
    """Modulated convolution, bias, leaky ReLU (StyleGAN2, Karras et al. 2020, sec. 2.2).

    The style scales the input channels and the output is divided by the norm that its weights then have. Scaling
    activations instead of weights gives the same numbers without a weight tensor for each sample. No noise input: a
    reconstruction has nothing to be random about **(ours)**.

    `scale` 2 is a transposed convolution, as in StyleGAN2: each of the four output phases has weights of its own,
    without which fine detail cannot be put in its place. Its kernel is 4, which covers all phases evenly and needs no
    blur **(ours)**. `scale` 0.5 averages before the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        kernel: int = 3,
        scale: float = 1.0,
        demodulate: bool = True,
        activate: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.demodulate, self.activate = scale, demodulate, activate
        if scale > 1:
            kernel = 4
        # At their natural size, not StyleGAN2's unit size with a run-time gain: that is made for a learning rate of
        # 2e-3 over a million steps and learns an order of magnitude too slowly here.
        fan_in = in_channels * kernel**2 / max(1, scale) ** 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = nn.Linear(style_dim, in_channels)
        nn.init.ones_(self.affine.bias)

    def forward(self, x: Float[Tensor, "B C H W"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B C2 H2 W2"]:
        if self.scale < 1:
            x = F.avg_pool2d(x, round(1 / self.scale))
        modulation = self.affine(style)
        x = x * modulation[:, :, None, None].to(x.dtype)
        if self.scale > 1:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2, padding=1)
        else:
            x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        gain = math.sqrt(2) if self.activate else 1.0  # of the activation, which may as well come before it
        bias = gain * self.bias[:, None, None].to(x.dtype)
        if self.demodulate:
            # An output pixel of the transposed convolution sees a quarter of the kernel's taps.
            squared_weight = self.weight.square().sum(dim=(2, 3)) / max(1.0, self.scale) ** 2
            squared_norm = modulation.float().square() @ squared_weight.T
            scale = gain * torch.rsqrt(squared_norm + 1e-8)[:, :, None, None]
            x = torch.addcmul(bias, x, scale.to(x.dtype))
        else:
            x = gain * x + bias
        return F.leaky_relu(x, 0.2) if self.activate else x
