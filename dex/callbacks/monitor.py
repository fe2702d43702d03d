"""How far pose and expression are apart while a module learns: figures, pictures and a verdict in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Shaped
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from dex.batch import Batch
from dex.cores import usable_cores
from dex.data.synthetic.motion import FramingName
from dex.data.talking_heads import TalkingHeads
from dex.metrics.extractors.faces import MediaPipeReader
from dex.reading.clips import LEAST_CLIPS, ClipReadings, measure_clips, rotated
from dex.reading.measure import MATRIX, Measured, encoded, measure, outputs, probes, with_leaks
from dex.reading.own import own_figures
from dex.reading.pictures import as_gif, film, influence_picture, swap_grid, tuples_picture
from dex.reading.regressor import taught
from dex.reading.tuples import Asked, Faces, Tuples, make_clip, make_faces, make_tuples
from dex.reading.verdict import alarms, no_alarm, verdict
from dex.sharding import in_use, sharded

TAG, CLIPS_TAG = "disentanglement", "disentanglement_clips"
FRAMES = 16  # of the film


class Monitor(L.Callback):
    """Every `every_n_steps` steps, and after the last of more, the fixed tuples of `dex.reading` through the moving
    average.

    Synthetic heads, whatever the training's data: their truth is exact. And real clips, where the training has some
    held out. One rank reads and logs; where weights are sharded all ranks draw, since all must. Nothing here touches
    the random numbers of training: a run with the monitor has the losses of a run without, and outputs that are no
    numbers are an alarm, not an error. docs/monitor.md says what the figures mean.
    """

    def __init__(
        self, every_n_steps: int = 10_000, tuples: int = 64, identities: int = 64, seed: int = 0, clips: bool = True
    ) -> None:
        """
        Args:
            every_n_steps: between two measurements.
            tuples: of a source and two drivers, three pictures each.
            identities: eight pictures of each are encoded for the probes.
            seed: of the tuples.
            clips: where the data have validation clips, measure on those too, by MediaPipe (`dex.reading.clips`).
        """
        for name, value, least in (
            ("every_n_steps", every_n_steps, 1),
            ("tuples", tuples, 2),
            ("identities", identities, 5),
        ):
            if value < least:
                raise ValueError(f"monitor.{name} is {value}, need at least {least}")
        self.every_n_steps, self.count, self.identities, self.seed = every_n_steps, tuples, identities, seed
        self.figures: dict[str, float] = {}  # the newest
        self.tuples: Tuples | None = None
        self.faces: Faces | None = None
        self.clip: Tensor | None = None
        self.own: dict[str, float] | None = None  # of the estimator, on these tuples
        self.real_clips = RealClips(tuples) if clips else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        taught()  # an estimator that is not the one on record is told now, not hours later on one rank

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps and not step == trainer.max_steps > self.every_n_steps:
            return
        if not (trainer.is_global_zero or sharded(pl_module)):
            return
        begun, size = time.perf_counter(), batch.source.shape[-1]
        # as in training, where it is known
        framing: FramingName = getattr(getattr(trainer, "datamodule", None), "framing", "wide")
        if self.tuples is None or self.faces is None or self.clip is None:
            self.tuples = make_tuples(self.count, size, self.seed, framing=framing)
            self.faces = make_faces(self.identities, 8, size, self.seed, framing=framing)
            self.clip = make_clip(FRAMES, size, self.seed, framing)
        found = self.measured(pl_module, self.tuples, self.faces)
        shown = self.shown(pl_module, self.tuples, self.clip)
        if found is not None:
            self.own = self.own or own_figures(self.tuples, self.count, size, framing, self.seed)
            self.report(trainer, found, self.own, shown, begun)
        if self.real_clips is not None:
            self.real_clips.measure(trainer, pl_module)

    @torch.no_grad()
    def measured(self, module: Any, tuples: Tuples, faces: Faces) -> Measured | None:
        """None on the ranks that only draw. `module`: a MotionTrainer or an Animator."""
        with in_use(module):
            drawn = outputs(module.animate, tuples, module.device, module.joint_code)
            codes = encoded(module.read_codes, faces, module.device)
        if not module.trainer.is_global_zero:
            return None
        if not all(numbers.isfinite().all() for numbers in (*drawn.values(), codes)):
            return Measured(dict.fromkeys(MATRIX, math.nan), drawn)
        found = measure(drawn, tuples, usable_cores())
        found.figures.update(probes(codes, faces))
        return found

    @torch.no_grad()
    def shown(self, module: Any, tuples: Tuples, clip: Shaped[Tensor, "F 3 H W"]) -> dict[str, Tensor]:
        """A swap grid, and the frames of a short film, for the eye."""
        with in_use(module):
            return {
                "swap_grid_pose_by_expression": swap_grid(module.animate, tuples, module.device),
                "film": film(module.animate, tuples.source[0], clip, module.device),
            }

    def report(
        self,
        trainer: L.Trainer,
        found: Measured,
        own: Mapping[str, float],
        shown: Mapping[str, Tensor],
        begun: float,
    ) -> None:
        """TensorBoard, and a line that names what is wrong. `own`: the estimator's figures; `begun`: when it was asked,
        by `time.perf_counter`."""
        assert self.tuples is not None
        figures = with_leaks(found.figures, own) if found.readings else dict(found.figures)
        self.figures = figures
        losses = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("loss/")}
        wrong = alarms(figures | losses)
        step = trainer.global_step - 1  # as Lightning numbers a step's own figures
        for logger in trainer.loggers:
            logger.log_metrics(tagged(figures, own), step=step)
            if isinstance(logger, TensorBoardLogger):
                board = logger.experiment
                board.add_image(f"{TAG}/influence_matrix", influence_picture(figures), step)
                board.add_image(f"{TAG}/tuples", tuples_picture(self.tuples, found), step)
                board.add_image(f"{TAG}/swap_grid_pose_by_expression", shown["swap_grid_pose_by_expression"], step)
                add_film(board, f"{TAG}/film_driver_both_pose_expression", shown["film"], step)
                board.add_text(f"{TAG}/verdict", verdict(figures | losses, own, wrong), step)
        state = "; ".join(f"{alarm.name}: {alarm.found}" for alarm in wrong) or no_alarm(figures, own)
        gains = ", ".join(f"{name} {figures[name]:.2f}" for name in MATRIX)
        seconds = time.perf_counter() - begun
        print(f"monitor at step {trainer.global_step}, {seconds:.1f} s: {gains}; {state}", flush=True)


class RealClips:
    """The same questions to validation clips of the training's data: what a detector sees of the answers."""

    def __init__(self, count: int) -> None:
        """`count`: tuples, at most."""
        self.count = count
        self.tuples: Asked | None = None
        self.drivers: ClipReadings | None = None
        self.told = False  # that there is no detector

    @torch.no_grad()
    def measure(self, trainer: L.Trainer, module: Any) -> None:
        """Figures and a picture to TensorBoard, and a line; nothing where the data have fewer than three such clips."""
        begun = time.perf_counter()
        if self.tuples is None:
            data = getattr(trainer, "datamodule", None)
            self.tuples = rotated(data.val_pictures(self.count) if isinstance(data, TalkingHeads) else torch.empty(0))
        if len(self.tuples) < LEAST_CLIPS:
            return
        with in_use(module):
            made = outputs(module.animate, self.tuples, module.device, module.joint_code)
        if not trainer.is_global_zero:
            return
        figures, step = self.read(made, self.tuples), trainer.global_step - 1
        for logger in trainer.loggers:
            logger.log_metrics({f"{CLIPS_TAG}/{name}": value for name, value in figures.items()}, step)
            if isinstance(logger, TensorBoardLogger):
                picture = tuples_picture(self.tuples, Measured(figures, made))
                logger.experiment.add_image(f"{CLIPS_TAG}/tuples", picture, step)
        if figures:
            words = ", ".join(f"{name} {figures[name]:.2f}" for name in (*MATRIX, "faces_found") if name in figures)
            seconds = time.perf_counter() - begun
            print(
                f"monitor at step {step + 1}, {seconds:.1f} s: {figures['tuples']:.0f} tuples of clips; {words}",
                flush=True,
            )

    def read(self, made: Mapping[str, Tensor], tuples: Asked) -> dict[str, float]:
        """Empty where there is no detector, which is told once."""
        try:
            with MediaPipeReader() as reader:
                self.drivers = self.drivers or ClipReadings.of(reader, tuples)
                return measure_clips(made, self.drivers, reader)
        except ValueError as error:
            if not self.told:
                print(f"monitor: of real clips pictures only; {error}", flush=True)
            self.told = True
            return {}


def add_film(board: Any, tag: str, frames: Float[Tensor, "F 3 H W"], step: int) -> None:
    """`SummaryWriter.add_video` wants moviepy for what is a GIF in the end."""
    height, width = frames.shape[-2:]
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=as_gif(frames))
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)


def tagged(figures: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """By TensorBoard tag: gains of controls and probes have folders of their own."""
    named = {(name if name.startswith("probe_r2/") else f"{TAG}/{name}"): value for name, value in figures.items()}
    phi = {f"{TAG}/estimator_{name}": own[name] for name in ("I_pe", "I_ep")}
    return {name: value for name, value in (named | phi).items() if not math.isnan(value)}
