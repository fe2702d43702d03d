"""StyleGAN2's residual discriminator (Karras et al. 2020), co-trained with the generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dex.motion.config import MotionConfig


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a halving, with a linear shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 h w"]:
        hidden = F.leaky_relu(self.conv1(x), 0.2)
        hidden = F.leaky_relu(self.conv2(F.avg_pool2d(hidden, 2)), 0.2)
        return (hidden + self.shortcut(F.avg_pool2d(x, 2))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Picture → realness logit, one a sample. The last block sees the spread over the batch (minibatch std)."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        sizes = [2**i for i in range(3, config.size.bit_length())]
        channels = {
            r: min(config.discriminator_cap, config.discriminator_width * config.size // r) for r in [4, *sizes]
        }
        self.stem = nn.Conv2d(3, channels[config.size], 1)
        self.blocks = nn.Sequential(*(DiscriminatorBlock(channels[r], channels[r // 2]) for r in reversed(sizes)))
        self.last = nn.Conv2d(channels[4] + 1, channels[4], 3, padding=1)
        self.hidden = nn.Linear(channels[4] * 16, channels[4])
        self.logit = nn.Linear(channels[4], 1)

    def forward(self, picture: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        x = self.blocks(F.leaky_relu(self.stem(picture), 0.2))
        x = F.leaky_relu(self.last(torch.cat([x, minibatch_std(x)], dim=1)), 0.2)
        return self.logit(F.leaky_relu(self.hidden(x.flatten(1)), 0.2)).squeeze(1)


def minibatch_std(x: Float[Tensor, "B C h w"], group: int = 4) -> Float[Tensor, "B 1 h w"]:
    """Mean standard deviation inside groups of at most `group` samples, as one constant map a sample."""
    batch = x.shape[0]
    size = next(g for g in range(min(group, batch), 0, -1) if batch % g == 0)
    grouped = x.float().unflatten(0, (size, -1))
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return std.repeat(size)[:, None, None, None].expand(-1, 1, *x.shape[-2:]).to(x.dtype)
