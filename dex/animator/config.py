"""Sizes of the stage-2 networks. The defaults are the paper's, with Stable Diffusion 1.5; smaller is another `unet`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def stable_diffusion() -> dict[str, Any]:
    """Stable Diffusion 1.5's unet/config.json, what diffusers' `UNet2DConditionModel` is built from."""
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }


# Parts of other families' UNets that read conditions which the animator does not have, or would rescale the ray map.
FOREIGN = (
    "addition_embed_type",
    "center_input_sample",
    "class_embed_type",
    "dual_cross_attention",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "only_cross_attention",
    "time_cond_proj_dim",
)
# Settings that may be spelled out but have one value only.
FIXED = {"attention_type": "default", "mid_block_type": "UNetMidBlock2DCrossAttn"}
BLOCK_TYPES = {
    "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
    "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
}


@dataclass(frozen=True)
class AnimatorConfig:
    """Sizes of the reference and the denoising UNet and of what is added to them (DeX-Portrait, sec. 3.2)."""

    expression_dim: int = 512
    expression_tokens: int = 32  # e is read as that many tokens of expression_dim / expression_tokens
    frames: int = 24  # longest window of the temporal attention
    ray_map: bool = True  # the paper's ablations: without it,
    reference_warping: bool = True  # and without the warped residual
    # (ours) Depth of the reference's volumes is counted from an average head's front, ± so much in canonical units, and
    # both UNets are told where on that head each cell is (see `dex.motion.head_surface`), the denoiser beside its ray
    # map and not without it. Square pictures only. 0: as in the paper, volumes of [-1, 1]³ and nothing else told.
    shell: float = 0.0
    unet: dict[str, Any] = field(default_factory=stable_diffusion)  # in_channels = out_channels = latent channels

    def __post_init__(self) -> None:
        if self.expression_tokens < 1:
            raise ValueError(f"expression_tokens is {self.expression_tokens}, need at least one")
        if self.expression_dim % self.expression_tokens:
            raise ValueError(
                f"expression_dim {self.expression_dim} must be a multiple of expression_tokens {self.expression_tokens}"
            )
        if self.shell < 0:
            raise ValueError(f"shell is {self.shell}, need 0 (none) or a depth above 0")
        if self.frames < 1:
            raise ValueError(f"frames = {self.frames}: the temporal attention needs room for at least one")
        if self.unet.get("in_channels") is None or self.unet["in_channels"] != self.unet.get("out_channels"):
            found = f"{self.unet.get('in_channels')} and {self.unet.get('out_channels')}"
            raise ValueError(f"unet: in_channels and out_channels are {found}; needed is the latent's for both")
        foreign = {name: self.unet[name] for name in FOREIGN if self.unet.get(name)}
        foreign |= {name: self.unet[name] for name, value in FIXED.items() if self.unet.get(name, value) != value}
        foreign |= {
            name: self.unet[name] for name, known in BLOCK_TYPES.items() if set(self.unet.get(name, ())) - known
        }
        if foreign:
            raise ValueError(f"unet: not of Stable Diffusion 1.5's kind: {foreign}")
        if self.unet.get("up_block_types", ["CrossAttnUpBlock2D"])[-1] != "CrossAttnUpBlock2D":
            raise ValueError("unet: the last of up_block_types must be CrossAttnUpBlock2D, where the reference ends")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AnimatorConfig:
        """Inverse of `dataclasses.asdict`."""
        return cls(**content)

    @property
    def latent_channels(self) -> int:
        return int(self.unet["in_channels"])

    @property
    def token_dim(self) -> int:
        """Width of an expression token: 16 in the paper."""
        return self.expression_dim // self.expression_tokens
