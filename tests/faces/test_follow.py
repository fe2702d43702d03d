"""One face followed: which, where, and what is said when it cannot be."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dex.animation.footage import open_footage, read_picture
from dex.faces import FaceError
from dex.faces.boxes import centre_inside
from dex.faces.follow import follow
from dex.resample import Instant


def still(image: np.ndarray, count: int = 1) -> Iterator[Instant]:
    return (Instant(i, image, True) for i in range(count))


@pytest.fixture(scope="module")
def group(talking_heads: Path) -> np.ndarray:
    """Six faces."""
    return read_picture(talking_heads / "hard" / "facenet-pytorch_multiface.jpg")


def test_which_of_several_faces(group: np.ndarray, weights_env: Path) -> None:
    with pytest.raises(FaceError, match=r"6 faces; choose one with --face largest, left or 0…5"):
        follow(still(group), 25, None)
    with pytest.raises(FaceError, match="6 found"):
        follow(still(group), 25, 6)
    by_number = [follow(still(group), 25, number)[0] for number in range(6)]
    middles = [x + side / 2 for x, _, side in by_number]
    assert middles == sorted(middles)
    assert min(np.diff(middles)) > 30  # six places, not one face six times
    np.testing.assert_array_equal(follow(still(group), 25, "left")[0], by_number[0])
    assert max(side for _, _, side in by_number) == pytest.approx(follow(still(group), 25, "largest")[0][2], rel=0.1)


def test_a_face_alone_needs_no_choice(talking_heads: Path, weights_env: Path) -> None:
    """One number is for all inputs, and most of them show one face."""
    portrait = read_picture(talking_heads / "portraits" / "hellomeme_harris.jpg")
    usual = follow(still(portrait), 25, None)
    for choice in (0, 3):
        np.testing.assert_allclose(follow(still(portrait), 25, choice), usual, atol=2)


def test_the_chosen_face_is_kept(talking_heads: Path, group: np.ndarray, weights_env: Path) -> None:
    """It is gone for some frames while a larger one is there: the track waits for it."""
    left = read_picture(talking_heads / "portraits" / "hellomeme_harris.jpg")
    right = read_picture(talking_heads / "portraits" / "v-express_aoc.jpg")
    small = np.asarray(Image.fromarray(left).resize((256, 256)))
    scene = np.full((512, 900, 3), 128, np.uint8)
    scene[100:356, 20:276], scene[:, 380:892] = small, right
    without = scene.copy()
    without[100:356, 20:276] = 128
    images = [scene] * 3 + [without] * 7 + [scene] * 3
    squares = follow((Instant(i, image, True) for i, image in enumerate(images)), 25, "left")
    assert (squares[:, 0] + squares[:, 2] / 2 < 300).all()
    longer = [scene] * 3 + [without] * 37 + [scene] * 3
    with pytest.raises(FaceError, match=r"from 0\.12 to 1\.60 s"):
        follow((Instant(i, image, True) for i, image in enumerate(longer)), 25, "left")


def test_no_face(talking_heads: Path, weights_env: Path) -> None:
    dog = read_picture(talking_heads / "hard" / "liveportrait_s33.jpg")
    with pytest.raises(FaceError, match=r"no face found; .* --no-crop"):
        follow(still(dog), 25, None)


def test_square_holds_the_face_and_repeats_cost_nothing(talking_heads: Path, weights_env: Path) -> None:
    """A clip of 15 frames a second at 30: the same squares at every second instant."""
    footage = open_footage(talking_heads / "videos" / "hellomeme_tndtc.mp4")
    usual = follow(footage.instants(Fraction(15)), 15, None)
    doubled = follow(footage.instants(Fraction(30)), 30, None)
    assert len(usual) == 34
    assert abs(len(doubled) - 68) <= 1
    np.testing.assert_allclose(usual.mean(0), doubled.mean(0), atol=2)
    boxes = np.concatenate([usual[:, :2], usual[:, :2] + usual[:, 2:]], axis=-1)
    assert centre_inside(np.array([[128.0, 128, 384, 384]]), boxes).all()


def test_framing_of_another_contract(talking_heads: Path, weights_env: Path) -> None:
    portrait = read_picture(talking_heads / "portraits" / "face-recognition_biden1.jpg")
    usual, tighter = follow(still(portrait), 25, None)[0], follow(still(portrait), 25, None, margin=1.5, shift_up=0)[0]
    assert tighter[2] == pytest.approx(usual[2] * 1.5 / 1.9, rel=0.02)
    assert tighter[1] + tighter[2] / 2 == pytest.approx(usual[1] + (0.5 + 0.06) * usual[2], abs=3)
