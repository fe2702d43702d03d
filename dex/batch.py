"""The Batch contract: what every datamodule yields and every trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

# Labels of a facial-region map: the head without the face, the face's skin, eyes with lids and brows, lips and mouth.
BACKGROUND, HEAD, FACE, EYES, MOUTH = range(5)

# ARKit's blendshapes in MediaPipe's order, without its `_neutral`: the columns of `Batch.driving_blendshapes`.
BLENDSHAPES = tuple(
    """
    browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft
    cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
    eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft
    eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft
    mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight
    mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft
    mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft
    noseSneerRight
    """.split()  # noqa: SIM905
)


# Pose P and expression code e of one frame
FrameMotion = tuple[Float[Tensor, "3 4"], Float[Tensor, "E"]]


@dataclass
class Batch:
    """B samples of one source frame and K driving frames of the same subject (K = 4 pairs, or T of a clip).

    Pictures travel as uint8 RGB and become float in [-1, 1] on the device (`to_float`).
    """

    key: list[str]  # one a sample: clip keys and frame indices, enough to find it again
    source: Shaped[Tensor, "B 3 H W"]  # I_s
    driving: Shaped[Tensor, "B K 3 H W"]  # I_d
    # The frame that the expression code is read from: the same instant seen by another camera where there is one,
    # otherwise `driving` itself (DeX-Portrait, cross-view training).
    expression_view: Shaped[Tensor, "B K 3 H W"]
    # Label of the head pose in `expression_view`, by which its face is brought upright; weight 0: nobody knows it
    view_pose: Float[Tensor, "B K 3 4"]
    view_pose_weight: Float[Tensor, "B K"]
    source_pose: Float[Tensor, "B 3 4"]  # label P; only meaningful where its weight is > 0
    driving_pose: Float[Tensor, "B K 3 4"]
    source_pose_weight: Float[Tensor, "B"]  # confidence of the label in [0, 1], 0: no label
    driving_pose_weight: Float[Tensor, "B K"]
    # Label of the driving frame's expression: coefficients in [0, 1] by BLENDSHAPES, NaN where nobody knows
    driving_blendshapes: Float[Tensor, "B K 51"]
    # Facial regions of the driving frame, BACKGROUND … MOUTH
    driving_region: Shaped[Tensor, "B K H W"]
    # The same for the source: the expression augmentation warps and masks eyes and mouth of what the pose encoder sees
    source_region: Shaped[Tensor, "B H W"]
    # The frame that the driving pose is read from, where it is not `driving` itself: a swap whose truth is `driving`
    # takes its pose from here and its expression from `expression_view`.
    pose_view: Shaped[Tensor, "B K 3 H W"] | None = None
    # z of `source` and `driving` as the codec's encoder gives it, where a cache holds them (data_prep/latents.py)
    source_latent: Float[Tensor, "B c h w"] | None = None
    driving_latent: Float[Tensor, "B K c h w"] | None = None

    @property
    def posed(self) -> Shaped[Tensor, "B K 3 H W"]:
        """The frames that driving poses are read from: `pose_view` where there is one."""
        return self.driving if self.pose_view is None else self.pose_view

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, which a GPU copies from while the processor goes on; what fields share, they
        still share. Called by torch's `DataLoader(pin_memory=True)`."""
        tensors = {id(value): value for value in vars(self).values() if isinstance(value, Tensor)}
        pinned = {key: tensor.pin_memory() for key, tensor in tensors.items()}
        changed: dict[str, Any] = {name: pinned[id(value)] for name, value in vars(self).items() if id(value) in pinned}
        return replace(self, **changed)


def to_float(batch: Batch) -> Batch:
    """uint8 pictures in [0, 255] become float32 in [-1, 1], on whatever device the batch is."""
    pictures = ("source", "driving", "expression_view", "pose_view")
    present = {name: getattr(batch, name) for name in pictures if getattr(batch, name) is not None}
    converted: dict[str, Any] = {name: picture_to_float(picture) for name, picture in present.items()}
    return replace(batch, **converted)


def picture_to_float(picture: Shaped[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """uint8 in [0, 255] becomes float32 in [-1, 1]."""
    return picture.float().div_(127.5).sub_(1)


def blendshape_row(names: Sequence[str], values: Float[np.ndarray, "*b E"]) -> Float[np.ndarray, "*b 51"]:
    """Coefficients of any source in the columns of BLENDSHAPES; NaN for those it does not name."""
    row = np.full((*values.shape[:-1], len(BLENDSHAPES)), np.nan, np.float32)
    for column, name in enumerate(names):
        if name in BLENDSHAPES:
            row[..., BLENDSHAPES.index(name)] = values[..., column]
    return row


def to_unit(picture: Float[Tensor, "*b H W"]) -> Float[Tensor, "*b H W"]:
    """[-1, 1] becomes [0, 1], what picture files and TensorBoard take."""
    return ((picture.float() + 1) / 2).clamp(0, 1)
