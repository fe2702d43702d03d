"""Appearance encoder: source picture → 3D feature volume, and what is read from it without pose."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dex.motion.config import MotionConfig
from dex.motion.head_surface import CHANNELS, coordinates
from dex.motion.layers import ResBlock2d, ResBlock3d


class AppearanceEncoder(nn.Module):
    """I_s → f: 2D CNN down to the volume's size, channels reshaped to depth, 3D residual blocks (sec. 3.1).

    With `shell`, f's depth is measured from the head's front, for which P_s is needed.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        halvings = (config.size // config.volume_size).bit_length() - 1
        widths = [config.appearance_width * 2**i for i in range(halvings + 1)]
        flat = config.volume_channels * config.volume_depth
        self.depth, self.size = config.volume_depth, config.volume_size
        self.stem = nn.Conv2d(3, widths[0], 7, padding=3)
        self.down = nn.Sequential(
            *(ResBlock2d(a, b, stride=2) for a, b in itertools.pairwise(widths)),
        )
        # No normalisation here: over a whole picture it would take the absolute colours out.
        self.to_volume = nn.Conv2d(widths[-1], flat, 1)
        # The raw pixels of each cell as well **(ours)**: what the halvings average away is there from the first step.
        self.unshuffle = nn.PixelUnshuffle(2**halvings)
        self.pixels_to_volume = nn.Conv2d(3 * 4**halvings, flat, 1)
        self.place = nn.Conv2d(CHANNELS, flat, 1) if config.shell else None
        self.blocks = nn.Sequential(
            *(ResBlock3d(config.volume_channels, config.volume_channels) for _ in range(config.appearance_blocks))
        )

    def forward(
        self, source: Float[Tensor, "B 3 H W"], source_pose: Float[Tensor, "B 3 4"]
    ) -> Float[Tensor, "B C D h w"]:
        flat = self.to_volume(self.down(self.stem(source))) + self.pixels_to_volume(self.unshuffle(source))
        if self.place is not None:
            flat = flat + self.place(coordinates(source_pose, self.size))
        return self.blocks(flat.unflatten(1, (-1, self.depth)))


class StyleEncoder(nn.Module):
    """f → 5 convolutions → flatten → linear → style code: what the whole face looks like (sec. 3.1).

    Each of the five halves the map until it is 2×2 **(strides ours)**.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        channels, size = config.volume_channels * config.volume_depth, config.volume_size
        layers: list[nn.Module] = []
        for _ in range(5):
            stride = 2 if size > 2 else 1
            layers += [nn.Conv2d(channels, channels, 3, stride, 1), nn.LeakyReLU(0.2)]
            size //= stride
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * size * size, config.style_dim)

    def forward(self, feature: Float[Tensor, "B C D h w"]) -> Float[Tensor, "B S"]:
        return self.linear(self.convolutions(feature.flatten(1, 2)).flatten(1))


class FlattenCNN(nn.Module):
    """concat(f, f_w) → ResBlock3D, at half the size → depth flattened into channels: 512×32×32 in the paper's size."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.block = ResBlock3d(
            2 * config.volume_channels, config.volume_channels, stride=config.volume_size // config.middle_size
        )
        self.size = config.middle_size
        self.place = nn.Conv2d(CHANNELS, config.volume_channels * config.volume_depth, 1) if config.shell else None

    def forward(
        self,
        feature: Float[Tensor, "B C D h w"],
        warped: Float[Tensor, "B C D h w"],
        driving_pose: Float[Tensor, "B 3 4"],
    ) -> Float[Tensor, "B F h2 w2"]:
        flat = F.silu(self.block(torch.cat([feature, warped], dim=1)).flatten(1, 2))
        return flat if self.place is None else flat + self.place(coordinates(driving_pose, self.size))
