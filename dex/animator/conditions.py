"""What the denoiser is told: the source's reference, the poses and the expression code (DeX-Portrait, sec. 3.2).

B samples (one source each), F frames of each; the networks see the frames of all samples in one row of B·F.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """What the reference UNet keeps of each source, one entry a transformer block, in the order in which they act."""

    tokens: tuple[Float[Tensor, "B N C"], ...]  # normalised, joined to the denoiser's keys and values
    features: tuple[Float[Tensor, "B N C"], ...]  # hidden states at the block's entrance, warped as 3D features


# What follows from poses and reference alone, by name: warped reference, its keys and values, the maps of the poses.
# For one set of those, so others want a new one. It holds a hidden state of every block for every frame of a window.
Memory = dict[Hashable, Any]


@dataclass(frozen=True)
class Conditions:
    """All conditions of B sources and F frames. `None` in place of this object is ∅."""

    source_pose: Float[Tensor, "B 3 4"]
    driving_pose: Float[Tensor, "B F 3 4"]
    reference: Reference
    expression: Float[Tensor, "B F E"] | None  # None: c|exp
    # Dropout while training; None keeps every sample.
    keep_expression: Bool[Tensor, "B"] | None = None
    keep: Bool[Tensor, "B"] | None = None  # False drops pose, reference and expression together: ∅ for that sample
    memory: Memory | None = None  # for sampling, whose many steps are told the same

    def without_expression(self) -> Conditions:
        """c|exp: pose and reference alone. The expression attention is skipped, not multiplied by zero."""
        return dataclasses.replace(self, expression=None, keep_expression=None)


@dataclass(frozen=True)
class FrameConditions:
    """`Conditions` laid out frame by frame. The reference stays one entry a source: what is the same for all its frames
    is computed once, then expanded."""

    reference: Reference
    source_pose: Float[Tensor, "BF 3 4"]
    driving_pose: Float[Tensor, "BF 3 4"]
    keep: Float[Tensor, "BF 1 1"] | None
    expression: Float[Tensor, "BF T D"] | None
    keep_expression: Float[Tensor, "BF 1 1"] | None
    memory: Memory | None = None

    def recall(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, or what it gave at an earlier step of the same sampling."""
        if self.memory is None:
            return make()
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]


@dataclass(frozen=True)
class BlockConditions:
    """What each transformer block of the denoiser reads, made once a forward pass; `told` None is ∅."""

    size: tuple[int, int]  # of the latent, h and w
    frames: int
    temporal: bool
    told: FrameConditions | None

    def per_frame(self, value: Float[Tensor, "B ..."]) -> Float[Tensor, "BF ..."]:
        """One entry a source, repeated for each of its frames."""
        return per_frame(value, self.frames)

    def feature_size(self, tokens: int) -> tuple[int, int]:
        """Height and width of a feature map of `tokens` cells: the latent's, halved as often as the UNet halved it."""
        height, width = self.size
        while height * width > tokens:
            height, width = -(-height // 2), -(-width // 2)
        assert height * width == tokens, f"{tokens} tokens are no halving of {self.size}"
        return height, width


def per_frame(value: Float[Tensor, "B ..."], frames: int) -> Float[Tensor, "BF ..."]:
    """One entry a source, repeated for each of its `frames` frames; a view where memory allows it."""
    return value[:, None].expand(-1, frames, *value.shape[1:]).flatten(0, 1)


def kept(contribution: Float[Tensor, "BF N C"], keep: Float[Tensor, "BF 1 1"] | None) -> Float[Tensor, "BF N C"]:
    """The contribution of a condition, exactly zero where it is dropped."""
    return contribution if keep is None else contribution * keep


def keep_weights(keep: Bool[Tensor, "B"] | None, frames: int, dtype: torch.dtype) -> Float[Tensor, "BF 1 1"] | None:
    """1 for the frames of a kept sample, 0 for the others."""
    return None if keep is None else per_frame(keep.to(dtype)[:, None, None], frames)
