"""Cuts are found, also in the dark; flashes, moves and lamps are none."""

import numpy as np
import pytest

from data_prep import shots
from tests.data_prep.made_videos import scene


def thumbnails(*images: np.ndarray) -> np.ndarray:
    return np.stack([shots.thumbnail(image) for image in images])


@pytest.mark.parametrize("brightness", [1.0, 0.15])
def test_cut(brightness):
    a, b = ((scene(seed) * brightness).astype(np.uint8) for seed in (1, 2))
    assert shots.find_cuts(thumbnails(*[a] * 10, *[b] * 10, *[a] * 10)) == [10, 20]


@pytest.mark.parametrize("length", [1, 3])
def test_flash_is_no_cut(length):
    a = scene(1)
    white = np.full_like(a, 250)
    white[::2, ::2] = 200
    assert shots.find_cuts(thumbnails(*[a] * 10, *[white] * length, *[a] * 10)) == []


def test_cut_after_a_flash_is_found():
    a, b, white = scene(1), scene(2), np.full_like(scene(1), 250)
    assert shots.find_cuts(thumbnails(*[a] * 10, white, *[a] * 10, *[b] * 5)) == [21]


def test_lamp_and_slow_pan_are_no_cuts():
    wide = scene(3, 48, 400)
    pan = [wide[:, at : at + 64] for at in range(0, 300, 2)]
    lamp = [(scene(4) * gain).astype(np.uint8) for gain in (1, 1, 0.5, 0.5, 0.9)]
    assert shots.find_cuts(thumbnails(*pan)) == []
    assert shots.find_cuts(thumbnails(*lamp)) == []


def test_short_ends():
    assert shots.find_cuts(thumbnails(scene(1))) == []
    assert shots.find_cuts(np.zeros((0, 24, 24, 3), np.uint8)) == []
    assert shots.find_cuts(thumbnails(scene(1), scene(2))) == [1]
