"""The transformer blocks of both UNets: Stable Diffusion's own layers with the animator's additions around them.

Each block holds norm1, attn1, norm3 and ff of the `BasicTransformerBlock` whose place it takes, under the same names,
so that base weights find them; the text cross-attention (norm2, attn2) is dropped. diffusers calls a block with seven
arguments, by name or, when checkpointing, by position; all but the first and `cross_attention_kwargs` are None here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from jaxtyping import Float
from torch import Tensor, nn

from dex.animator.conditions import BlockConditions, FrameConditions, kept
from dex.animator.config import AnimatorConfig
from dex.motion.head_surface import warp_shell
from dex.pose import warp_volume


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all its parameters set to zero: it contributes nothing until it has learned to."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def volume_depth(channels: int, height: int) -> int:
    """Depth of the 3D feature that c channels at height h are read as: h/2, or the nearest divisor of c below.

    (c, h) = (320, 64) → 32, (640, 32) → 16, (1280, 16) → 8, (1280, 8) → 4 (DeX-Portrait, sec. 3.2, reference warping).
    """
    depth = max(1, height // 2)
    while channels % depth:
        depth -= 1
    return depth


def as_volume(tokens: Float[Tensor, "B N c"], height: int, width: int) -> Float[Tensor, "B C D h w"]:
    """Hidden states read as a 3D feature, C = 2c/h channels of depth D = h/2 (DeX-Portrait, sec. 3.2)."""
    volume = tokens.mT.unflatten(2, (height, width))
    return volume.unflatten(1, (-1, volume_depth(tokens.shape[2], height)))


class ReferenceBlock(nn.Module):
    """A transformer block of the reference UNet: self-attention and feed-forward; notes what enters it.

    The network's last block is read and no more: what would follow its entrance reaches no loss, so `ends` drops it.
    """

    def __init__(self, block: BasicTransformerBlock, index: int, ends: bool) -> None:
        super().__init__()
        self.index = index
        self.ends = ends
        self.norm1 = block.norm1
        if not ends:
            self.attn1, self.norm3, self.ff = block.attn1, block.norm3, block.ff

    def forward(
        self,
        hidden_states: Float[Tensor, "B N C"],
        attention_mask: None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        timestep: None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: None = None,
    ) -> Float[Tensor, "B N C"]:
        """Puts its input, normed and as it is, into `cross_attention_kwargs["record"]` under its own index."""
        hidden, normed = hidden_states, self.norm1(hidden_states)
        # setdefault: gradient checkpointing runs the block a second time.
        (cross_attention_kwargs or {})["record"].setdefault(self.index, (normed, hidden))
        if self.ends:
            return hidden
        hidden = hidden + self.attn1(normed)
        return hidden + self.ff(self.norm3(hidden))


class DenoisingBlock(nn.Module):
    """A transformer block of the denoising UNet. In order: warped reference, self- and reference attention, expression
    attention, feed-forward, temporal attention (DeX-Portrait, sec. 3.2).

    At initialisation it computes exactly what Stable Diffusion's block computes without its text attention: of each
    addition the last layer is zero. Those last layers have no bias where a dropped condition must leave no trace.
    """

    def __init__(self, block: BasicTransformerBlock, index: int, config: AnimatorConfig) -> None:
        super().__init__()
        self.index, self.shell = index, config.shell
        self.norm1, self.attn1, self.norm3, self.ff = block.norm1, block.attn1, block.norm3, block.ff
        width, heads = block.dim, block.num_attention_heads
        # (ours) A 1×1 convolution over the depth slices of all channels, as ControlNet's zero convolutions.
        self.warped_out = zeroed(nn.Conv2d(width, width, 1, bias=False)) if config.reference_warping else None
        self.reference_out = zeroed(nn.Linear(width, width, bias=False))
        # (ours) Attention does not see the order of its keys: without a place of its own a token could not be told from
        # another, and e is a vector, not a set.
        self.expression_places = nn.Parameter(torch.randn(config.expression_tokens, config.token_dim))
        self.expression_norm = nn.LayerNorm(width)
        self.expression_attention = Attention(
            query_dim=width, cross_attention_dim=config.token_dim, heads=heads, dim_head=width // heads
        )
        zeroed(self.expression_attention.to_out[0])
        self.temporal = AnimateDiffTransformer3D(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=width,
            norm_num_groups=config.unet.get("norm_num_groups", 32),
            positional_embeddings="sinusoidal",
            num_positional_embeddings=config.frames,
        )
        zeroed(self.temporal.proj_out)

    def forward(
        self,
        hidden_states: Float[Tensor, "BF N C"],
        attention_mask: None = None,
        encoder_hidden_states: None = None,
        encoder_attention_mask: None = None,
        timestep: None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: None = None,
    ) -> Float[Tensor, "BF N C"]:
        """Reads its `BlockConditions` from `cross_attention_kwargs["conditions"]`."""
        conditions: BlockConditions = (cross_attention_kwargs or {})["conditions"]
        hidden, told = hidden_states, conditions.told
        if told is not None and self.warped_out is not None:
            warped = told.recall((self.index, "warped"), lambda: self.warped_reference(conditions, told))
            hidden = hidden + kept(warped, told.keep)
        hidden = hidden + self.self_attention(self.norm1(hidden), conditions)
        if told is not None and told.expression is not None:
            hidden = hidden + kept(self.attend_expression(hidden, told.expression), told.keep_expression)
        hidden = hidden + self.ff(self.norm3(hidden))
        return self.over_time(hidden, conditions) if conditions.temporal else hidden

    def open_additions(self) -> None:
        """Gives the last layers that start at zero the usual random weights, and joins the reference to the letter (see
        `self_attention`); the temporal attention, which the image phase does not train, stays at zero."""
        layers: list[Any] = [self.warped_out, self.expression_attention.to_out[0]]
        for layer in layers:
            if layer is not None:
                nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
        self.reference_out.load_state_dict({"weight": self.attn1.to_out[0].weight})

    def attend_expression(
        self, hidden: Float[Tensor, "BF N C"], tokens: Float[Tensor, "BF T D"]
    ) -> Float[Tensor, "BF N C"]:
        return self.expression_attention(self.expression_norm(hidden), tokens + self.expression_places)

    def warped_reference(self, conditions: BlockConditions, told: FrameConditions) -> Float[Tensor, "BF N C"]:
        """The reference's hidden state as a 3D feature of 2c/h channels, seen at the driver's pose (DeX-Portrait)."""
        assert self.warped_out is not None
        feature = told.reference.features[self.index]
        # In float32 before it is expanded, so that one source's volume stays a view for all its frames.
        volume = as_volume(feature.float(), *conditions.feature_size(feature.shape[1]))
        volume, poses = conditions.per_frame(volume), (told.source_pose, told.driving_pose)
        warped = warp_shell(volume, *poses, self.shell) if self.shell else warp_volume(volume, *poses)
        return self.warped_out(warped.flatten(1, 2).to(feature.dtype)).flatten(2).mT

    def self_attention(self, normed: Float[Tensor, "BF N C"], conditions: BlockConditions) -> Float[Tensor, "BF N C"]:
        """attn1(own) + Z (A(q; own ⊕ reference) - A(q; own)), A the heads before to_out, Z a linear map, zero at first.

        **(ours)** The paper joins the reference to the keys and values; that alone changes the softmax at step 0, when
        nothing may change. With Z the weight of to_out this is that joint attention to the letter.
        """
        query, key, value = self.attn1.to_q(normed), self.attn1.to_k(normed), self.attn1.to_v(normed)
        own = self.attend(query, key, value)
        output = self.attn1.to_out[1](self.attn1.to_out[0](own))
        told = conditions.told
        if told is None:
            return output
        tokens = told.reference.tokens[self.index]
        of_reference = told.recall((self.index, "attended"), lambda: (self.attn1.to_k(tokens), self.attn1.to_v(tokens)))
        joint_key, joint_value = (
            torch.cat([mine, conditions.per_frame(theirs)], dim=1)
            for mine, theirs in zip((key, value), of_reference, strict=True)
        )
        joint = self.attend(query, joint_key, joint_value)
        return output + kept(self.reference_out(joint - own), told.keep)

    def attend(
        self, query: Float[Tensor, "BF N C"], key: Float[Tensor, "BF M C"], value: Float[Tensor, "BF M C"]
    ) -> Float[Tensor, "BF N C"]:
        query, key, value = (part.unflatten(2, (self.attn1.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def over_time(self, hidden: Float[Tensor, "BF N C"], conditions: BlockConditions) -> Float[Tensor, "BF N C"]:
        """AnimateDiff's attention of each place over the frames of its sample, with its own residual."""
        picture = hidden.mT.unflatten(2, conditions.feature_size(hidden.shape[1]))
        return self.temporal(picture, num_frames=conditions.frames).flatten(2).mT
