"""Pictures in TensorBoard while a module learns: what it shows of itself by its method `pictures`."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from dex.batch import Batch
from dex.sharding import in_use


class Preview(L.Callback):
    """Every `every_n_steps` steps the module's pictures, made by its moving average.

    They show the first batch of validation, the same faces at every step, or where there is no validation the batch
    just trained on. Nothing here draws random numbers: a run with previews has the losses of a run without.
    """

    def __init__(self, every_n_steps: int = 1000, samples: int = 6) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("samples", samples)):
            if value < 1:
                raise ValueError(f"preview.{name} is {value}, need at least 1")
        self.every_n_steps, self.samples = every_n_steps, samples
        self.batch: Batch | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        module: Any = pl_module  # a MotionTrainer or an Animator: Lightning's class knows no `pictures`
        with in_use(pl_module):
            pictures = module.pictures(self.batch or batch, self.samples)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Numbered as Lightning numbers a step's figures: a continued run keeps those of its checkpoint.
                for tag, picture in pictures.items():
                    logger.experiment.add_image(tag, picture, step - 1)

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
