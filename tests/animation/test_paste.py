"""The crop back in its picture: nothing outside changes, and there is no edge to be seen."""

import numpy as np
import pytest

from dex.animation.paste import FEATHER, paste
from dex.faces.boxes import cut_square

SQUARES = [(40.0, 30.0, 64.0), (40.3, 30.7, 61.4), (80.0, 60.0, 30.0)]


def ramp(height: int = 120, width: int = 160) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, 2 * y, 255 - x], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("square", SQUARES)
def test_outside_nothing_changes(square: tuple[float, float, float]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    before = image.copy()
    out = paste(image, np.zeros((32, 32, 3), np.uint8), np.array(square))
    x0, y0, side = square
    inside = np.zeros((120, 160), bool)
    inside[int(np.floor(y0)) : int(np.ceil(y0 + side)), int(np.floor(x0)) : int(np.ceil(x0 + side))] = True
    np.testing.assert_array_equal(out[~inside], image[~inside])
    np.testing.assert_array_equal(image, before)
    middle = out[int(y0 + side / 2), int(x0 + side / 2)]
    np.testing.assert_array_equal(middle, 0)


@pytest.mark.parametrize("square", SQUARES)
def test_no_seam(square: tuple[float, float, float]) -> None:
    """White into black, the worst case: no step is larger than a smoothstep over the feather has, 1.5 / width."""
    out = paste(np.zeros((120, 160, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8), np.array(square)).astype(int)
    bound = 255 * 1.5 / (FEATHER * square[2]) + 1.5
    assert max(np.abs(np.diff(out, axis=0)).max(), np.abs(np.diff(out, axis=1)).max()) <= bound
    assert out.max() == 255


@pytest.mark.parametrize("square", SQUARES)
def test_what_was_cut_out_fits_in_again(square: tuple[float, float, float]) -> None:
    """A picture's own crop, at the same place: the same picture, to the blur of scaling."""
    image = ramp()
    crop = cut_square(image, np.array(square[:2]), square[2], 64)
    assert np.abs(paste(image, crop, np.array(square)).astype(int) - image).max() <= 3


def test_at_the_border_of_the_picture_the_crop_reaches_to_it() -> None:
    out = paste(np.zeros((50, 60, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8), np.array([-5.0, -4.0, 40.0]))
    assert (out[:20, :20] == 255).all()
    assert out[0, 0:60, 0].tolist() == sorted(out[0, 0:60, 0].tolist(), reverse=True)
    assert (out[36:] == 0).all()
    whole = paste(np.zeros((40, 40, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8), np.array([0.0, 0, 40]))
    assert (whole == 255).all()
