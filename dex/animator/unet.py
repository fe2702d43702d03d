"""The two UNets of stage 2, both diffusers' `UNet2DConditionModel` with Stable Diffusion 1.5's layers (METHOD.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from dex.animator.blocks import DenoisingBlock, ReferenceBlock
from dex.animator.conditions import (
    BlockConditions,
    Conditions,
    FrameConditions,
    Reference,
    keep_weights,
    per_frame,
)
from dex.animator.config import AnimatorConfig
from dex.pose import full_precision, ray_map

__all__ = ["AnimatorUNet", "Conditions", "Reference"]


def transformers(unet: UNet2DConditionModel) -> list[Any]:
    """diffusers' transformers, which hold the blocks as `transformer_blocks`, in the order in which they act."""
    stages = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [attention for stage in stages for attention in getattr(stage, "attentions", ())]


def stages(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Its residual blocks and transformers: what holds nearly all of its weights, each of a size to gather at once."""
    parts = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [child for part in parts for kind in ("resnets", "attentions") for child in getattr(part, kind, ())]


def blocks_of(unet: UNet2DConditionModel) -> list[Any]:
    """The transformer blocks in the order in which they act."""
    return [block for transformer in transformers(unet) for block in transformer.transformer_blocks]


def replace_blocks(unet: UNet2DConditionModel, replacement: Callable[[BasicTransformerBlock, int], nn.Module]) -> None:
    """Puts `replacement(original, number)` in the place of each transformer block."""
    number = count()
    for transformer in transformers(unet):
        originals = transformer.transformer_blocks
        transformer.transformer_blocks = nn.ModuleList(replacement(block, next(number)) for block in originals)


class ReferenceUNet(UNet2DConditionModel):
    """Stable Diffusion's UNet up to the entrance of its last transformer block; what follows is left out."""

    def forward(self, latent: Float[Tensor, "B c h w"]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Each transformer block's input at t = 0, normed and as it is: (tokens, features) of `Reference`.

        Returned, not only written down, since FSDP2 gathers weights when the gradient of an output arrives.
        """
        record: dict[int, tuple[Tensor, Tensor]] = {}
        super().forward(latent, 0, None, cross_attention_kwargs={"record": record})
        tokens, features = zip(*(record[number] for number in sorted(record)), strict=True)
        return tokens, features


def reference_unet(config: AnimatorConfig) -> ReferenceUNet:
    unet = ReferenceUNet.from_config(config.unet)
    last = len(blocks_of(unet)) - 1
    replace_blocks(unet, lambda original, number: ReferenceBlock(original, number, ends=number == last))
    transformers(unet)[-1].proj_out = nn.Identity()
    unet.conv_norm_out, unet.conv_act, unet.conv_out = nn.Identity(), nn.Identity(), nn.Identity()
    return unet


def denoising_unet(config: AnimatorConfig) -> UNet2DConditionModel:
    """Stable Diffusion's UNet with the animator's blocks, its first convolution widened by the ray map's 3 channels."""
    latent = config.latent_channels
    unet = UNet2DConditionModel.from_config({**config.unet, "in_channels": latent + 3 * config.ray_map})
    replace_blocks(unet, lambda original, number: DenoisingBlock(original, number, config))
    nn.init.zeros_(unet.conv_in.weight.data[:, latent:])
    return unet


class AnimatorUNet(nn.Module):
    """Reference UNet and denoising UNet. Each addition starts at zero: at step 0 ε is the base UNet's without its text.

    Image phase: both train (`spatial_parameters`), the reference under gradient with them, as both start from the same
    base weights and METHOD.md freezes "the rest" only in the video phase, when `temporal_parameters` alone train.
    """

    def __init__(self, config: AnimatorConfig) -> None:
        super().__init__()
        self.config = config
        self.reference = reference_unet(config)
        self.denoiser = denoising_unet(config)

    def encode_reference(self, source_latent: Float[Tensor, "B c h w"]) -> Reference:
        """Once a source, at t = 0, never per step. Under gradient where the caller allows it (the image phase)."""
        return Reference(*self.reference(source_latent.to(self.reference.dtype)))

    def forward(
        self,
        z: Float[Tensor, "B F c h w"],
        timestep: Int[Tensor, "B"],
        conditions: Conditions | None,
        temporal: bool = False,
    ) -> Float[Tensor, "B F c h w"]:
        """ε_θ(z_t, c; t), in the precision of z; `conditions` None is ∅ and touches no reference.

        Without `temporal` the frames do not see each other. Raises ValueError where a window is longer than the
        temporal attention's positions.
        """
        frames = z.shape[1]
        if temporal and frames > self.config.frames:
            raise ValueError(
                f"{frames} frames at once, the temporal attention was made for {self.config.frames}. "
                "Sample in windows, or set frames in the network's configuration."
            )
        told = None if conditions is None else self.frame_by_frame(conditions, frames)
        latent = z.flatten(0, 1).to(self.denoiser.dtype)
        if self.config.ray_map:
            latent = torch.cat([latent, self.rays(latent, told)], dim=1)
        steps = timestep.repeat_interleave(frames)
        read = {"conditions": BlockConditions((z.shape[3], z.shape[4]), frames, temporal, told)}
        noise = self.denoiser(latent, steps, None, cross_attention_kwargs=read, return_dict=False)[0]
        return noise.unflatten(0, (-1, frames)).to(z.dtype)

    def frame_by_frame(self, conditions: Conditions, frames: int) -> FrameConditions:
        keep_expression = conditions.keep
        if conditions.keep_expression is not None:
            keep_expression = conditions.keep_expression & (True if keep_expression is None else keep_expression)
        return FrameConditions(
            reference=conditions.reference,
            source_pose=per_frame(conditions.source_pose, frames),
            driving_pose=conditions.driving_pose.flatten(0, 1),
            keep=keep_weights(conditions.keep, frames, self.denoiser.dtype),
            expression=self.expression_tokens(conditions.expression),
            keep_expression=keep_weights(keep_expression, frames, self.denoiser.dtype),
        )

    def expression_tokens(self, expression: Float[Tensor, "B F E"] | None) -> Float[Tensor, "BF T D"] | None:
        """e as T tokens of D dimensions, 32 × 16 in the paper."""
        if expression is None:
            return None
        return expression.flatten(0, 1).unflatten(1, (self.config.expression_tokens, -1)).to(self.denoiser.dtype)

    def rays(self, latent: Float[Tensor, "BF c h w"], told: FrameConditions | None) -> Float[Tensor, "BF 3 h w"]:
        """The ray map in the latent's precision, computed in float32; zero for ∅, as for the identity."""
        size = latent.shape[2:]
        if told is None:
            return latent.new_zeros(latent.shape[0], 3, *size)
        with full_precision(latent):
            rays = ray_map(told.source_pose.float(), told.driving_pose.float(), *size)
        rays = rays.to(latent.dtype)
        return rays if told.keep is None else rays * told.keep[..., None]

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """What the video phase trains: the temporal attention of every block."""
        for block in blocks_of(self.denoiser):
            yield from block.temporal.parameters()

    def spatial_parameters(self) -> Iterator[nn.Parameter]:
        """What the image phase trains: everything else, the reference UNet included."""
        temporal = {id(parameter) for parameter in self.temporal_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in temporal)

    def open_additions(self) -> None:
        """Takes reference, warped reference and expression into use at once, not from zero on **(ours)**: for training
        without base weights, where there is nothing to leave undisturbed and a start at zero only costs time."""
        with torch.no_grad():
            for block in blocks_of(self.denoiser):
                block.open_additions()

    def enable_gradient_checkpointing(self) -> None:
        """Keeps the activations at the blocks' borders only, and computes the others again in the backward pass."""
        self.reference.enable_gradient_checkpointing()
        self.denoiser.enable_gradient_checkpointing()
