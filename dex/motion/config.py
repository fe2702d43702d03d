"""Sizes of the stage-1 networks. The defaults are the paper's at 256²; a smaller form is a few smaller numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class MotionConfig:
    """Every width and depth of stage 1 (DeX-Portrait, sec. 3.1); written to config.json beside exported weights."""

    size: int = 256  # pictures, both sides
    # 3D appearance feature f: channels × depth × (volume_size)²
    volume_channels: int = 32
    volume_depth: int = 16
    volume_size: int = 64
    # 0: the volume is the paper's, over [-1, 1]³. Above: its depth is measured from an average head's front, ± so many
    # half picture sides, and both ends know where on the head a pixel is (ours, `dex.motion.head_surface`)
    shell: float = 0.0
    appearance_width: int = 64  # channels of the first 2D convolution; doubles at each halving
    appearance_blocks: int = 6  # 3D residual blocks
    middle_size: int = 32  # where the flattened, warped feature enters the decoder
    # pose encoder: ConvNeXt-Tiny by default
    pose_stem: Literal["patch", "convolutions"] = "patch"  # ConvNeXt's own, or strided convolutions: learns much faster
    pose_dims: tuple[int, ...] = (96, 192, 384, 768)
    pose_depths: tuple[int, ...] = (3, 3, 9, 3)
    pose_layer_scale: float = 1e-6  # ConvNeXt's residual branches start this small; 1 learns faster in a short run
    # expression encoder: FAN, its hourglasses at fan_size²
    fan_size: int = 64
    fan_width: int = 256
    fan_stacks: int = 4
    fan_depth: int = 4  # halvings inside one hourglass
    expression_dim: int = 512
    # One code for all motion, the usual design that this one is compared with: e is read from the whole picture, not
    # from the upright face, and nothing is warped.
    joint_code: bool = False
    # decoder: channels at resolution r are min(decoder_cap, decoder_width · size / r)
    style_dim: int = 2048
    decoder_width: int = 128
    decoder_cap: int = 512
    discriminator_width: int = 64
    discriminator_cap: int = 512

    def __post_init__(self) -> None:
        for name in ("size", "volume_size", "middle_size", "fan_size"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} = {value} must be a power of two: every stage halves or doubles")
        if not 8 <= self.middle_size <= self.volume_size < self.size:
            raise ValueError(
                f"middle_size {self.middle_size}, volume_size {self.volume_size}, size {self.size}: "
                "needed is 8 <= middle_size <= volume_size < size"
            )
        if self.fan_size >= self.size or self.fan_size >> self.fan_depth < 1:
            raise ValueError(
                f"fan_size {self.fan_size} must be below size {self.size}, and not be gone after fan_depth "
                f"{self.fan_depth} halvings"
            )
        if self.shell < 0:
            raise ValueError(f"shell = {self.shell} must be 0 for a volume over [-1, 1]³, or a distance above it")
        if len(self.pose_dims) != len(self.pose_depths):
            raise ValueError(f"pose_dims {self.pose_dims} and pose_depths {self.pose_depths} differ in length")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> MotionConfig:
        """Inverse of `dataclasses.asdict`, also after a trip through JSON, which knows no tuples."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**values)

    def decoder_channels(self, resolution: int) -> int:
        """Channels of the decoder at a resolution; 512, 512, 512, 512, 256, 128 at 8² … 256² in the paper's size."""
        return min(self.decoder_cap, self.decoder_width * self.size // resolution)

    def rgb_channels(self, resolution: int) -> int:
        """Channels of the toRGB* pyramid: 96 at 8² down to 3 at 256²."""
        return 3 * self.size // resolution
