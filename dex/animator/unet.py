"""The two UNets of stage 2, both diffusers' `UNet2DConditionModel` with Stable Diffusion 1.5's layers."""

from __future__ import annotations

import math
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
from dex.motion.head_surface import CHANNELS, coordinates, with_waves
from dex.pose import base_grid, full_precision, ray_map

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
    unet = widened(ReferenceUNet, config, where_channels(config))
    last = len(blocks_of(unet)) - 1
    replace_blocks(unet, lambda original, number: ReferenceBlock(original, number, ends=number == last))
    transformers(unet)[-1].proj_out = nn.Identity()
    unet.conv_norm_out, unet.conv_act, unet.conv_out = nn.Identity(), nn.Identity(), nn.Identity()
    return unet


def widened(kind: Any, config: AnimatorConfig, added: int) -> Any:  # diffusers' classes carry no types
    """Stable Diffusion's UNet whose first convolution reads `added` channels beside the latent, at zero at first."""
    latent = config.latent_channels
    unet = kind.from_config({**config.unet, "in_channels": latent + added})
    nn.init.zeros_(unet.conv_in.weight.data[:, latent:])
    return unet


def pose_channels(config: AnimatorConfig) -> int:
    """Of what the denoiser's first convolution is told of the poses: the ray map, and along a shell `where`."""
    return (3 + where_channels(config)) if config.ray_map else 0


def where_channels(config: AnimatorConfig) -> int:
    return CHANNELS + PLACES if config.shell else 0


# Of the waves that say where in the picture a cell is: half a period over it, a whole one, two
_FREQUENCIES = (math.pi / 2, math.pi, 2 * math.pi)
PLACES = 2 * (1 + 2 * len(_FREQUENCIES))


def where(pose: Float[Tensor, "N 3 4"], size: int) -> Float[Tensor, "N w size size"]:
    """Of each cell where on an average head in that pose it looks, and where in the picture it is **(ours)**.

    By the one a face's parts are found in another pose, by the other a background where it was. A UNet that starts from
    nothing takes long to know either: its convolutions have but the picture's edge to tell.
    """
    picture = base_grid(size, size, device=pose.device).movedim(-1, 0)
    places = with_waves(picture, _FREQUENCIES, dim=0).expand(len(pose), -1, -1, -1)
    return torch.cat([coordinates(pose, size), places], dim=1)


def denoising_unet(config: AnimatorConfig) -> UNet2DConditionModel:
    """Stable Diffusion's UNet with the animator's blocks, its first convolution widened by the pose's channels."""
    unet = widened(UNet2DConditionModel, config, pose_channels(config))
    replace_blocks(unet, lambda original, number: DenoisingBlock(original, number, config))
    return unet


class AnimatorUNet(nn.Module):
    """Reference UNet and denoising UNet. Each addition starts at zero: at step 0 ε is the base UNet's without its text.

    Image phase: both train (`spatial_parameters`), the reference under gradient with them, as both start from the same
    base weights and the paper freezes "the rest" only in the video phase, when `temporal_parameters` alone train.
    """

    def __init__(self, config: AnimatorConfig) -> None:
        super().__init__()
        self.config = config
        self.reference = reference_unet(config)
        self.denoiser = denoising_unet(config)

    def encode_reference(
        self, source_latent: Float[Tensor, "B c h w"], source_pose: Float[Tensor, "B 3 4"] | None = None
    ) -> Reference:
        """Once a source, at t = 0, never per step. Under gradient where the caller allows it (the image phase).

        Along a shell it is told where on the source's head each cell is, by `source_pose`.
        """
        latent = source_latent.to(self.reference.dtype)
        if self.config.shell:
            assert source_pose is not None, "along a shell the reference is read with its pose"
            latent = torch.cat([latent, where(source_pose, latent.shape[2]).to(latent)], dim=1)
        return Reference(*self.reference(latent))

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
            latent = torch.cat([latent, self.pose_maps(latent, told)], dim=1)
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
            memory=conditions.memory,
        )

    def expression_tokens(self, expression: Float[Tensor, "B F E"] | None) -> Float[Tensor, "BF T D"] | None:
        """e as T tokens of D dimensions, 32 × 16 in the paper."""
        if expression is None:
            return None
        return expression.flatten(0, 1).unflatten(1, (self.config.expression_tokens, -1)).to(self.denoiser.dtype)

    def pose_maps(self, latent: Float[Tensor, "BF c h w"], told: FrameConditions | None) -> Float[Tensor, "BF p h w"]:
        """The ray map, and along a shell where on the driving head each cell is, in the latent's precision, computed in
        float32; zero for ∅."""
        size = latent.shape[2:]
        if told is None:
            return latent.new_zeros(latent.shape[0], pose_channels(self.config), *size)
        maps = told.recall("pose_maps", lambda: self.maps_of(told, *size)).to(latent.dtype)
        return maps if told.keep is None else maps * told.keep[..., None]

    def maps_of(self, told: FrameConditions, height: int, width: int) -> Float[Tensor, "BF p h w"]:
        with full_precision(told.driving_pose):
            maps = ray_map(told.source_pose.float(), told.driving_pose.float(), height, width)
            if self.config.shell:
                maps = torch.cat([maps, where(told.driving_pose.float(), height)], dim=1)
        return maps

    def is_temporal(self) -> bool:
        """Whether the temporal attention adds anything, which it does not before the video phase."""
        last = (block.temporal.proj_out for block in blocks_of(self.denoiser))
        return any(bool(parameter.any()) for layer in last for parameter in layer.parameters())

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
            if self.config.shell:
                for unet in (self.reference, self.denoiser):
                    added = unet.conv_in.weight[:, self.config.latent_channels :]
                    nn.init.normal_(added, std=unet.conv_in.weight[0].numel() ** -0.5)

    def enable_gradient_checkpointing(self) -> None:
        """Keeps the activations at the blocks' borders only, and computes the others again in the backward pass."""
        self.reference.enable_gradient_checkpointing()
        self.denoiser.enable_gradient_checkpointing()
