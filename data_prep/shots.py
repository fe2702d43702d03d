"""Shot cuts from thumbnails: colours and layout must both change, and stay changed, so that flashes are no cuts."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped

SIDE = 24  # pixels of a thumbnail
# Both must be exceeded. Largest inside the shots of 48 real clips at 25 frames/s: 0.18 and 0.19; smallest at the four
# cuts among the awkward files: 0.25 and 0.70.
_COLOURS = 0.15
_LAYOUT = 0.35
_FLASH = 4  # frames: a change that is undone within them is a flash
_NOISE = 2.0  # grey levels: contrast below it says nothing about layout


def thumbnail(image: Shaped[np.ndarray, "H W 3"]) -> Shaped[np.ndarray, "24 24 3"]:
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def differs(a: Shaped[np.ndarray, "24 24 3"], b: Shaped[np.ndarray, "24 24 3"]) -> bool:
    """Whether two frames show different scenes."""
    if _layout_change(a, b) <= _LAYOUT:  # the cheaper test
        return False
    return bool(1 - np.minimum(_histogram(a), _histogram(b)).sum() > _COLOURS)


def find_cuts(thumbnails: Shaped[np.ndarray, "T 24 24 3"]) -> list[int]:
    """Indices of the first frame of every shot but the first."""
    cuts: list[int] = []
    index, count = 1, len(thumbnails)
    while index < count:
        before = thumbnails[index - 1]
        if differs(before, thumbnails[index]):
            after = range(index + 1, min(index + 1 + _FLASH, count))
            back = next((later for later in after if not differs(before, thumbnails[later])), None)
            if back is None:
                cuts.append(index)
            else:
                index = back
        index += 1
    return cuts


def _layout_change(a: Shaped[np.ndarray, "24 24 3"], b: Shaped[np.ndarray, "24 24 3"]) -> float:
    """1 - normalised cross-correlation: blind to brightness and contrast, which lamps and flashes change."""
    x, y = (image.astype(np.float64) - image.mean() for image in (a, b))
    return float(1 - (x * y).mean() / (np.sqrt((x * x).mean() * (y * y).mean()) + _NOISE**2))


def _histogram(image: Shaped[np.ndarray, "24 24 3"]) -> Float[np.ndarray, "128"]:
    """Share of pixels in 8 steps of brightness (finer in the dark) × 4×4 of chroma (finer near grey)."""
    luma, *chroma = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.int64))
    bright = np.minimum(np.sqrt(luma / 255) * 8, 7).astype(np.int64)
    red, blue = (np.clip((channel - 128) // 12 + 2, 0, 3) for channel in chroma)
    return np.bincount((bright * 16 + red * 4 + blue).ravel(), minlength=128) / luma.size
