"""The crop rule, "smoothed-face-square.v1": a square around the head that stands still or follows it calmly.

1. Face box: bounds of the 478 landmarks (hairline to chin). z is its larger side.
2. The square's side is MARGIN · z; its centre lies SHIFT_UP of the side above the box's centre, so that forehead, hair,
   chin and some neck are inside.
3. Both follow the calmest of five paths that keeps within a tenth of the side of where the head is: the median (the
   square stands still, and so does the background), else the track smoothed by a Gaussian of 1, 1/2, 1/4 or 1/8 s.
4. At the picture's border the square is moved inside. Where the picture is smaller than the square, the square shrinks,
   to no less than MIN_MARGIN · z; what is outside then repeats the picture's edge, MAX_PADDING of the area at most.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dex.faces.boxes import bounds, larger_side

MARGIN = 1.9
SHIFT_UP = 0.06
MIN_MARGIN = 1.25
MAX_PADDING = 0.10
_SIGMAS = (1.0, 0.5, 0.25, 0.125)  # seconds
_AWAY = 0.1


def squares(
    landmarks: Float[np.ndarray, "T L 2"],
    width: int,
    height: int,
    fps: float,
    margin: float = MARGIN,
    shift_up: float = SHIFT_UP,
) -> Float[np.ndarray, "T 3"]:
    """x0, y0 and side, in pixels of a width×height picture, of each frame's square in one clip."""
    box = bounds(landmarks.astype(np.float64))
    face = np.exp(_calm(np.log(larger_side(box))[:, None], _AWAY, fps))  # T 1
    side = np.minimum(margin * face, np.maximum(MIN_MARGIN * face, min(width, height)))
    centre = _calm((box[:, :2] + box[:, 2:]) / 2, _AWAY * float(np.median(side)), fps)
    corner = centre - side / 2 - side * [0, shift_up]
    room = np.array([width, height]) - side  # negative where the square is larger than the picture
    path = np.concatenate([np.clip(corner, np.minimum(room, 0), np.maximum(room, 0)), side], axis=-1)
    return np.rint(path) if (path == path[0]).all() else path  # whole pixels are cut out without interpolation


def padding(squares: Float[np.ndarray, "T 3"], width: int, height: int) -> float:
    """Largest share of a square's area that lies outside the picture."""
    corner, side = squares[:, :2], squares[:, 2:]
    inside = np.clip(np.minimum(corner + side, [width, height]) - np.maximum(corner, 0), 0, None)
    return float(1 - (inside / side).prod(-1).min())


def _calm(values: Float[np.ndarray, "T n"], tolerance: float, fps: float) -> Float[np.ndarray, "T n"]:
    """The calmest path that stays within `tolerance` of `values`; the least calm one where none does."""
    path = np.broadcast_to(np.median(values, axis=0), values.shape)
    for sigma in _SIGMAS:
        if np.abs(path - values).max() <= tolerance:
            break
        path = _smooth(values, sigma * fps)
    return path


def _smooth(values: Float[np.ndarray, "T n"], sigma: float) -> Float[np.ndarray, "T n"]:
    radius = round(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(values, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel / kernel.sum(), "valid") for column in padded.T], axis=-1)
