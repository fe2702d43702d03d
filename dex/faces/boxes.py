"""Boxes (x0, y0, x1, y1) in pixels, and squares cut out of pictures."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped


def bounds(points: Float[np.ndarray, "*b L 2"]) -> Float[np.ndarray, "*b 4"]:
    """The smallest box around L points."""
    return np.concatenate([points.min(-2), points.max(-2)], axis=-1)


def larger_side(boxes: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b"]:
    return (boxes[..., 2:] - boxes[..., :2]).max(-1)


def area(boxes: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b"]:
    """0 for boxes turned inside out."""
    return np.clip(boxes[..., 2] - boxes[..., 0], 0, None) * np.clip(boxes[..., 3] - boxes[..., 1], 0, None)


def overlap(a: Float[np.ndarray, "*b 4"], b: Float[np.ndarray, "*b 4"]) -> Float[np.ndarray, "*b"]:
    """Intersection over union."""
    shared = area(np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1))
    return shared / np.maximum(area(a) + area(b) - shared, 1e-9)


def centre_inside(inner: Float[np.ndarray, "*b 4"], outer: Float[np.ndarray, "*b 4"]) -> Shaped[np.ndarray, "*b"]:
    """Whether the middle of `inner` lies in `outer`."""
    middle = (inner[..., :2] + inner[..., 2:]) / 2
    return ((middle >= outer[..., :2]) & (middle <= outer[..., 2:])).all(-1)


def grown(boxes: Float[np.ndarray, "*b 4"], factor: float) -> Float[np.ndarray, "*b 4"]:
    """Squares of `factor` times the larger side around the same middles."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = larger_side(boxes)[..., None] * factor / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def cut_square(
    image: Shaped[np.ndarray, "H W 3"], corner: Float[np.ndarray, "2"], side: float, size: int
) -> Shaped[np.ndarray, "size size 3"]:
    """The square at `corner`, scaled to size×size; beyond the picture its edge is repeated.

    Squares on whole pixels are cut and scaled. Others (moving crops) are interpolated at a whole multiple of `size` and
    averaged down from there, so that they neither shimmer nor alias.
    """
    whole = np.rint([*corner, side]).astype(int)
    if np.array_equal(whole, [*corner, side]):
        square = _cut(image, *whole.tolist())
        return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC)
    factor = max(1, int(np.ceil(side / size)))
    scale = size * factor / side
    shift = scale * (0.5 - np.asarray(corner)) - 0.5  # OpenCV's pixel centres lie at whole numbers
    affine = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    square = cv2.warpAffine(image, affine, (size * factor,) * 2, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)
    return square if factor == 1 else cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def _cut(image: Shaped[np.ndarray, "H W 3"], x: int, y: int, side: int) -> Shaped[np.ndarray, "side side 3"]:
    height, width = image.shape[:2]
    before, after = (max(0, -y), max(0, -x)), (max(0, y + side - height), max(0, x + side - width))
    inside = image[max(0, y) : max(0, y + side), max(0, x) : max(0, x + side)]
    if inside.size == 0:  # wholly outside
        row, column = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        return np.broadcast_to(image[row, column], (side, side, 3)).copy()
    return cv2.copyMakeBorder(inside, before[0], after[0], before[1], after[1], cv2.BORDER_REPLICATE)
