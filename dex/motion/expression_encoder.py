"""Expression encoder: picture → expression code e, a vector too narrow to hold an identity."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dex.motion.config import MotionConfig
from dex.motion.layers import ResBlock2d, group_norm

_GRID = 4


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

    It is shown the face upright, in the middle and at one size (`dex.pose.face_view`), and pools by strided blocks to a
    grid of 4×4 **(both ours)**: a jaw's place in a whole picture says more of where the head is than of how far the
    mouth is open, and an average over the map forgets it.
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
        steps = max(1, (config.fan_size // _GRID).bit_length() - 1)
        grid = config.fan_size >> steps
        self.pool = nn.Sequential(
            *(ResBlock2d(width if i == 0 else 2 * width, 2 * width, stride=2) for i in range(steps)),
            group_norm(2 * width),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.linear = nn.Linear(2 * width * grid**2, config.expression_dim)

    def forward(
        self, picture: Float[Tensor, "B 3 H W"], layers: bool = False
    ) -> Float[Tensor, "B E"] | list[Float[Tensor, "B ..."]]:
        """e; with `layers` what is seen on the way as well: after the stem, after the hourglasses, pooled, and e."""
        stem = feature = self.stem(picture)
        for hourglass in self.hourglasses:
            feature = feature + hourglass(feature)
        pooled = self.pool(feature)
        code = self.linear(pooled)
        return [stem, feature, pooled, code] if layers else code
