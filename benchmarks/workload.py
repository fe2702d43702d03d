"""A training built from its configs to be measured, and random stand-ins for what it would fetch or find trained."""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import lpips
import torch
import yaml
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dex.animator.codec import Autoencoder, Codec, load_codec
from dex.animator.trainer import Animator
from dex.batch import BLENDSHAPES, FACE, Batch, to_float
from dex.data.synthetic.module import SyntheticHeads
from dex.data.talking_heads import TalkingHeads
from dex.fit import QUICKSTART, FitCLI, make_cli
from dex.motion.config import MotionConfig
from dex.motion.encoders import Encoders
from dex.motion.losses import PerceptualLoss

# Stable Diffusion 1.5's vae/config.json.
STABLE_DIFFUSION_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}


def build(configs: Sequence[Path], changes: Sequence[str] = ()) -> FitCLI:
    """Model and data as `python -m dex.fit` builds them, without a run folder; `changes` are its further arguments.

    Everything is trained in every step from the first: what a short run learns first, or in some steps only, would be
    measured alone. Raises `ValueError` for configs that do not parse.
    """
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    given = [f"--config={path}" for path in configs]
    settings = merged(configs)
    if settings["model"]["class_path"].endswith("MotionTrainer"):
        first = "--model.init_args.optimisation"
        given += [f"{first}.{name}" for name in ("anchors_first=0", "teacher_poses=0", "encoders_every=1")]
        given += ["--model.init_args.loss.adversarial_start=0"]
    with tempfile.TemporaryDirectory() as folder:
        return make_cli([*given, f"--run={folder}", "--trainer.accelerator=cpu", "--trainer.precision=32", *changes])


def merged(configs: Sequence[Path]) -> dict[str, Any]:
    """The configs as plain values, a later one on top. Raises `ValueError` where one is no configuration."""
    content: dict[str, Any] = {}
    for path in configs:
        try:
            content = overlay(content, yaml.safe_load(path.read_text()))
        except (OSError, yaml.YAMLError, AttributeError) as error:
            why = " ".join(str(error).split())  # YAML's own takes several lines
            raise ValueError(f"{path}: no configuration ({why}). Give one of configs/*.yaml.") from error
    if not {"model", "data"} <= content.keys():
        raise ValueError(
            f"{', '.join(map(str, configs))}: no model and data. An overlay follows the config it changes."
        )
    return content


def overlay(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {key: overlay(below.get(key), above[key]) if key in above else below[key] for key in {**below, **above}}


def bare_trainer(steps: int, accelerator: str, precision: str, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's trainer with nothing around the steps."""
    return L.Trainer(
        max_steps=steps,
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # one of its strings
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


# ---- stand-ins -------------------------------------------------------------------------------------------------------


def without_downloads(configs: Sequence[Path]) -> list[str]:
    """Further arguments by which a config builds without weights from elsewhere; `random_parts` puts others there."""
    if merged(configs)["model"]["class_path"].endswith("MotionTrainer"):
        return ["--model.init_args.perceptual=none"]
    return ["--model.init_args.base=null", "--model.init_args.start=null"]


def random_parts(model: L.LightningModule, perceptual: bool) -> None:
    """Encoders, codec and perceptual network of the real ones' shapes, with random weights."""
    if isinstance(model, Animator):
        encoders = Encoders(encoder_sizes(model.network.config.expression_dim))
        model._frozen = [encoders, random_codec(model.codec_name)]
        model.network.open_additions()
        model.begin_average()
    elif perceptual:
        cast(Any, model)._perceptual = [RandomPerceptual()]


def encoder_sizes(expression_dim: int) -> MotionConfig:
    """The paper's, or the quickstart's where the code has another width."""
    paper = MotionConfig()
    if expression_dim == paper.expression_dim:
        return paper
    network = merged([QUICKSTART])["model"]["init_args"]["network"]
    return MotionConfig.from_dict({**network, "expression_dim": expression_dim})


def random_codec(name: str) -> Codec:
    """Space-to-depth is itself; any other name stands for Stable Diffusion's VAE."""
    if name.startswith("space-to-depth"):
        return load_codec(name)
    return Autoencoder(AutoencoderKL.from_config(STABLE_DIFFUSION_VAE), "random")


def latent_factor(codec: str) -> int:
    """Pixels a side that become one cell of the latent."""
    kind, _, factor = codec.partition(":")
    return int(factor) if kind == "space-to-depth" else 2 ** (len(STABLE_DIFFUSION_VAE["block_out_channels"]) - 1)


class RandomPerceptual(PerceptualLoss):
    """The paper's VGG16 loss on random weights."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.name = "vgg16"
        self.network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        self.requires_grad_(False).eval()


class RandomBatches(L.LightningDataModule):
    """One batch of noise, of the shapes that the given data would yield, again and again."""

    def __init__(self, data: TalkingHeads | SyntheticHeads) -> None:
        super().__init__()
        self.batch_size, self.size = data.batch_size, data.size
        self.second_view = isinstance(data, SyntheticHeads) and data.second_view
        if isinstance(data, SyntheticHeads):
            self.drivers = data.drivers
        else:
            how = data.sampling
            self.drivers = how.clip_length if how.mode == "clip" else how.drivers

    def batch(self) -> Batch:
        b, k, side = self.batch_size, self.drivers, self.size
        still = torch.eye(3, 4)

        def noise(*shape: int) -> Tensor:
            return torch.randint(0, 256, (*shape, 3, side, side), dtype=torch.uint8)

        driving, pose = noise(b, k), still.expand(b, k, 3, 4).clone()
        return Batch(
            key=[f"random-{number}" for number in range(b)],
            source=noise(b),
            driving=driving,
            expression_view=noise(b, k) if self.second_view else driving,
            view_pose=2 * pose if self.second_view else pose,
            view_pose_weight=torch.ones(b, k),
            source_pose=still.expand(b, 3, 4).clone(),
            driving_pose=pose,
            source_pose_weight=torch.ones(b),
            driving_pose_weight=torch.ones(b, k),
            driving_blendshapes=torch.zeros(b, k, len(BLENDSHAPES)),
            driving_region=torch.full((b, k, side, side), FACE, dtype=torch.uint8),
            source_region=torch.full((b, side, side), FACE, dtype=torch.uint8),
        )

    def train_dataloader(self) -> Repeated:
        return Repeated(self.batch())

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return to_float(batch)


class Repeated:
    """What Lightning takes for a loader; torch's own draws a random number, which fake tensors cannot."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch)


class RandomLatents(L.Callback):
    """Gives each batch latents, as the cache of a codec would, so that training need not encode them."""

    def __init__(self, channels: int, factor: int) -> None:
        self.channels, self.factor = channels, factor

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        samples, drivers, _, height, width = batch.driving.shape
        cell = (self.channels, height // self.factor, width // self.factor)
        batch.source_latent = torch.randn(samples, *cell, device=batch.driving.device)
        batch.driving_latent = torch.randn(samples, drivers, *cell, device=batch.driving.device)
