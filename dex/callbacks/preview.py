"""Pictures in TensorBoard while the motion trainer learns: reenactments, and the pose × expression swap grid."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from dex.batch import Batch
from dex.motion.generator import MotionGenerator
from dex.motion.trainer import MotionTrainer
from dex.pose import warp_volume


class Preview(L.Callback):
    """Every `every_n_steps` steps two pictures made by the moving average.

    They show the first batch of validation, the same faces at every step, or where there is no validation the batch
    just trained on. Nothing here draws random numbers: a run with previews has the losses of a run without.
    """

    def __init__(self, every_n_steps: int = 1000, samples: int = 6) -> None:
        self.every_n_steps, self.samples = every_n_steps, samples
        self.batch: Batch | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        assert isinstance(pl_module, MotionTrainer)
        shown = self.batch or batch
        reenactments = reenactment_grid(pl_module, shown, self.samples)
        swaps = swap_grid(pl_module.average, shown)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("preview/source_driver_output_warped", reenactments, step)
                logger.experiment.add_image("preview/swap_grid_pose_by_expression", swaps, step)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.batch is None:
            self.batch = batch


@torch.no_grad()
def reenactment_grid(trainer: MotionTrainer, batch: Batch, samples: int) -> Float[Tensor, "3 H W"]:
    """Rows of source | pose driver | expression driver | output | truth | warped feature; values in [0, 1]."""
    made = trainer.reenact(batch)
    pose_view = batch.driving if batch.pose_view is None else batch.pose_view
    feature = trainer.average.appearance_encoder(batch.source)
    warped = feature_picture(warp_volume(feature, made.source_pose, made.driving_pose[:, 0]), batch.source.shape[-1])
    columns = [
        batch.source,
        pose_view[:, 0],
        batch.expression_view[:, 0],
        made.fake[:, 0],
        batch.driving[:, 0],
        warped,
    ]
    rows = torch.stack(columns, dim=1)[:samples].flatten(0, 1)
    return make_grid(to_unit(rows), nrow=len(columns))


@torch.no_grad()
def swap_grid(generator: MotionGenerator, batch: Batch) -> Float[Tensor, "3 H W"]:
    """One source; row i takes the pose of frame i (left column), column j the expression of frame j (top row)."""
    source, pose_frames, expression_frames = batch.source[:1], batch.driving[0], batch.expression_view[0]
    source_pose = generator.pose_encoder(source)
    poses, codes = generator.pose_encoder(pose_frames), generator.expression_encoder(expression_frames)
    n, m = len(poses), len(codes)
    driving_pose = poses.repeat_interleave(m, dim=0)[None]
    expression = codes.repeat(n, 1)[None]
    fake = generator(source, source_pose, driving_pose, expression)[0].unflatten(0, (n, m))
    header = torch.cat([source, expression_frames])[None]
    body = torch.cat([pose_frames[:, None], fake], dim=1)
    return make_grid(to_unit(torch.cat([header, body]).flatten(0, 1)), nrow=m + 1)


def to_unit(picture: Float[Tensor, "*b H W"]) -> Float[Tensor, "*b H W"]:
    return ((picture.float() + 1) / 2).clamp(0, 1)


def feature_picture(volume: Float[Tensor, "B C D H W"], size: int) -> Float[Tensor, "B 3 H W"]:
    """A feature volume as colours: its mean over depth on the three principal directions of its channels, [-1, 1]."""
    flat = volume.float().mean(dim=2)
    pixels = flat.movedim(1, -1).flatten(0, 2)
    centred = pixels - pixels.mean(dim=0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    colours = (centred @ directions[:, -3:]).unflatten(0, (flat.shape[0], *flat.shape[2:])).movedim(-1, 1)
    spread = colours.flatten(2).std(dim=-1).amax(dim=0)[:, None, None].clamp_min(1e-6)
    return torch.nn.functional.interpolate((colours / (2 * spread)).clamp(-1, 1), size=(size, size))
