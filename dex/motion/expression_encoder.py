"""Expression encoder: picture → expression code e, a vector too narrow to hold an identity."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dex.motion.config import MotionConfig
from dex.motion.layers import ResBlock2d, group_norm


class Hourglass(nn.Module):
    """Down and up again with skips, recursively (Newell et al. 2016); `depth` halvings."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.skip = ResBlock2d(channels, channels)
        self.down = ResBlock2d(channels, channels, stride=2)
        self.inner = Hourglass(channels, depth - 1) if depth > 1 else ResBlock2d(channels, channels)
        self.up = ResBlock2d(channels, channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        inner = self.up(self.inner(self.down(x)))
        return self.skip(x) + F.interpolate(inner, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ExpressionEncoder(nn.Module):
    """I_d → e ∈ R^512: FAN (Bulat & Tzimiropoulos 2017), stacked hourglasses pooled to a vector (sec. 3.1).

    The pooling is over the whole map **(ours)**: which eye or lip moved must be in the channels, where it stood in the
    picture is lost, and that is pose.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        width = config.fan_width
        halvings = (config.size // config.fan_size).bit_length() - 1
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 7, stride=2, padding=3),
            *(ResBlock2d(width // 4, width // 4, stride=2) for _ in range(halvings - 1)),
            ResBlock2d(width // 4, width // 2),
            ResBlock2d(width // 2, width),
        )
        self.hourglasses = nn.ModuleList(Hourglass(width, config.fan_depth) for _ in range(config.fan_stacks))
        self.pool = nn.Sequential(
            ResBlock2d(width, width, stride=2),
            ResBlock2d(width, width, stride=2),
            group_norm(width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.linear = nn.Linear(width, config.expression_dim)

    def forward(self, picture: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E"]:
        feature = self.stem(picture)
        for hourglass in self.hourglasses:
            feature = feature + hourglass(feature)
        return self.linear(self.pool(feature))
