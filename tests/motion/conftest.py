"""A motion trainer small enough for tests: the real classes, narrow."""

from typing import Any

import lightning as L
import pytest

from dex.data.synthetic.module import SyntheticHeads
from dex.motion.config import MotionConfig
from dex.motion.losses import LossWeights
from dex.motion.trainer import MotionTrainer, Optimisation

TINY = MotionConfig(
    size=32,
    volume_channels=4,
    volume_depth=4,
    volume_size=8,
    middle_size=8,
    appearance_width=8,
    appearance_blocks=1,
    pose_dims=(8, 16),
    pose_depths=(1, 1),
    pose_layer_scale=1.0,
    fan_size=8,
    fan_width=16,
    fan_stacks=1,
    fan_depth=2,
    expression_dim=8,
    style_dim=16,
    decoder_width=8,
    decoder_cap=32,
    discriminator_width=8,
    discriminator_cap=32,
)
PIXEL_LOSSES = LossWeights(
    l1=1,
    multi_scale=1,
    region_face=1,
    region_eyes=1,
    region_mouth=1,
    pose=0.5,
    expression=0.5,
    adversarial=0.1,
    r1_interval=4,
)


@pytest.fixture
def tiny() -> MotionConfig:
    return TINY


class Steady(L.Callback):
    """Sets Adam's eps. By its own, a gradient that is nothing but rounding, another on each processor, moves its weight
    by a whole step."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["eps"] = self.eps


def tiny_trainer(**changes: Any) -> MotionTrainer:
    settings: dict[str, Any] = {
        "network": TINY,
        "loss": PIXEL_LOSSES,
        "optimisation": Optimisation(learning_rate=2e-3, discriminator_learning_rate=2e-3, teacher_poses=5),
        "perceptual": "none",
    }
    return MotionTrainer(**settings | changes)


def tiny_data(**changes: Any) -> SyntheticHeads:
    settings: dict[str, Any] = {"size": 32, "batch_size": 2, "drivers": 2, "workers": 0, "val_batches": 1}
    return SyntheticHeads(**settings | changes)
