"""Speed of training: step time, share of it spent waiting for data, samples a second, device memory."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from dex.batch import Batch


class Throughput(L.Callback):
    """Logs means over every `every_n_steps` steps; waiting is the time between two batches' training steps. What other
    callbacks do at the end of a step (previews, the monitor, checkpoints) is part of that step, validation is not.

    On a GPU steps are queued, so single times mean little; their mean is right because the queue is
    finite.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.ended = time.perf_counter()
        self.waited, self.samples = 0.0, 0
        self.first_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.waited += time.perf_counter() - self.ended
        self.samples += len(batch.key)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.ended = time.perf_counter()
        steps = trainer.global_step - self.first_step
        if steps < self.every_n_steps:
            return
        elapsed = self.ended - self.started
        figures = {
            "speed/step_seconds": elapsed / steps,
            "speed/data_wait_share": self.waited / elapsed,
            "speed/samples_per_second": self.samples * trainer.world_size / elapsed,
        }
        if pl_module.device.type == "cuda":
            figures["memory/gpu_gb"] = torch.cuda.max_memory_allocated(pl_module.device) / 1e9
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step - 1)  # as Lightning's own figures
        self.started, self.waited, self.samples, self.first_step = self.ended, 0.0, 0, trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Validation is neither training nor waiting for data.
        if trainer.sanity_checking or not hasattr(self, "ended"):
            return
        pause = time.perf_counter() - self.ended
        self.started, self.ended = self.started + pause, self.ended + pause
