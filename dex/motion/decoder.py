"""Expression-conditioned decoder: warped feature + style and expression code → picture (sec. 3.1, supplement)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dex.motion.config import MotionConfig
from dex.motion.layers import StyleConv


class ToRGB(nn.Module):
    """toRGB*: adds a narrow picture-like skip at one resolution to the enlarged, narrowed skip of the one below."""

    def __init__(self, channels: int, style_dim: int, below: int | None, out_channels: int) -> None:
        super().__init__()
        self.style_conv = StyleConv(channels, out_channels, style_dim, kernel=1, demodulate=False, activate=False)
        self.narrow = nn.Conv2d(below, out_channels, 1) if below else None

    def forward(
        self, x: Float[Tensor, "B C H W"], style: Float[Tensor, "B S"], skip: Float[Tensor, "B K h w"] | None
    ) -> Float[Tensor, "B K2 H W"]:
        out = self.style_conv(x, style)
        if skip is None or self.narrow is None:
            return out
        return out + F.interpolate(self.narrow(skip), scale_factor=2.0, mode="bilinear", align_corners=False)


class StyleStage(nn.Module):
    """Two StyleConvs; the first one changes the resolution by `scale`."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, scale: float) -> None:
        super().__init__()
        self.resample = StyleConv(in_channels, out_channels, style_dim, scale=scale)
        self.refine = StyleConv(out_channels, out_channels, style_dim)

    def forward(self, x: Float[Tensor, "B C H W"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B C2 H2 W2"]:
        return self.refine(self.resample(x, style), style)


class Decoder(nn.Module):
    """StyleGAN2's synthesis network with two changes.

    The feature enters in the middle (32×32 in the paper's size) and is carried *down* to 8×8 as well as up to 256×256,
    so that style and expression see large and small scales; and the skip pyramid starts wide (96 channels at 8×8) and
    narrows to RGB.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        middle, channels = config.middle_size, config.decoder_channels
        style = config.style_dim + config.expression_dim
        down = [middle // 2, middle // 4]
        up = [2**i for i in range(middle.bit_length(), config.size.bit_length())]
        self.middle = StyleConv(config.volume_channels * config.volume_depth, channels(middle), style)
        self.down = nn.ModuleList(StyleStage(channels(2 * r), channels(r), style, 0.5) for r in down)
        self.up = nn.ModuleList(StyleStage(channels(r // 2), channels(r), style, 2.0) for r in up)
        pyramid = [*reversed(down), middle, *up]
        self.to_rgb = nn.ModuleList(
            ToRGB(channels(r), style, config.rgb_channels(r // 2) if i else None, config.rgb_channels(r))
            for i, r in enumerate(pyramid)
        )

    def forward(self, feature: Float[Tensor, "B F h w"], style: Float[Tensor, "B S"]) -> Float[Tensor, "B 3 H W"]:
        """Returns RGB in about [-1, 1], not clamped. `style` is concat(style code, e)."""
        middle = self.middle(feature, style)
        below = walk(self.down, middle, style)
        above = walk(self.up, middle, style)
        skip = None
        for to_rgb, x in zip(self.to_rgb, [*reversed(below), middle, *above], strict=True):
            skip = to_rgb(x, style, skip)
        assert skip is not None  # there is always at least one stage
        return skip.float()


def walk(stages: nn.ModuleList, x: Tensor, style: Tensor) -> list[Tensor]:
    """The output of every stage, each fed with the one before."""
    outputs = []
    for stage in stages:
        x = stage(x, style)
        outputs.append(x)
    return outputs
