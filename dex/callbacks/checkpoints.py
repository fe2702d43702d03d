"""When a run is saved: every so many steps, at its end, and when the machine is about to be taken away."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from dex import checkpoint
from dex.batch import Batch

# What Slurm's --signal sends ahead of a time limit or preemption, what `scancel` and most others send, and Ctrl-C.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818  # no error
    """A signal asked the run to end; its state is saved."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step
        super().__init__(f"{signal.Signals(signum).name} at step {step}")


class Checkpoints(Checkpoint):
    """Writes `folder`/step-N every `every_n_steps` steps and keeps the newest `keep`; `last` links to the newest.

    A step is saved when the next batch arrives, after its validation and all its logs: a resumed run then repeats
    nothing. The signals only set a flag. Ranks agree on it every `agree_every_n_steps` steps, between two batches, save
    together, and leave by `Preempted`. A full disk stops nothing: the older checkpoint stays, and a warning says so.
    """

    def __init__(
        self, folder: str = "", every_n_steps: int = 1000, keep: int = 2, agree_every_n_steps: int = 5
    ) -> None:
        """
        Args:
            folder: where to; the run's `checkpoints` if empty.
            every_n_steps: between two checkpoints.
            keep: how many stay on disk.
            agree_every_n_steps: between two questions to all ranks whether one of them got a signal. Each costs a
                GPU the time in which its queue runs empty.
        """
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("keep", keep),
            ("agree_every_n_steps", agree_every_n_steps),
        ):
            if value < 1:
                raise ValueError(f"checkpoint.{name} is {value}, need at least 1")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self.agree_every_n_steps = agree_every_n_steps
        self.settings: Mapping[str, Any] = {}  # written into each checkpoint
        self.resume: Path | None = None  # checkpoint to begin with
        self.received: int | None = None
        self.saved: int | None = None  # the step of the newest checkpoint
        self._batches: int | None = None  # trained before the resumption, until the first batch after it

    def listen(self) -> None:
        """From now on the signals are only remembered."""
        for signum in SIGNALS:
            if (signum, signal.getsignal(signum)) != (signal.SIGINT, signal.SIG_IGN):  # in a shell's background
                signal.signal(signum, self.remember)

    def remember(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        if signum == signal.SIGINT:
            os.write(2, b"\nCtrl-C: saves before the next step, and ends; once more ends now\n")  # print may be at work
            signal.signal(signum, signal.SIG_DFL)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.resume is not None:
            checkpoint.load(trainer, self.resume)
            self.saved = trainer.global_step
            self._batches = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if signal.getsignal(signal.SIGUSR1) == self.remember:
            self.listen()  # again: Lightning has put a handler of its own before SIGTERM's, which talks to other ranks

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._batches is not None:
            # Where validation had just run, Lightning counts a batch more, and logs would come a step late.
            trainer.fit_loop.epoch_loop._batches_that_stepped, self._batches = self._batches, None
        step = trainer.global_step
        ended = self.ended(trainer, step)
        if ended or (step and step % self.every_n_steps == 0):
            self.save(trainer)
        if ended:
            raise Preempted(ended, step)

    def ended(self, trainer: L.Trainer, step: int) -> int | None:
        """The signal by which any rank was asked to end, the same on all ranks; None at most steps."""
        if trainer.world_size > 1:
            if step % self.agree_every_n_steps:
                return None
            on_any = trainer.strategy.reduce_boolean_decision
            received = self.received  # it may change between the questions
            if not on_any(received is not None, all=False):
                return None
            return next(signum for signum in SIGNALS if on_any(received == signum, all=False))
        return self.received

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Raises nothing where the disk is full: training goes on, the checkpoint before stays."""
        step = trainer.global_step
        if step == self.saved:
            return
        path = checkpoint.step_folder(self.folder, step)
        try:
            checkpoint.save(trainer, path, self.settings)
        except OSError as error:
            if trainer.is_global_zero:
                kept = f"step {self.saved} stays the newest" if self.saved is not None else "there is none yet"
                warnings.warn(f"step {step}: the checkpoint was not saved ({error}); {kept}", stacklevel=2)
            return
        self.saved = step
        if trainer.is_global_zero:
            # Later steps are there where `last` was put back to an older one: they are no reason to delete this one.
            for old in [there for there in checkpoint.complete(self.folder) if there <= path][: -self.keep]:
                checkpoint.remove(old)
