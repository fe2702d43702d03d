"""The disentangled motion trainer: stage 1 as a LightningModule (DeX-Portrait, sec. 3.1)."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from dex.batch import FACE, Batch
from dex.data.augment import ExpressionAugmentation, PoseAugmentation, expression_augment, pose_augment
from dex.motion import losses
from dex.motion.config import MotionConfig
from dex.motion.discriminator import Discriminator
from dex.motion.evaluation import MotionEvaluation
from dex.motion.generator import MotionGenerator
from dex.motion.layers import to_channels_last
from dex.motion.losses import LossWeights, Perceptual, PerceptualLoss


class NonFiniteLossError(ValueError):
    """A loss became NaN or infinite; the message names it, the step and the samples."""


@dataclass(frozen=True)
class Optimisation:
    """Adam for both sides. The paper: constant 1e-4, 200 k steps; with `decay_steps` 0 it stays constant."""

    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    warmup_steps: int = 0
    decay_steps: int = 0  # half a cosine to zero, over so many steps
    clip_norm: float = 0.0  # of the generator side's gradient; 0: none
    ema_decay: float = 0.999
    # Order of learning (ours), for short runs: pose, then generator, then expression
    pose_first: int = 0  # steps in which the pose anchor alone is trained; a tenth of the cost of the others
    teacher_poses: int = 0  # steps after them over which warps go over from the labels' poses to the encoder's

    def factor(self, step: int) -> float:
        """Of the learning rate at a step."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = min(1.0, step / self.decay_steps) if self.decay_steps else 0.0
        return warm * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Generated:
    """A batch's output beside the poses and codes it was made with."""

    fake: Float[Tensor, "B K 3 H W"]
    source_pose: Float[Tensor, "B 3 4"]
    driving_pose: Float[Tensor, "B K 3 4"]
    expression: Float[Tensor, "B K E"]


