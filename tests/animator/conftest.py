"""The animator small enough for tests: the real classes in Stable Diffusion 1.5's layout, narrow."""

import pytest
import torch
from torch import Tensor

from dex.animator.config import AnimatorConfig, stable_diffusion
from dex.animator.unet import AnimatorUNet, Conditions
from dex.pose import make_pose, matrix_from_euler

TINY_UNET = {
    **stable_diffusion(),
    "sample_size": 16,
    "block_out_channels": [16, 32, 64, 64],
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
TINY = AnimatorConfig(expression_dim=16, expression_tokens=4, frames=6, unet=TINY_UNET)
# The same on pixels: two levels, latents of 4×4 squares. Its codes are those of the motion tests' encoders.
TINY_PIXELS = AnimatorConfig(
    expression_dim=8,
    expression_tokens=2,
    frames=6,
    unet={
        "sample_size": 8,
        "in_channels": 48,
        "out_channels": 48,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
    },
)


def random_poses(*batch: int) -> Tensor:
    """Poses of a head that turns by up to some 20°, moves and comes closer, batch × 3 × 4."""
    yaw, pitch, roll = 0.3 * torch.randn(3, *batch)
    shift = torch.nn.functional.pad(0.1 * torch.randn(*batch, 2), (0, 1))
    return make_pose(matrix_from_euler(yaw, pitch, roll), shift, (0.2 * torch.randn(*batch)).exp())


def random_conditions(network: AnimatorUNet, samples: int = 2, frames: int = 3, size: int = 16) -> Conditions:
    """Of a random source and a random driver, with gradients through the reference where they are on."""
    config = network.config
    source = torch.randn(samples, config.latent_channels, size, size)
    expression = torch.randn(samples, frames, config.expression_dim)
    poses = random_poses(samples), random_poses(samples, frames)
    return Conditions(*poses, network.encode_reference(source, poses[0]), expression)


def away_from_zero(network: AnimatorUNet, scale: float = 0.05) -> AnimatorUNet:
    """Moves every parameter a little, as training does, so that the additions that start at zero act."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network


@pytest.fixture
def tiny() -> AnimatorConfig:
    return TINY


@pytest.fixture
def network(tiny: AnimatorConfig) -> AnimatorUNet:
    """At initialisation."""
    return AnimatorUNet(tiny)


@pytest.fixture
def moved(network: AnimatorUNet) -> AnimatorUNet:
    """Away from initialisation, where every condition counts."""
    return away_from_zero(network)
