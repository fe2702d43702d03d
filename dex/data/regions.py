"""Facial regions of a frame, drawn from its landmarks: the masks of the perceptual loss and of the augmentations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image, ImageDraw

from dex.data.shards import ShardError

BACKGROUND, HEAD, FACE, EYES, MOUTH = range(5)

# The head is the face's outline grown about its centre, and moved up by this share of its height for brow and hair.
_HEAD_GROWTH = 1.35
_HEAD_LIFT = 0.12
# Eyes and mouth with a rim: lids and the skin around the lips move with the expression.
_EYE_GROWTH = 1.6
_MOUTH_GROWTH = 1.25


@dataclass(frozen=True)
class LandmarkGroups:
    """Indices of a landmark scheme, each group a closed outline in drawing order."""

    face: tuple[int, ...]
    eyes: tuple[tuple[int, ...], ...]
    mouth: tuple[int, ...]


# MediaPipe's canonical face mesh: its published connection lists, put into walking order.
_MEDIAPIPE = LandmarkGroups(
    face=(
        *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
        *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
    ),
    eyes=(
        (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
        (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    ),
    mouth=(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),
)


@cache
def landmark_groups(scheme: str) -> LandmarkGroups:
    """The outlines of a scheme named in `ClipMeta.landmark_scheme`. Raises `ShardError` for an unknown one."""
    if scheme == "mediapipe_478":
        return _MEDIAPIPE
    if scheme == "synthetic":
        from dex.data.synthetic import LANDMARK_GROUPS as GROUPS  # it brings a compiler: only where it is needed

        return LandmarkGroups(face=GROUPS["face"], eyes=GROUPS["eyes"], mouth=GROUPS["mouth"])  # type: ignore[arg-type]
    raise ShardError(f"landmark scheme {scheme!r} is not known; known: 'mediapipe_478', 'synthetic'")


def region_map(landmarks: Float[np.ndarray, "L 2"], scheme: str, size: int) -> Shaped[np.ndarray, "size size"]:
    """uint8 map of one frame: 0 background, 1 head, 2 face, 3 eyes, 4 mouth. All 0 where no landmarks are known (NaN).

    `landmarks` are normalised image coordinates in [-1, 1]. The head is a grown outline of the face, not a matte.
    """
    canvas = Image.new("L", (size, size), BACKGROUND)
    if np.isfinite(landmarks).all():
        groups = landmark_groups(scheme)
        pixels = (landmarks + 1) * (size / 2) - 0.5
        draw = ImageDraw.Draw(canvas)
        face = pixels[list(groups.face)]
        _fill(draw, _grown(face, _HEAD_GROWTH) - [0, _HEAD_LIFT * np.ptp(face[:, 1])], HEAD)
        _fill(draw, face, FACE)
        for eye in groups.eyes:
            _fill(draw, _grown(pixels[list(eye)], _EYE_GROWTH), EYES)
        _fill(draw, _grown(pixels[list(groups.mouth)], _MOUTH_GROWTH), MOUTH)
    return np.asarray(canvas)


def _grown(outline: Float[np.ndarray, "N 2"], factor: float) -> Float[np.ndarray, "N 2"]:
    centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
    return centre + factor * (outline - centre)


def _fill(draw: ImageDraw.ImageDraw, outline: Float[np.ndarray, "N 2"], value: int) -> None:
    draw.polygon(outline.ravel().tolist(), fill=value)
