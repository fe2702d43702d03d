"""A line a validation for logs, where no progress bar can be drawn."""

from __future__ import annotations

import sys
import time

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn


class LogLines(L.Callback):
    """Prints step, seconds and validation's figures where stdout is a file or a pipe, as under SLURM."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (
            sys.stdout.isatty()
            or not trainer.is_global_zero
            or trainer.state.fn != TrainerFn.FITTING
            or trainer.sanity_checking
        ):
            return
        known = {name.removeprefix("val/"): value for name, value in trainer.callback_metrics.items() if "val/" in name}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in known.items())
        seconds = time.perf_counter() - self.started
        print(f"step {trainer.global_step} of {trainer.max_steps}, {seconds:.0f} s: {figures}", flush=True)
