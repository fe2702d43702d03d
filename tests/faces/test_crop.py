"""Squares: exact cutting, calm paths, borders; and the labels that go with them."""

import numpy as np
import pytest

from dex.faces import crop
from dex.faces.boxes import bounds, centre_inside, cut_square, grown, overlap


def ramp(height: int = 60, width: int = 80) -> np.ndarray:
    """Red grows by 2 a pixel in x, green by 3 in y: the value tells the place. Zero at the picture's corner (0, 0)."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([2 * x, 3 * y, 0 * x], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize(("corner", "side", "size"), [((10, 12), 32, 32), ((10.5, 12.25), 31.5, 64), ((8, 4), 48, 24)])
def test_square_shows_the_right_place(corner, side, size):
    cut = cut_square(ramp(), np.array(corner, float), side, size).astype(float)
    at = (np.arange(size) + 0.5) / size * side  # pixel centres of the crop in pixels of the picture
    inner = slice(3, -3)
    np.testing.assert_allclose(
        cut[inner, inner, 0], np.broadcast_to(2 * (corner[0] + at), (size, size))[inner, inner], atol=1.5
    )
    np.testing.assert_allclose(
        cut[inner, inner, 1], np.broadcast_to(3 * (corner[1] + at)[:, None], (size, size))[inner, inner], atol=1.9
    )


def test_whole_pixels_are_copied_exactly():
    image = np.random.default_rng(0).integers(0, 255, (50, 50, 3)).astype(np.uint8)
    np.testing.assert_array_equal(cut_square(image, np.array([7.0, 9.0]), 32, 32), image[9:41, 7:39])


@pytest.mark.parametrize("corner", [(-10.0, -6.0), (-10.5, -6.5), (-200.0, -200.0)])
def test_beyond_the_picture_its_edge_is_repeated(corner):
    cut = cut_square(ramp(), np.array(corner), 32, 32)
    np.testing.assert_array_equal(cut[0, 0], ramp()[0, 0])
    assert cut.shape == (32, 32, 3)


def face(x: np.ndarray, y: np.ndarray, height: float | np.ndarray = 100.0) -> np.ndarray:
    """T frames of four landmarks: a box of aspect 0.8 around (x, y)."""
    corners = np.array([[-0.4, -0.5], [0.4, -0.5], [-0.4, 0.5], [0.4, 0.5]])
    return np.stack([x, y], -1)[:, None] + corners * np.broadcast_to(height, x.shape)[:, None, None]


def test_trembling_head_gives_a_still_square():
    noise = np.random.default_rng(0).normal(size=(2, 100)) * 3
    path = crop.squares(face(400 + noise[0], 300 + noise[1]), 800, 600, 25)
    assert (path == path[0]).all()
    assert path[0, 2] == pytest.approx(190, abs=1)
    assert path[0, 0] + path[0, 2] / 2 == pytest.approx(400, abs=2)
    assert path[0, 1] + path[0, 2] / 2 == pytest.approx(300 - crop.SHIFT_UP * 190, abs=2)


def test_walking_head_is_followed_calmly():
    x = np.linspace(200, 600, 200)
    noise = np.random.default_rng(0).normal(size=200)
    path = crop.squares(face(x + noise, np.full(200, 300.0)), 800, 600, 25)
    centre = path[:, 0] + path[:, 2] / 2
    assert np.abs(centre - x).max() < 0.15 * 190
    assert np.abs(np.diff(centre, 2)).max() < 0.2  # pixels a frame a frame; the track itself trembles by 2
    assert np.ptp(path[:, 2]) == 0


def test_jumping_head_stays_inside():
    x = 400 + 60 * np.sin(np.arange(200) / 4)  # a sway of 120 pixels, one a second
    points = face(x, np.full(200, 300.0))
    path = crop.squares(points, 800, 600, 25)
    box = bounds(points)
    assert (box[:, 0] > path[:, 0]).all()
    assert (box[:, 2] < path[:, 0] + path[:, 2]).all()


def test_square_moves_inside_the_picture_then_shrinks_then_pads():
    still = np.full(50, 0.0)
    moved = crop.squares(face(still + 60, still + 60), 800, 600, 25)[0]
    assert tuple(moved) == (0, 0, 190)
    shrunk = crop.squares(face(still + 80, still + 80), 160, 170, 25)
    assert tuple(shrunk[0]) == (0, 0, 160)
    assert crop.padding(shrunk, 160, 170) == 0
    padded = crop.squares(face(still + 60, still + 60), 120, 120, 25)
    assert padded[0, 2] == 125
    assert crop.padding(padded, 120, 120) == pytest.approx(1 - (120 / 125) ** 2)


def test_boxes():
    a, b = np.array([0.0, 0, 10, 10]), np.array([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    np.testing.assert_allclose(overlap(a, b), [1 / 3, 0, 1])
    np.testing.assert_array_equal(centre_inside(b, a), [True, False, True])
    np.testing.assert_array_equal(grown(np.array([0.0, 0, 10, 20]), 2), [-15, -10, 25, 30])
