"""Pose encoder: picture → head pose P = [sR | t]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from dex.motion.config import MotionConfig
from dex.motion.layers import ResBlock2d
from dex.pose import full_precision, make_pose, rotation_from_6d

# Of the last feature map this grid is kept: the position of the head is part of the answer, and an average over the
# whole map would leave it to the borders' padding.
_GRID = 4


class PoseEncoder(nn.Module):
    """ConvNeXt; the head regresses a 6D rotation, t_x, t_y and log s, near the identity at first (sec. 3.1).

    ConvNeXt's stem cuts the picture into 4×4 patches, which a short run on small pictures does not get over; a stem of
    strided convolutions (Xiao et al. 2021) does **(ours, `pose_stem`)**.
    """

    identity: Tensor  # (6,), R = 1

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        following: list[int | None] = [*config.pose_dims[1:], None]
        blocks = [
            CNBlockConfig(dim, after, depth)
            for dim, after, depth in zip(config.pose_dims, following, config.pose_depths, strict=True)
        ]
        self.features = ConvNeXt(blocks, layer_scale=config.pose_layer_scale, num_classes=1).features
        if config.pose_stem == "convolutions":
            width = config.pose_dims[0]
            self.features[0] = nn.Sequential(
                nn.Conv2d(3, width // 2, 5, stride=2, padding=2), ResBlock2d(width // 2, width, stride=2)
            )
        self.norm = nn.LayerNorm(config.pose_dims[-1])
        self.pool = nn.AdaptiveAvgPool2d(_GRID)
        self.head = nn.Linear(config.pose_dims[-1] * _GRID**2, 9)
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)

    def forward(self, picture: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 4"]:
        feature = self.norm(self.features(picture).movedim(1, -1)).movedim(-1, 1)
        with full_precision(picture):
            # Sharded, the weights come gathered in bf16.
            weight, bias = self.head.weight.float(), self.head.bias.float()
            out = F.linear(self.pool(feature.float()).flatten(1), weight, bias)
            rotation = rotation_from_6d(self.identity + out[:, :6])
            translation = torch.cat([out[:, 6:8], torch.zeros_like(out[:, :1])], dim=1)
            return make_pose(rotation, translation, out[:, 8].exp())
