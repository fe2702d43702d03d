"""The disentangled motion trainer: stage 1 as a LightningModule (DeX-Portrait, sec. 3.1)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock

from dex.batch import BLENDSHAPES, FACE, Batch
from dex.data.augment import ExpressionAugmentation, PoseAugmentation, expression_augment, pose_augment
from dex.motion import losses, pictures
from dex.motion.config import MotionConfig
from dex.motion.decoder import StyleStage
from dex.motion.discriminator import Discriminator
from dex.motion.encoders import load_generator
from dex.motion.evaluation import MotionEvaluation, report
from dex.motion.generator import Generated, MotionGenerator, expression_input
from dex.motion.layers import ResBlock2d, ResBlock3d
from dex.motion.losses import LossWeights, Perceptual, PerceptualLoss
from dex.muon import Muon
from dex.saved import check_same_network
from dex.sharding import average_gradients, check_whole, on_any_rank, shard
from dex.speed import checkpoint_blocks, compile_blocks, to_channels_last
from dex.training import (
    check_finite,
    check_unscaled,
    clip_gradient,
    crop_contract,
    known_poses,
    of_data,
    rate_factor,
    remember_rates,
    scale_rates,
    step_random,
    training_device,
    update_average,
)

# What is repeated in the generator, and compiled or checkpointed one by one; not in the discriminator, whose R1 is
# differentiated twice, which compiled code cannot be.
BLOCKS = (ResBlock2d, ResBlock3d, StyleStage, CNBlock)


@dataclass(frozen=True)
class Optimisation:
    """Adam for both sides, or Muon for the generator's. The paper: Adam, 1e-4 (`decay_steps` 0), 200 k steps."""

    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 1e-4
    # Of Muon (`dex.muon`, ours) for the matrices of all but the pose encoder, about 0.02, `learning_rate` being for the
    # rest; 0: Adam for all. It needs fewer steps. Not for sharded weights.
    muon: float = 0.0
    betas: tuple[float, float] = (0.5, 0.999)
    warmup_steps: int = 0
    decay_steps: int = 0  # half a cosine to zero, over so many steps
    clip_norm: float = 0.0  # of the generator side's gradient; 0: none
    ema_decay: float = 0.999
    # Order of learning (ours), for short runs: what the anchors teach, then what draws
    anchors_first: int = 0  # steps in which the anchors alone are trained, without the generator
    teacher_poses: int = 0  # steps after them over which warps go over from the labels' poses to the encoder's
    # After the anchors both encoders learn in every so many-th step only, what draws in each: they are far ahead of it.
    encoders_every: int = 1
    # Speed and memory, not results (see `dex.speed`)
    fused: bool = False  # Adam in one kernel
    compile: bool = False  # torch.compile of the generator's repeated blocks, each by itself
    channels_last: bool = True  # convolutions' weights
    gradient_checkpointing: bool = False  # of the generator's blocks: a third more computation, fewer activations

    def __post_init__(self) -> None:
        if self.encoders_every < 1:
            raise ValueError(f"optimisation.encoders_every is {self.encoders_every}, need at least 1: every step")

    def factor(self, step: int) -> float:
        """Of the learning rate at a step."""
        return rate_factor(step, self.warmup_steps, self.decay_steps)


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
        start: str | None = None,
        seed: int = 0,
    ) -> None:
        """`start`: export of a motion trainer to begin with, for fine-tuning; else weights are initialised from the
        global seed (`seed_everything`). `seed` drives the augmentations."""
        super().__init__()
        if optimisation.anchors_first and not (loss.pose or loss.expression):
            raise ValueError(
                f"optimisation.anchors_first is {optimisation.anchors_first}, but loss.pose and loss.expression are 0: "
                "there are no anchors to train; set anchors_first to 0, or one of the weights above 0"
            )
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.network, self.loss, self.optimisation, self.start, self.seed = network, loss, optimisation, start, seed
        self.joint_code = network.joint_code
        self.pose_augmentation, self.expression_augmentation = pose_augmentation, expression_augmentation
        self.generator = MotionGenerator(network)
        if optimisation.channels_last:
            to_channels_last(self.generator)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        if optimisation.gradient_checkpointing:
            checkpoint_blocks(self.generator, BLOCKS)
        if optimisation.compile:
            compile_blocks(self.generator, BLOCKS)
        # Of the expression anchor; it goes into no export.
        self.read_out = nn.Linear(network.expression_dim, len(BLENDSHAPES)) if loss.expression else None
        self.discriminator = Discriminator(network) if loss.adversarial else None
        if self.discriminator is not None and optimisation.channels_last:
            to_channels_last(self.discriminator)
        self.evaluation = MotionEvaluation()
        # In a list: a frozen third-party network is no part of this module's parameters, devices or checkpoints.
        self._perceptual = [] if perceptual == "none" else [PerceptualLoss(perceptual)]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        settings = self.optimisation
        plain = list(self.generator.pose_encoder.parameters())  # learns slower with Muon (docs/experiments.md)
        if self.read_out is not None:
            plain += self.read_out.parameters()
        known = set(map(id, plain))
        rest = [p for p in self.generator.parameters() if id(p) not in known]
        adam: dict[str, Any] = {"betas": settings.betas, "fused": settings.fused or None}
        made: list[torch.optim.Optimizer] = [
            Muon(rest, settings.muon, plain, settings.learning_rate, **adam)
            if settings.muon
            else torch.optim.Adam([*rest, *plain], settings.learning_rate, **adam)
        ]
        if self.discriminator is not None:
            rate = settings.discriminator_learning_rate
            made.append(torch.optim.Adam(self.discriminator.parameters(), rate, **adam))
        for optimizer in made:
            remember_rates(optimizer)
        return made

    def setup(self, stage: str) -> None:
        """Raises `ExportError` where `start` is no export, or of another network, and `ValueError` where the data's
        pictures are of another size."""
        size = of_data(self, "size")
        if size not in (None, self.network.size):
            raise ValueError(
                f"data.size is {size}, model.network.size {self.network.size}: pictures must be of the network's size; "
                f"set data.init_args.size to {self.network.size}"
            )
        for network in self._perceptual:
            network.to(training_device(self))
        if stage == "fit" and self.start:
            begun, _ = load_generator(Path(self.start))
            # A discriminator is in no export.
            check_same_network(
                Path(self.start), self.network, begun.config, ("discriminator_width", "discriminator_cap")
            )
            for generator in (self.generator, self.average):
                generator.load_state_dict(begun.state_dict())
            if self.read_out is not None:  # in no export; from zero on it learns from the code before it teaches it
                for parameter in self.read_out.parameters():
                    nn.init.zeros_(parameter)

    def configure_model(self) -> None:
        """The discriminator stays whole on each rank: R1 differentiates twice, which sharding does not support."""
        if self.optimisation.muon:
            check_whole(self, "optimisation.muon")
        networks = [*self.generator.children(), *self.average.children()]
        shard(self, networks if self.read_out is None else [*networks, self.read_out])

    def on_fit_start(self) -> None:
        """Raises `ValueError` for a precision that scales gradients, and where nothing would train the pose encoder."""
        check_unscaled(self)
        first, taught = self.optimisation.anchors_first, self.optimisation.teacher_poses
        if taught and not self.loss.pose and 0 < self.trainer.max_steps <= first + taught:
            raise ValueError(
                f"loss.pose is 0, and with optimisation.anchors_first {first} and teacher_poses {taught} warps take "
                f"the labels' poses to the last of {self.trainer.max_steps} steps: nothing would train the pose "
                "encoder; set teacher_poses to 0, or loss.pose above 0"
            )

    @property
    def drawn_steps(self) -> int:
        """Steps of the generator before this one; below 0 while the anchors alone are trained."""
        return self.global_step - self.optimisation.anchors_first

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        random = step_random(self, self.seed)
        drawn = self.drawn_steps
        taught = drawn < 0 or (drawn + 1) % self.optimisation.encoders_every == 0
        with torch.set_grad_enabled(taught):
            source_pose, driving_pose, view_pose = self.encode_poses(batch, random, anchored=taught)
            expression = self.encode_expression(batch, random)
        anchors = self.anchor_losses(batch, source_pose, driving_pose, view_pose, expression) if taught else {}
        if drawn < 0:
            self.generator_update(batch, anchors)
        else:
            self.train_on(batch, self.generate(batch, source_pose, driving_pose, expression, random), anchors, random)
        update_average(self.average, self.generator, self.optimisation.ema_decay, self.global_step)

    def train_on(self, batch: Batch, generated: Generated, anchors: dict[str, Tensor], random: torch.Generator) -> None:
        """One step of the discriminator, once it has joined, and one of the generator side."""
        terms = self.generator_losses(batch, generated, random) | anchors
        if self.discriminator is not None and self.global_step >= self.loss.adversarial_start:
            self.discriminator_update(batch, generated.fake.detach())
            with freeze(self.discriminator):
                terms["adversarial"] = losses.generator_adversarial(self.discriminator(generated.fake.flatten(0, 1)))
        self.generator_update(batch, terms)

    def encode_poses(
        self, batch: Batch, random: torch.Generator, anchored: bool = True
    ) -> tuple[Float[Tensor, "B 3 4"], Float[Tensor, "B K 3 4"], Float[Tensor, "B K 3 4"]]:
        """P_s, P_d and the pose in the expression view, read from behind the expression augmentation.

        Where another camera made that view, its pose is one more that the anchor can teach; it has no region labels.
        Not `anchored`, or of the same camera, it is P_d.
        """
        frames = [batch.source, batch.driving.flatten(0, 1)]
        regions = [batch.source_region, batch.driving_region.flatten(0, 1)]
        crossed = anchored and self.loss.pose > 0 and not torch.equal(batch.view_pose, batch.driving_pose)
        if crossed:
            frames.append(batch.expression_view.flatten(0, 1))
            regions.append(torch.zeros_like(regions[1]))
        picture = expression_augment(torch.cat(frames), torch.cat(regions), self.expression_augmentation, random)
        source, *rest = self.generator.pose_encoder(picture).split([len(frame) for frame in frames])
        driving, view = (part.unflatten(0, batch.driving.shape[:2]) for part in (rest[0], rest[-1]))
        return source, driving, view

    def encode_expression(self, batch: Batch, random: torch.Generator) -> Float[Tensor, "B K E"]:
        """e, read from behind the pose augmentation, of faces brought upright by the labels' poses where they are known
        (their errors do not yet depend on how far training has come), elsewhere by the encoder's."""
        view, known = batch.expression_view.flatten(0, 1), batch.view_pose_weight.flatten() > 0
        pose = batch.view_pose.flatten(0, 1)
        if on_any_rank(self, not known.all()):
            with torch.no_grad():
                pose = torch.where(known[:, None, None], pose, self.generator.pose_encoder(view))
        face = pose_augment(expression_input(view, pose, self.network), self.pose_augmentation, random)
        return self.generator.expression_encoder(face).unflatten(0, (len(batch.source), -1))

    def generate(
        self,
        batch: Batch,
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        expression: Float[Tensor, "B K E"],
        random: torch.Generator,
    ) -> Generated:
        """Î for a training batch."""
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
        done = self.drawn_steps
        if done >= steps:
            return source_pose, driving_pose
        source_pose, driving_pose = source_pose.detach(), driving_pose.detach()
        known = (batch.source_pose_weight > 0) & (batch.driving_pose_weight > 0).all(dim=1)
        taught = known & (torch.rand(len(known), generator=random, device=random.device) < 1 - done / steps)
        return (
            torch.where(taught[:, None, None], batch.source_pose, source_pose),
            torch.where(taught[:, None, None, None], batch.driving_pose, driving_pose),
        )

    def generator_losses(self, batch: Batch, generated: Generated, random: torch.Generator) -> dict[str, Tensor]:
        """Every loss of the generator side but the adversarial one, unweighted, by the name of its weight."""
        fake, real = generated.fake.flatten(0, 1), batch.driving.flatten(0, 1)
        region = batch.driving_region.flatten(0, 1)
        terms = losses.reconstruction_losses(fake, real, region, self.loss)
        for network in self._perceptual:
            terms["lpips"], terms["clpips"] = network(fake, real, losses.region_mask(region, lowest=FACE))
        if self.loss.own_features:
            terms["own_features"] = self.own_feature_loss(batch, generated, random)
        return terms

    def own_feature_loss(self, batch: Batch, generated: Generated, random: torch.Generator) -> Float[Tensor, ""]:
        """The expression encoder on the faces of Î and of I_d, at the same place and behind the same augmentation; it
        is taught nothing by this."""
        fake, real = generated.fake.flatten(0, 1), batch.driving.flatten(0, 1)
        pose = known_poses(batch.driving_pose, batch.driving_pose_weight, generated.driving_pose.detach()).flatten(0, 1)
        encoder, state = self.generator.expression_encoder, random.get_state()
        seen = []
        for picture in (fake, real):
            random.set_state(state)
            seen.append(pose_augment(expression_input(picture, pose, self.network), self.pose_augmentation, random))
        with freeze(encoder):
            return losses.own_feature_loss(encoder, *seen)

    def anchor_losses(
        self,
        batch: Batch,
        source_pose: Float[Tensor, "B 3 4"],
        driving_pose: Float[Tensor, "B K 3 4"],
        view_pose: Float[Tensor, "B K 3 4"],
        expression: Float[Tensor, "B K E"],
    ) -> dict[str, Tensor]:
        """The anchors asked for: predicted poses, and blendshapes read out of e, against the labels of the shards."""
        terms = {}
        if self.loss.pose:
            terms["pose"] = losses.pose_loss(
                torch.cat([source_pose, driving_pose.flatten(0, 1), view_pose.flatten(0, 1)]),
                torch.cat([batch.source_pose, batch.driving_pose.flatten(0, 1), batch.view_pose.flatten(0, 1)]),
                torch.cat(
                    [batch.source_pose_weight, batch.driving_pose_weight.flatten(), batch.view_pose_weight.flatten()]
                ),
            )
        if self.read_out is not None:
            terms["expression"] = losses.expression_loss(self.read_out(expression), batch.driving_blendshapes)
        return terms

    def generator_update(self, batch: Batch, terms: dict[str, Tensor]) -> None:
        factor = losses.anchor_factor(self.loss, self.global_step)
        weights = {**vars(self.loss), "pose": factor * self.loss.pose, "expression": factor * self.loss.expression}
        total = torch.stack([weights[name] * term for name, term in terms.items() if name in weights]).sum()
        check_finite(self, {**terms, "total": total}, batch)
        wrapped: Any = self.optimizers()
        optimizer = wrapped[0] if isinstance(wrapped, list) else wrapped
        rate = self.set_rate(optimizer)
        optimizer.zero_grad()
        self.manual_backward(total)
        # Each network on its own: the pose encoder's gradient can be ten times the others' and would drown them.
        norms = {
            f"grad_norm/{name}": clip_gradient(network.parameters(), self.optimisation.clip_norm)
            for name, network in self.generator.named_children()
            if any(parameter.grad is not None for parameter in network.parameters())
        }
        optimizer.step()
        self.log_dict({f"loss/{name}": term.detach() for name, term in {**terms, "total": total}.items()})
        self.log_dict(norms | {"learning_rate/generator": rate})

    def discriminator_update(self, batch: Batch, fake: Float[Tensor, "B K 3 H W"]) -> None:
        """One step of D, with R1 on every `r1_interval`-th. Fakes and real frames are judged apart, as they are when
        the generator learns: D compares the pictures that it sees together.

        D's optimiser is taken unwrapped: Lightning's `global_step` counts the steps of every wrapped one.
        """
        assert self.discriminator is not None
        real = batch.driving.flatten(0, 1)
        fake_logits, real_logits = self.discriminator(fake.flatten(0, 1)), self.discriminator(real)
        terms = {"discriminator": losses.discriminator_adversarial(fake_logits, real_logits)}
        total = terms["discriminator"]
        if self.loss.r1 and self.global_step % self.loss.r1_interval == 0:
            terms["r1"] = losses.r1_penalty(self.discriminator, real)
            total = total + self.loss.r1 * self.loss.r1_interval * terms["r1"]
        check_finite(self, terms, batch)
        optimizer = self.unwrapped_optimizers()[1]
        rate = self.set_rate(optimizer)
        optimizer.zero_grad()
        self.manual_backward(total)
        average_gradients(self, self.discriminator)
        norm = clip_gradient(self.discriminator.parameters(), 0)
        optimizer.step()
        self.log_dict({f"loss/{name}": term.detach() for name, term in terms.items()})
        self.log_dict({"grad_norm/discriminator": norm, "learning_rate/discriminator": rate})

    def unwrapped_optimizers(self) -> list[torch.optim.Optimizer]:
        found: Any = self.optimizers(use_pl_optimizer=False)
        return found if isinstance(found, list) else [found]

    def set_rate(self, optimizer: torch.optim.Optimizer) -> float:
        """All rates of this step, Muon's among them; returns Adam's."""
        return scale_rates(optimizer, self.optimisation.factor(self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # As plain numbers: an export reads the checkpoint without unpickling classes.
        checkpoint["motion_config"] = dataclasses.asdict(self.network)
        checkpoint["crop"] = crop_contract(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        made = self.reenact(batch)
        self.evaluation.update(batch, made.source_pose, made.driving_pose, made.fake)

    def reenact(self, batch: Batch) -> Generated:
        """Î by the moving average, without augmentation: pose from `pose_view`, expression from `expression_view`."""
        return self.driven(batch.source, batch.posed, batch.expression_view)

    def driven(
        self,
        source: Float[Tensor, "B 3 H W"],
        pose_view: Float[Tensor, "B K 3 H W"],
        expression_view: Float[Tensor, "B K 3 H W"],
    ) -> Generated:
        """Each source in the poses of its K pose drivers and the expressions of its K expression drivers."""
        drivers = pose_view.shape[1]
        source_pose = self.average.pose_encoder(source)
        driving_pose = self.average.pose_encoder(pose_view.flatten(0, 1)).unflatten(0, (-1, drivers))
        expression = self.read_codes(expression_view.flatten(0, 1)).unflatten(0, (-1, drivers))
        fake = self.average(source, source_pose, driving_pose, expression)
        return Generated(fake, source_pose, driving_pose, expression)

    @torch.no_grad()
    def animate(
        self,
        source: Float[Tensor, "N 3 H W"],
        pose_view: Float[Tensor, "N 3 H W"],
        expression_view: Float[Tensor, "N 3 H W"],
    ) -> Float[Tensor, "N 3 H W"]:
        """One picture of each source, by the moving average, in about [-1, 1]."""
        return self.driven(source, pose_view[:, None], expression_view[:, None]).fake[:, 0]

    def read_codes(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """e, by the moving average."""
        return self.average.read_motion(pictures)[1]

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.evaluation.compute().items()})
        self.evaluation.reset()

    def pictures(self, batch: Batch, samples: int) -> dict[str, Float[Tensor, "3 H W"]]:
        """What TensorBoard shows of a batch, by tag, values in [0, 1]."""
        return {
            "preview/source_driver_output_warped": pictures.reenactment_grid(
                self.average, batch, self.reenact(batch), samples
            ),
            "preview/swap_grid_pose_by_expression": pictures.swap_grid(self.average, batch),
        }

    def report(self, figures: Mapping[str, float]) -> str:
        return report(figures)


@contextmanager
def freeze(module: torch.nn.Module) -> Iterator[None]:
    """No gradients for the module's own weights inside; they still flow through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