class MotionTrainer(L.LightningModule):
    """Trains pose and expression encoder, generator and discriminator; validates and exports their moving average."""

    def __init__(
        self,
        network: MotionConfig = MotionConfig(),
        loss: LossWeights = LossWeights(),
        pose_augmentation: PoseAugmentation = PoseAugmentation(),
        expression_augmentation: ExpressionAugmentation = ExpressionAugmentation(),
        optimisation: Optimisation = Optimisation(),
        perceptual: Perceptual = "vgg16",
        seed: int = 0,
    ) -> None:
        """`seed` drives the augmentations; weights are initialised from the global seed (`seed_everything`)."""
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.network, self.loss, self.optimisation, self.seed = network, loss, optimisation, seed
        self.pose_augmentation, self.expression_augmentation = pose_augmentation, expression_augmentation
        self.generator = MotionGenerator(network)
        to_channels_last(self.generator)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.discriminator = Discriminator(network) if loss.adversarial else None
        if self.discriminator is not None:
            to_channels_last(self.discriminator)
        self.evaluation = MotionEvaluation()
        # In a list: a frozen third-party network is no part of this module's parameters, devices or checkpoints.
        self._perceptual = [] if perceptual == "none" else [PerceptualLoss(perceptual)]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        settings = self.optimisation
        made = [torch.optim.Adam(self.generator.parameters(), settings.learning_rate, settings.betas)]
        if self.discriminator is not None:
            rate = settings.discriminator_learning_rate
            made.append(torch.optim.Adam(self.discriminator.parameters(), rate, settings.betas))
        return made  # type: ignore[return-value]  # a list of Adam is a list of Optimizer

    def setup(self, stage: str) -> None:
        for network in self._perceptual:
            network.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        random = self.step_random()
        poses = self.encode_poses(batch, random)
        if self.global_step < self.optimisation.pose_first:
            self.generator_update(batch, {"pose": self.label_loss(batch, *poses)})
        else:
            self.train_on(batch, self.generate(batch, *poses, random))
        self.update_average()

    def train_on(self, batch: Batch, generated: Generated) -> None:
        """One step of the discriminator, once it has joined, and one of the generator side."""
        terms = self.generator_losses(batch, generated)
        if self.discriminator is not None and self.global_step >= self.loss.adversarial_start:
            terms |= self.discriminator_update(batch, generated.fake.detach())
            with freeze(self.discriminator):
                terms["adversarial"] = losses.generator_adversarial(self.discriminator(generated.fake.flatten(0, 1)))
        self.generator_update(batch, terms)

    def encode_poses(
        self, batch: Batch, random: torch.Generator
    ) -> tuple[Float[Tensor, "B 3 4"], Float[Tensor, "B K 3 4"]]:
        """P_s and P_d, read from behind the expression augmentation."""
        frames = torch.cat([batch.source, batch.driving.flatten(0, 1)])
        regions = torch.cat([batch.source_region, batch.driving_region.flatten(0, 1)])
        poses = self.generator.pose_encoder(expression_augment(frames, regions, self.expression_augmentation, random))
        sources = len(batch.source)
        return poses[:sources], poses[sources:].unflatten(0, (sources, -1))

    def generate(
        self,
        batch: Batch,
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        random: torch.Generator,
    ) -> Generated:
        """Î for a training batch, its expression read from behind the pose augmentation."""
        view = pose_augment(batch.expression_view.flatten(0, 1), self.pose_augmentation, random)
        expression = self.generator.expression_encoder(view).unflatten(0, (len(batch.source), -1))
        warp_source, warp_driving = self.warp_poses(batch, source_pose, driving_pose, random)
        fake = self.generator(batch.source, warp_source, warp_driving, expression)
        return Generated(fake, source_pose, driving_pose, expression)

    def warp_poses(
        self,
        batch: Batch,
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        random: torch.Generator,
    ) -> tuple[Float[Tensor, "B 3 4"], Float[Tensor, "B K 3 4"]]:
        """The encoder's poses, or in the first `teacher_poses` steps of the generator for more or fewer samples labels.

        The warp is then right from the first step, and the generator need not wait for the pose encoder; nor does the
        pose encoder listen to a generator that knows nothing yet: until then only the labels train it.
        """
        steps = self.optimisation.teacher_poses
        done = self.global_step - self.optimisation.pose_first
        if done >= steps:
            return source_pose, driving_pose
        source_pose, driving_pose = source_pose.detach(), driving_pose.detach()
        known = (batch.source_pose_weight > 0) & (batch.driving_pose_weight > 0).all(dim=1)
        taught = known & (torch.rand(len(known), generator=random, device=random.device) < 1 - done / steps)
        return (
            torch.where(taught[:, None, None], batch.source_pose, source_pose),
            torch.where(taught[:, None, None, None], batch.driving_pose, driving_pose),
        )

    def generator_losses(self, batch: Batch, generated: Generated) -> dict[str, Tensor]:
        """Every loss of the generator side but the adversarial one, unweighted, by the name of its weight."""
        fake, real = generated.fake.flatten(0, 1), batch.driving.flatten(0, 1)
        region = batch.driving_region.flatten(0, 1)
        terms = losses.reconstruction_losses(fake, real, region, self.loss)
        for network in self._perceptual:
            terms["lpips"], terms["clpips"] = network(fake, real, losses.region_mask(region, lowest=FACE))
        if self.loss.pose:
            terms["pose"] = self.label_loss(batch, generated.source_pose, generated.driving_pose)
        return terms

    def label_loss(
        self, batch: Batch, source_pose: Float[Tensor, "B 3 4"], driving_pose: Float[Tensor, "B K 3 4"]
    ) -> Float[Tensor, ""]:
        """The pose anchor: predicted poses against the labels of the shards."""
        return losses.pose_loss(
            torch.cat([source_pose, driving_pose.flatten(0, 1)]),
            torch.cat([batch.source_pose, batch.driving_pose.flatten(0, 1)]),
            torch.cat([batch.source_pose_weight, batch.driving_pose_weight.flatten()]),
        )

    def generator_update(self, batch: Batch, terms: dict[str, Tensor]) -> None:
        weights = {**vars(self.loss), "pose": losses.pose_weight(self.loss, self.global_step)}
        total = torch.stack([weights[name] * term for name, term in terms.items() if name in weights]).sum()
        self.check_finite({**terms, "total": total}, batch)
        wrapped: Any = self.optimizers()
        optimizer = wrapped[0] if isinstance(wrapped, list) else wrapped
        rate = self.set_rate(optimizer, self.optimisation.learning_rate)
        optimizer.zero_grad()
        self.manual_backward(total)
        # Each network on its own: the pose encoder's gradient can be ten times the others' and would drown them.
        limit = self.optimisation.clip_norm or math.inf
        norms = {
            f"grad_norm/{name}": torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
            for name, network in self.generator.named_children()
        }
        optimizer.step()
        self.log_dict({f"loss/{name}": term.detach() for name, term in {**terms, "total": total}.items()})
        self.log_dict(norms | {"learning_rate/generator": rate})

    def discriminator_update(self, batch: Batch, fake: Float[Tensor, "B K 3 H W"]) -> dict[str, Tensor]:
        """One step of D, with R1 on every `r1_interval`-th; returns its losses for the log.

        D's optimiser is taken unwrapped: Lightning's `global_step` counts the steps of every wrapped one.
        """
        assert self.discriminator is not None
        real = batch.driving.flatten(0, 1)
        fake_logits, real_logits = self.discriminator(torch.cat([fake.flatten(0, 1), real])).chunk(2)
        terms = {"discriminator": losses.discriminator_adversarial(fake_logits, real_logits)}
        total = terms["discriminator"]
        if self.global_step % self.loss.r1_interval == 0:
            terms["r1"] = losses.r1_penalty(self.discriminator, real)
            total = total + self.loss.r1 * self.loss.r1_interval * terms["r1"]
        self.check_finite(terms, batch)
        optimizer = self.unwrapped_optimizers()[1]
        rate = self.set_rate(optimizer, self.optimisation.discriminator_learning_rate)
        optimizer.zero_grad()
        self.manual_backward(total)
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), math.inf)
        optimizer.step()
        self.log_dict({"grad_norm/discriminator": norm, "learning_rate/discriminator": rate})
        return {name: term.detach() for name, term in terms.items()}

    def unwrapped_optimizers(self) -> list[torch.optim.Optimizer]:
        found: Any = self.optimizers(use_pl_optimizer=False)
        return found if isinstance(found, list) else [found]

    def set_rate(self, optimizer: torch.optim.Optimizer, base: float) -> float:
        rate = base * self.optimisation.factor(self.global_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def step_random(self) -> torch.Generator:
        """Random numbers of this step and rank alone: a resumed run repeats them without a stored state."""
        numbers = np.random.SeedSequence([self.seed, self.global_step, self.global_rank]).generate_state(2)
        return torch.Generator(self.device).manual_seed(int(numbers[0]) << 20 ^ int(numbers[1]))

    @torch.no_grad()
    def update_average(self) -> None:
        """EMA of the generator side; the decay grows from 0 so that the start is forgotten soon."""
        decay = min(self.optimisation.ema_decay, (1 + self.global_step) / (10 + self.global_step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    def check_finite(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """Raises `NonFiniteLossError` naming the losses and samples, after saving the batch beside the logs."""
        values = torch.stack([term.detach().float() for term in terms.values()])
        if torch.isfinite(values).all():
            return
        bad = [name for name, finite in zip(terms, torch.isfinite(values).tolist(), strict=True) if not finite]
        path = save_batch(batch, Path(self.trainer.log_dir or self.trainer.default_root_dir), self.global_step)
        raise NonFiniteLossError(
            f"step {self.global_step}: loss {', '.join(bad)} is not finite. The batch is saved in {path}; "
            f"its samples: {', '.join(batch.key)}. Lower optimisation.learning_rate, set optimisation.clip_norm, "
            "or look at these samples."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # As plain numbers: an export reads the checkpoint without unpickling classes.
        checkpoint["motion_config"] = dataclasses.asdict(self.network)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        made = self.reenact(batch)
        self.evaluation.update(batch, made.source_pose, made.driving_pose, made.fake)

    def reenact(self, batch: Batch) -> Generated:
        """Î by the moving average, without augmentation: pose from `pose_view`, expression from `expression_view`."""
        drivers = batch.driving.shape[1]
        pose_view = batch.driving if batch.pose_view is None else batch.pose_view
        source_pose = self.average.pose_encoder(batch.source)
        driving_pose = self.average.pose_encoder(pose_view.flatten(0, 1)).unflatten(0, (-1, drivers))
        expression = self.average.expression_encoder(batch.expression_view.flatten(0, 1)).unflatten(0, (-1, drivers))
        return Generated(
            self.average(batch.source, source_pose, driving_pose, expression), source_pose, driving_pose, expression
        )

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.evaluation.compute().items()})
        self.evaluation.reset()


# Checkpoints hold these as hyperparameters and are only ever read with weights_only=True.
SETTINGS: list[Any] = [MotionConfig, LossWeights, PoseAugmentation, ExpressionAugmentation, Optimisation]
torch.serialization.add_safe_globals(SETTINGS)


@contextmanager
def freeze(module: torch.nn.Module) -> Iterator[None]:
    """No gradients for the module's own weights inside; they still flow through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def save_batch(batch: Batch, folder: Path, step: int) -> Path:
    """Writes a batch's tensors for study, as safetensors with its keys in the header."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"nonfinite-step-{step}.safetensors"
    tensors = {name: value.detach().cpu().contiguous() for name, value in vars(batch).items() if torch.is_tensor(value)}
    save_file(tensors, path, metadata={"keys": json.dumps(batch.key)})
    return path
