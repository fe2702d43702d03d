"""The generator side of stage 1: encoders, warp and decoder, wired as in DeX-Portrait, fig. 3."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dex.motion.appearance import AppearanceEncoder, FlattenCNN, StyleEncoder
from dex.motion.config import MotionConfig
from dex.motion.decoder import Decoder
from dex.motion.expression_encoder import ExpressionEncoder
from dex.motion.head_surface import warp_shell
from dex.motion.pose_encoder import PoseEncoder
from dex.pose import face_view, warp_volume


@dataclass
class Generated:
    """A batch's output beside the poses and codes it was made with."""

    fake: Float[Tensor, "B K 3 H W"]
    source_pose: Float[Tensor, "B 3 4"]
    driving_pose: Float[Tensor, "B K 3 4"]
    expression: Float[Tensor, "B K E"]


def expression_input(
    picture: Float[Tensor, "N 3 H W"], pose: Float[Tensor, "N 3 4"], config: MotionConfig
) -> Float[Tensor, "N 3 H W"]:
    """What the expression encoder sees: the face as P brings it upright; for a joint code the whole picture."""
    return picture if config.joint_code else face_view(picture, pose)


def read_motion(
    pose_encoder: nn.Module, expression_encoder: nn.Module, picture: Float[Tensor, "N 3 H W"], config: MotionConfig
) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
    """P and e of pictures."""
    pose = pose_encoder(picture)
    return pose, expression_encoder(expression_input(picture, pose, config))


class MotionGenerator(nn.Module):
    """(I_s, P_s, P_d, e) → Î, and the two encoders that find P and e in pictures."""

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        self.appearance_encoder = AppearanceEncoder(config)
        self.style_encoder = StyleEncoder(config)
        self.pose_encoder = PoseEncoder(config)
        self.expression_encoder = ExpressionEncoder(config)
        self.flatten = FlattenCNN(config)
        self.decoder = Decoder(config)

    def read_motion(self, picture: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
        """P and e of pictures."""
        return read_motion(self.pose_encoder, self.expression_encoder, picture, self.config)

    def forward(
        self,
        source: Float[Tensor, "B 3 H W"],
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        expression: Float[Tensor, "B K E"],
    ) -> Float[Tensor, "B K 3 H W"]:
        """K pictures of each source: its appearance is encoded once, whatever K is."""
        feature = self.appearance_encoder(source, source_pose)
        style = self.style_encoder(feature)
        return self.animate(feature, style, source_pose, driving_pose, expression)

    def animate(
        self,
        feature: Float[Tensor, "B C D h w"],
        style: Float[Tensor, "B S"],
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        expression: Float[Tensor, "B K E"],
    ) -> Float[Tensor, "B K 3 H W"]:
        """The part that runs once a driving frame, given what was read from the source."""
        drivers = driving_pose.shape[1]
        feature, source_pose = (part.repeat_interleave(drivers, dim=0) for part in (feature, source_pose))
        driving_pose = source_pose if self.config.joint_code else driving_pose.flatten(0, 1)
        warped = self.warp(feature, source_pose, driving_pose)
        code = torch.cat([style.repeat_interleave(drivers, dim=0), expression.flatten(0, 1)], dim=1)
        return self.decoder(self.flatten(feature, warped, driving_pose), code).unflatten(0, (-1, drivers))

    def warp(
        self, feature: Float[Tensor, "N C D h w"], source: Float[Tensor, "N 3 4"], driving: Float[Tensor, "N 3 4"]
    ) -> Float[Tensor, "N C D h w"]:
        """f_w."""
        if self.config.shell:
            return warp_shell(feature, source, driving, self.config.shell)
        return warp_volume(feature, source, driving)
