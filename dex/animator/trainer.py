"""The diffusion animator: stage 2 as a LightningModule (DeX-Portrait, sec. 3.2)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from diffusers import DDPMScheduler
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import Parameter

from dex.animator import losses, pictures
from dex.animator.base import load_base
from dex.animator.blocks import DenoisingBlock, ReferenceBlock
from dex.animator.codec import Codec, CodecError, SpaceToDepth, decode_frames, load_codec
from dex.animator.conditions import Conditions
from dex.animator.config import AnimatorConfig
from dex.animator.evaluation import AnimatorEvaluation, report
from dex.animator.losses import DiffusionLoss
from dex.animator.sampler import NOISE_SCHEDULE, ZERO_TERMINAL_SNR, SamplerSettings, from_schedule, sample
from dex.animator.storage import load_animator
from dex.animator.unet import AnimatorUNet, stages
from dex.batch import Batch
from dex.motion.encoders import Encoders, check_trained_on, encoders_hash, fingerprint, load_encoders
from dex.motion.generator import expression_input
from dex.motion.losses import own_feature_loss
from dex.muon import Muon
from dex.saved import ExportError, check_same_network
from dex.sharding import check_whole, fewest, shard
from dex.speed import compile_blocks, to_channels_last
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

# What is repeated in both UNets, and compiled one by one.
BLOCKS = (ResnetBlock2D, DenoisingBlock, ReferenceBlock)


@dataclass(frozen=True)
class AnimatorOptimisation:
    """AdamW, or Muon with Adam beside it. The paper names no rate; 1e-5 is usual for all weights of Stable Diffusion
    **(ours)**."""

    learning_rate: float = 1e-5
    # Of Muon (`dex.muon`, ours) for matrices, about 0.02, `learning_rate` being for the rest; 0: AdamW for all. For
    # training from nothing, where it needs fewer steps. Not for sharded weights, and without weight decay.
    muon: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    # The network is told the labels' poses while it learns, where there are any, and the encoder's in use (ours).
    teacher_poses: bool = False
    warmup_steps: int = 500
    decay_steps: int = 0  # half a cosine to zero, over so many steps; 0: constant
    clip_norm: float = 1.0  # 0: none
    ema_decay: float = 0.9999
    # Speed and memory, not results (see `dex.speed`)
    fused: bool = False  # AdamW in one kernel
    compile: bool = False  # torch.compile of the UNets' repeated blocks, each by itself
    channels_last: bool = False  # convolutions' weights
    gradient_checkpointing: bool = False  # a third more computation for a fraction of the activations

    def __post_init__(self) -> None:
        if self.muon and self.weight_decay:
            raise ValueError(
                f"optimisation: muon knows no weight decay; weight_decay is {self.weight_decay}, set it to 0"
            )


# P_s, P_d and e of a batch
Motion = tuple[Float[Tensor, "B 3 4"], Float[Tensor, "B K 3 4"], Float[Tensor, "B K E"]]


@dataclass(frozen=True)
class Denoised:
    """What the network makes of noisy latents."""

    estimate: Float[Tensor, "B F c h w"]  # of ε, v or z_0
    error: Float[Tensor, "B F c h w"]  # its square, times the weight of t


class Animator(L.LightningModule):
    """Trains the two UNets on the frozen encoders of stage 1; validates and exports their moving average.

    Image phase: all but the temporal attention, on independent driving frames. Video phase: the temporal attention
    alone, on consecutive frames. The image codec and the encoders are frozen, run without gradient, and are part of no
    optimiser, moving average or checkpoint.
    """

    def __init__(
        self,
        encoders: str,
        network: AnimatorConfig = AnimatorConfig(),
        phase: Literal["image", "video"] = "image",
        codec: str = "space-to-depth:4",
        base: str | None = None,
        start: str | None = None,
        loss: DiffusionLoss = DiffusionLoss(),
        optimisation: AnimatorOptimisation = AnimatorOptimisation(),
        sampler: SamplerSettings = SamplerSettings(),
        sampled: int = 4,
        seed: int = 0,
    ) -> None:
        """
        Args:
            encoders: what `python -m dex.export` wrote from a motion trainer, or its folder `encoders/`.
            network: sizes of the UNets.
            phase: "image" or "video".
            codec: names the image codec (see `dex.animator.codec`).
            base: Stable Diffusion 1.5's weights to start from (see `dex.animator.base`); None: random ones.
            start: export of an animator to start from instead, for the video phase that of the image phase.
            loss: weighting and condition dropout.
            optimisation: AdamW and the moving average.
            sampler: how validation draws its frames.
            sampled: sources of validation for which all frames are drawn, over all ranks, at least one on each.
            seed: drives noise, time steps and dropout; weights are initialised from the global seed.
        """
        super().__init__()
        self.save_hyperparameters()
        if base and start:
            raise ValueError(f"base {base} and start {start}: give one of them, start holds base's weights already")
        self.phase, self.loss, self.optimisation = phase, loss, optimisation
        self.sampler, self.sampled, self.seed = sampler, sampled, seed
        self.encoders_folder, self.codec_name, self.base, self.start = Path(encoders), codec, base, start
        self.network = AnimatorUNet(network)
        if optimisation.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        self.network.requires_grad_(False)
        trained = self.network.temporal_parameters() if phase == "video" else self.network.spatial_parameters()
        for parameter in trained:
            parameter.requires_grad_(True)
        if optimisation.channels_last:
            to_channels_last(self.network)
        # Of each UNet that learns: an average of the denoiser is no use with a reference that has gone on without it.
        learning = {
            name: unet
            for name, unet in self.network.named_children()
            if any(parameter.requires_grad for parameter in unet.parameters())
        }
        self.average = nn.ModuleDict(copy.deepcopy(learning)).requires_grad_(False)
        if optimisation.compile:
            compile_blocks(self.network, BLOCKS)
        self.evaluation = AnimatorEvaluation()
        # No buffer: a checkpoint need not repeat a schedule.
        curve = ZERO_TERMINAL_SNR if loss.schedule == "zero_terminal_snr" else NOISE_SCHEDULE
        self.schedule = {**curve, "prediction_type": loss.prediction}
        self.noising: Any = from_schedule(DDPMScheduler, self.schedule)
        # In a list: frozen third parties are no part of this module's parameters or checkpoints.
        self._frozen: list[Any] = []

    # ---- set-up ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Loads what is frozen and what training starts from. Raises `ExportError`, `CodecError`, `BaseWeightsError`,
        and `ValueError` where the parts do not fit each other."""
        if self._frozen:
            return
        encoders, codec = load_encoders(self.encoders_folder), load_codec(self.codec_name)
        check_fit(self.network.config, encoders, codec)
        if self.loss.own_features and not isinstance(codec, SpaceToDepth):
            raise ValueError(
                f"loss: own_features needs a gradient through the codec, and {codec.name} gives none; "
                "set loss.own_features to 0, or codec to space-to-depth:4"
            )
        self.encoders_hash = encoders_hash(self.encoders_folder)  # of what was loaded, whatever lies there later
        device = training_device(self)
        self._frozen = [encoders.to(device), codec.to(device)]
        if stage == "fit":
            if self.base:
                load_base(self.network, self.base)
            elif not self.start:
                self.network.open_additions()
            else:
                folder = Path(str(self.start))
                begun, said = load_animator(folder)
                check_same_network(folder, self.network.config, begun.config, ("unet.sample_size",))
                self.check_same_task(folder, said, encoders, codec)
                self.network.load_state_dict(begun.float().state_dict())
            self.begin_average()

    def begin_average(self) -> None:
        for name, average in self.average.items():
            average.load_state_dict(self.network.get_submodule(name).state_dict())

    def check_same_task(self, folder: Path, said: Mapping[str, Any], encoders: Encoders, codec: Codec) -> None:
        """Raises `ExportError` where the export to start from was trained on other encoders, other latents, or for
        another estimate: its weights would mean nothing here."""
        if said.get("schedule", self.schedule) != self.schedule:
            theirs = said["schedule"]
            named = "zero_terminal_snr" if theirs.get("rescale_betas_zero_snr") else "stable_diffusion"
            raise ExportError(
                f"{folder}: was trained with another loss.prediction or loss.schedule; model.start needs "
                f"loss.prediction {theirs['prediction_type']} and loss.schedule {named}"
            )
        if said.get("provenance", {}).get("codec_hash", codec.hash) != codec.hash:
            raise ExportError(f"{folder}: was trained on latents of {said['codec']}; set model.codec to it")
        there = folder / said.get("encoders", "encoders")
        if fingerprint(load_encoders(there)) != fingerprint(encoders):
            raise ExportError(f"{folder}: was trained on other encoders; set model.encoders to {there}")

    def configure_model(self) -> None:
        """Stage by stage; the reference as a whole, since it hands out what is inside its stages."""
        if self.optimisation.muon:
            check_whole(self, "optimisation.muon")
        for networks in (self.network, self.average):
            for name, unet in networks.named_children():
                shard(self, (*stages(cast(Any, unet)), unet) if name == "denoiser" else (unet,))

    def on_fit_start(self) -> None:
        """Raises the cache's error where its latents are another codec's, and `ValueError` for a precision that scales
        gradients, and for accumulated ones: noise, callbacks and checkpoints go by optimiser steps, and would be the
        same for every batch of one."""
        check_unscaled(self)
        if self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, need 1: every batch of a "
                "step would get the same noise; raise data.batch_size, with optimisation.gradient_checkpointing where "
                "memory is short, or train on more devices"
            )
        cache = of_data(self, "latent_cache")
        if cache is not None:
            cache.check_codec(self.codec.name, self.codec.hash)

    @property
    def trained(self) -> list[Parameter]:
        """What the phase trains; asked anew, since sharding puts others in their place."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @property
    def encoders(self) -> Encoders:
        return self._frozen[0]

    @property
    def codec(self) -> Codec:
        return self._frozen[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        how = self.optimisation
        adam: dict[str, Any] = {"betas": how.betas, "fused": how.fused or None}
        if how.muon:
            made: torch.optim.Optimizer = Muon(self.trained, how.muon, [], how.learning_rate, **adam)
        else:
            made = torch.optim.AdamW(self.trained, how.learning_rate, weight_decay=how.weight_decay, **adam)
        remember_rates(made)
        return made

    # ---- training ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        random = step_random(self, self.seed)
        source, driving = self.latents(batch)
        conditions = self.dropped(self.conditions(batch, source, self.optimisation.teacher_poses), random)
        denoised = self.denoise(driving, conditions, random, self.loss.timesteps)
        regions = losses.region_errors(self.loss, denoised.error, batch.driving_region)
        terms = {"denoising": denoised.error.mean(), **regions}
        if self.loss.own_features:
            terms["own_features"] = self.own_feature_loss(denoised.estimate, conditions.driving_pose, batch.driving)
        check_finite(self, {f"loss/{name}": term for name, term in terms.items()}, batch)
        self.log_dict({f"loss/{name}": term.detach() for name, term in terms.items()})
        weights = {"denoising": 1.0, **dataclasses.asdict(self.loss)}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        how = self.optimisation
        rate = scale_rates(optimizer, rate_factor(self.global_step, how.warmup_steps, how.decay_steps))
        norm = clip_gradient(self.trained, how.clip_norm)
        self.log_dict({"grad_norm/animator": norm, "learning_rate/animator": rate})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: a checkpoint is written before that.
        super().optimizer_step(*args, **kwargs)
        for name, average in self.average.items():
            update_average(average, self.network.get_submodule(name), self.optimisation.ema_decay, self.global_step)

    @torch.no_grad()
    def latents(self, batch: Batch) -> tuple[Float[Tensor, "B c h w"], Float[Tensor, "B K c h w"]]:
        """Of source and driving frames: from the cache where the batch brings them, otherwise encoded now.

        The mode of a VAE's posterior in both cases, so that both give the same loss **(ours)**.
        """
        if batch.source_latent is not None and batch.driving_latent is not None:
            return batch.source_latent.float(), batch.driving_latent.float()
        frames = batch.driving.shape[1]
        encoded = self.codec.encode(torch.cat([batch.source, batch.driving.flatten(0, 1)]))
        sources = len(batch.source)
        return encoded[:sources], encoded[sources:].unflatten(0, (sources, frames))

    def conditions(self, batch: Batch, source_latent: Float[Tensor, "B c h w"], labels: bool = False) -> Conditions:
        """P_s, P_d and e of `motion`; the reference read from the source's latent."""
        source_pose, driving_pose, codes = self.motion(batch, labels)
        return Conditions(source_pose, driving_pose, self.network.encode_reference(source_latent, source_pose), codes)

    def motion(self, batch: Batch, labels: bool = False) -> Motion:
        """Read by the frozen encoders; with `labels`, poses by the labels, where there are any."""
        source_weight, driving_weight = batch.source_pose_weight, batch.driving_pose_weight
        if labels and (source_weight > 0).all() and (driving_weight > 0).all():  # nothing is left to be read
            source_pose, driving_pose = batch.source_pose, batch.driving_pose
        else:
            source_pose, driving_pose = self.read_poses(batch.source, batch.posed)
            if labels:
                source_pose = known_poses(batch.source_pose, source_weight, source_pose)
                driving_pose = known_poses(batch.driving_pose, driving_weight, driving_pose)
        return source_pose, driving_pose, self.codes_of_frames(batch.expression_view)

    def read_poses(
        self, source: Float[Tensor, "B 3 H W"], pose_view: Float[Tensor, "B K 3 H W"]
    ) -> tuple[Float[Tensor, "B 3 4"], Float[Tensor, "B K 3 4"]]:
        """P_s and P_d, by the frozen encoder."""
        driving = self.encoders.read_pose(pose_view.flatten(0, 1)).float().unflatten(0, pose_view.shape[:2])
        return self.encoders.read_pose(source).float(), driving

    def codes_of_frames(self, expression_view: Float[Tensor, "B K 3 H W"]) -> Float[Tensor, "B K E"]:
        return self.read_codes(expression_view.flatten(0, 1)).float().unflatten(0, expression_view.shape[:2])

    @property
    def joint_code(self) -> bool:
        """Whether the encoders give one code for pose and expression."""
        return self.encoders.config.joint_code

    def read_codes(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N E"]:
        """e, by the frozen encoders."""
        return self.encoders.read_motion(pictures)[1]

    def dropped(self, conditions: Conditions, random: torch.Generator) -> Conditions:
        """Condition dropout, drawn anew for each sample."""
        samples = len(conditions.source_pose)
        chance = torch.rand(2, samples, generator=random, device=random.device)
        keep_expression: Bool[Tensor, "B"] = chance[0] >= self.loss.drop_expression
        keep: Bool[Tensor, "B"] = chance[1] >= self.loss.drop_all
        return dataclasses.replace(conditions, keep_expression=keep_expression, keep=keep)

    def denoising_error(
        self, latent: Float[Tensor, "B F c h w"], conditions: Conditions, random: torch.Generator
    ) -> Float[Tensor, ""]:
        """‖ε − ε_θ(z_t, c; t)‖², or the same of v or z_0, over all t alike."""
        return self.denoise(latent, conditions, random).error.mean()

    def denoise(
        self,
        latent: Float[Tensor, "B F c h w"],
        conditions: Conditions,
        random: torch.Generator,
        timesteps: Literal["uniform", "rising"] = "uniform",
    ) -> Denoised:
        """The network on latents with noise of random steps; one t for all frames of a sample."""
        noise = torch.randn(latent.shape, generator=random, device=latent.device)
        count = self.noising.config.num_train_timesteps
        t = torch.randint(count, (len(latent),), generator=random, device=latent.device)
        if timesteps == "rising":  # the greater of two
            t = t.maximum(torch.randint(count, (len(latent),), generator=random, device=latent.device))
        noisy = self.noising.add_noise(latent, noise, t)
        estimate = self.network(noisy, t, conditions, temporal=self.phase == "video")
        wanted = losses.wanted(self.loss.prediction, self.noising, latent, noise, t)
        weight = losses.snr_weight(self.loss, self.noising.alphas_cumprod, t)
        error = (estimate.float() - wanted).square() * weight[:, None, None, None, None]
        return Denoised(estimate, error)

    def own_feature_loss(
        self,
        estimate: Float[Tensor, "B F c h w"],
        pose: Float[Tensor, "B F 3 4"],
        real: Float[Tensor, "B F 3 H W"],
    ) -> Float[Tensor, ""]:
        """The frozen expression encoder on the faces of ẑ_0 and of I_d, at the same place."""
        pictures = self.codec.decode(estimate.flatten(0, 1)), real.flatten(0, 1)
        seen = (
            expression_input(self.encoders.fitted(picture), pose.flatten(0, 1), self.encoders.config)
            for picture in pictures
        )
        return own_feature_loss(self.encoders["expression_encoder"], *seen)

    # ---- validation --------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[AnimatorUNet]:
        """The network with the moving averages in their places; also the reference is to be read within."""
        trained = {name: self.network.get_submodule(name) for name in self.average}
        for name, average in self.average.items():
            setattr(self.network, name, average)
        try:
            yield self.network
        finally:
            for name, unet in trained.items():
                setattr(self.network, name, unet)

    def on_validation_epoch_start(self) -> None:
        self.drawn = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # The same noise in every validation, so that its loss falls smoothly, and on any number of ranks.
        ranks = 1 if self._trainer is None else self.trainer.world_size
        random = torch.Generator(self.device).manual_seed(batch_idx * ranks + self.global_rank)
        source, driving = self.latents(batch)
        with self.averaged():
            conditions = self.conditions(batch, source)
            error = self.denoising_error(driving, conditions, random)
        self.evaluation.update_error(error, len(driving))
        count = fewest(self, max(0, min(len(source), -(-self.sampled // ranks) - self.drawn)))
        if count:
            assert conditions.expression is not None
            motion = conditions.source_pose, conditions.driving_pose, conditions.expression
            made = self.reenact(source[:count], motion)
            self.evaluation.update_pictures(made, batch.driving[:count], batch.source[:count])
            self.drawn += count

    @torch.no_grad()
    def reenact(self, source: Float[Tensor, "n c h w"], motion: Motion) -> Float[Tensor, "n K 3 H W"]:
        """Î of the first n samples by the moving average, drawn by the sampler; pictures in [-1, 1]."""
        temporal = self.phase == "video"  # as in training: the image phase's frames do not follow each other
        made = []
        with self.averaged() as network:
            for latent, source_pose, driving_pose, codes in zip(source, *motion, strict=False):
                driving = zip(driving_pose, codes, strict=True)
                latents = sample(network, latent, source_pose, driving, self.sampler, self.schedule, temporal)
                made.append(torch.stack(list(decode_frames(self.codec, latents))))
        return torch.stack(made)

    @torch.no_grad()
    def animate(
        self,
        source: Float[Tensor, "N 3 H W"],
        pose_view: Float[Tensor, "N 3 H W"],
        expression_view: Float[Tensor, "N 3 H W"],
    ) -> Float[Tensor, "N 3 H W"]:
        """One picture of each source, each drawn by itself from the same noise; in [-1, 1]."""
        motion = (*self.read_poses(source, pose_view[:, None]), self.codes_of_frames(expression_view[:, None]))
        return self.reenact(self.codec.encode(source), motion)[:, 0]

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.evaluation.compute().items()})
        self.evaluation.reset()

    @torch.no_grad()
    def pictures(self, batch: Batch, samples: int) -> dict[str, Float[Tensor, "3 H W"]]:
        """What TensorBoard shows of a batch, by tag, values in [0, 1]."""
        source, _ = self.latents(batch)
        count = fewest(self, min(samples, self.sampled, len(source)))
        if not count:
            return {}
        made = self.reenact(source[:count], self.motion(batch))
        return {"preview/source_drivers_outputs": pictures.reenactment_grid(batch, made)}

    def report(self, figures: Mapping[str, float]) -> str:
        return report(figures)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises `ExportError` where the run went on with other encoders, or `CodecError` with another codec."""
        said = checkpoint["animator"]
        check_trained_on(self.encoders_folder, said["encoders_hash"], self.encoders_hash)
        if said["codec_hash"] != self.codec.hash:
            raise CodecError(
                f"{self.codec.name}: not the codec that this run was trained with. Put that one back, or train in a "
                "new --run."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # As plain values: an export reads the checkpoint without unpickling classes.
        checkpoint["animator_config"] = dataclasses.asdict(self.network.config)
        checkpoint["animator"] = {
            "codec": self.codec_name,
            "codec_hash": self.codec.hash,
            "encoders": str(self.encoders_folder),
            "encoders_hash": self.encoders_hash,
            "phase": self.phase,
            "schedule": self.schedule,
            "sampler": {key: value for key, value in dataclasses.asdict(self.sampler).items() if key != "seed"},
            "size": of_data(self, "size"),
            "crop": crop_contract(self),
        }


def check_fit(config: AnimatorConfig, encoders: Encoders, codec: Codec) -> None:
    """Raises `ValueError` where the network was made for another codec or other encoders."""
    found = encoders.config.expression_dim
    if found != config.expression_dim:
        raise ValueError(
            f"network.expression_dim is {config.expression_dim}, the encoders' code has {found}: "
            f"set network.expression_dim to {found}"
        )
    if codec.channels != config.latent_channels:
        raise ValueError(
            f"codec {codec.name} makes latents of {codec.channels} channels, network.unet is made for "
            f"{config.latent_channels}: set unet.in_channels and out_channels to {codec.channels}"
        )
