"""Facial regions of a frame, drawn from its landmarks: the masks of the perceptual loss and of the augmentations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
from jaxtyping import Float, Shaped

from dex.batch import EYES, FACE, HEAD, MOUTH
from dex.data.shards import ShardError

# The head is the face's outline grown about its centre, and moved up by this share of its height for brow and hair.
_HEAD_GROWTH = 1.35
_HEAD_LIFT = 0.12
# Eyes and mouth with a rim: lids and the skin around the lips move with the expression. A shut eye has no height of its
# own, so an eye is an ellipse about its corners, half as long and half as high as these shares of their distance.
_EYE_LENGTH, _EYE_HEIGHT = 0.8, 0.4
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

        return LandmarkGroups(face=GROUPS["face"], eyes=GROUPS["eyes"], mouth=GROUPS["mouth"])
    raise ShardError(f"landmark scheme {scheme!r} is not known; known: 'mediapipe_478', 'synthetic'")


def region_maps(landmarks: Float[np.ndarray, "T L 2"], scheme: str, size: int) -> Shaped[np.ndarray, "T size size"]:
    """uint8 maps of T frames: 0 background, 1 head, 2 face, 3 eyes, 4 mouth. All 0 where no landmarks are known (NaN).

    `landmarks` are normalised image coordinates in [-1, 1]. The head is a grown outline of the face, not a matte.
    """
    groups = landmark_groups(scheme)
    known = np.isfinite(landmarks).all(axis=(1, 2))
    pixels = (np.where(known[:, None, None], landmarks, 9.0).astype(np.float64) + 1) * (size / 2) - 0.5
    face = pixels[:, groups.face]
    lift = _HEAD_LIFT * np.ptp(face[..., 1], axis=1)[:, None, None] * np.array([0.0, 1.0])
    maps = np.zeros((len(landmarks), size, size), np.uint8)
    _fill(maps, _grown(face, _HEAD_GROWTH) - lift, HEAD)
    _fill(maps, face, FACE)
    for eye in groups.eyes:
        _fill(maps, _eye(pixels[:, eye]), EYES)
    _fill(maps, _grown(pixels[:, groups.mouth], _MOUTH_GROWTH), MOUTH)
    return maps


def _grown(outline: Float[np.ndarray, "T N 2"], factor: float) -> Float[np.ndarray, "T N 2"]:
    centre = (outline.min(axis=1, keepdims=True) + outline.max(axis=1, keepdims=True)) / 2
    return centre + factor * (outline - centre)


def _eye(outline: Float[np.ndarray, "T N 2"]) -> Float[np.ndarray, "T 16 2"]:
    first, second = outline[:, :1], outline[:, outline.shape[1] // 2, None]
    along = second - first
    across = along[..., ::-1] * [-1.0, 1.0]
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
    return (first + second) / 2 + _EYE_LENGTH * np.cos(angle) * along + _EYE_HEIGHT * np.sin(angle) * across


@numba.njit(cache=True)
def _fill(maps: Shaped[np.ndarray, "T H W"], outlines: Float[np.ndarray, "T N 2"], value: int) -> None:
    """Paints `value` from the first to the last crossing of each row with the closed outline: a dent in the side of a
    region is filled, and a map costs a few microseconds where a general polygon costs more than decoding."""
    frames, height, width = maps.shape
    first, last = np.empty(height), np.empty(height)
    for t in range(frames):
        first[:], last[:] = np.inf, -np.inf
        for i in range(outlines.shape[1]):
            x0, y0, x1, y1 = outlines[t, i - 1, 0], outlines[t, i - 1, 1], outlines[t, i, 0], outlines[t, i, 1]
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            if y0 == y1:  # a level edge: its neighbours reach its ends
                continue
            slope = (x1 - x0) / (y1 - y0)
            for y in range(max(0, int(np.ceil(y0))), min(height - 1, int(np.floor(y1))) + 1):
                x = x0 + (y - y0) * slope
                first[y], last[y] = min(first[y], x), max(last[y], x)
        for y in range(height):
            if first[y] <= last[y]:
                stop = min(width, int(np.floor(last[y])) + 1)  # negative where the outline is left of the picture
                maps[t, y, max(0, int(np.ceil(first[y]))) : max(0, stop)] = value
