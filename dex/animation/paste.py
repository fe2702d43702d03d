"""The animated crop back in its picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

FEATHER = 1 / 8  # of the square's side: over this width the picture passes into the crop


def paste(
    image: Shaped[np.ndarray, "H W 3"], crop: Shaped[np.ndarray, "n n 3"], square: Float[np.ndarray, "3"]
) -> Shaped[np.ndarray, "H W 3"]:
    """A copy of `image` with `crop` in `square` (x0, y0, side in pixels; fractions allowed, it may reach outside).

    At the square's sides the picture is itself, from `FEATHER` inwards it is the crop, and a smoothstep in between, so
    that neither values nor slopes jump. Where a side lies on the picture's border, or beyond, nothing has to be met and
    the crop reaches to the border.
    """
    height, width = image.shape[:2]
    corner, side = square[:2], float(square[2])
    x0, y0 = np.maximum(np.ceil(corner - 1e-6), 0).astype(int)
    x1, y1 = np.minimum(np.floor(corner + side + 1e-6), [width, height]).astype(int)
    scale = len(crop) / side
    box = np.clip((np.array([x0, y0, x1, y1]) - [*corner, *corner]) * scale, 0, len(crop))
    new = np.asarray(Image.fromarray(crop).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, tuple(box)))
    across = _weights(np.arange(x0, x1) + 0.5, corner[0], side, width)
    down = _weights(np.arange(y0, y1) + 0.5, corner[1], side, height)
    weight = (down[:, None] * across[None])[..., None]
    out = image.copy()
    blended = out[y0:y1, x0:x1] * (1 - weight) + new * weight
    out[y0:y1, x0:x1] = np.rint(blended).astype(np.uint8)
    return out


def _weights(at: Float[np.ndarray, "n"], start: float, side: float, limit: int) -> Float[np.ndarray, "n"]:
    """Of pixel centres along one axis: 0 at the square's sides, 1 from the feather's width inwards."""
    before = np.full(len(at), np.inf) if start <= 0 else at - start
    after = np.full(len(at), np.inf) if start + side >= limit else start + side - at
    share = np.clip(np.minimum(before, after) / (FEATHER * side), 0, 1)
    return share * share * (3 - 2 * share)
