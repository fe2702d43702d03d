"""One filter at a time, on rows made up."""

import numpy as np
import pytest

from data_prep import filters
from data_prep.analyse import ROW
from data_prep.settings import Settings
from dex.faces import crop

WIDTH, HEIGHT = 640, 360
SETTINGS = Settings()


def good(count: int = 100) -> np.ndarray:
    """A face of 100×120 pixels in the middle."""
    rows = np.zeros(count, ROW)
    rows["index"] = np.arange(count)
    rows["found"], rows["score"], rows["sharpness"] = True, 0.9, 100
    rows["landmarks"] = np.random.default_rng(0).uniform([270, 120], [370, 240], (478, 2))
    return rows


def reason(rows: np.ndarray, settings: Settings = SETTINGS) -> str:
    (only,) = set(filters.instant_reasons(rows, WIDTH, HEIGHT, settings).tolist())
    return only


def test_good_face_passes():
    assert reason(good()) == ""


@pytest.mark.parametrize(
    ("box", "want"),
    [
        ((500, 100, 560, 170), filters.SEVERAL),  # more than half as large
        ((500, 100, 540, 150), ""),  # small and outside the crop: a bystander
        ((380, 100, 410, 130), filters.SEVERAL),  # small, but inside the crop
    ],
)
def test_second_face(box, want):
    rows = good()
    rows["others"][:, 1] = box
    assert reason(rows) == want


def test_faces_without_landmarks():
    rows = good()
    rows["found"] = False
    assert reason(rows) == filters.NO_FACE
    rows["others"][:, 0] = (500, 100, 560, 170)
    assert reason(rows) == filters.UNSURE
    rows["others"][:, 1] = (100, 100, 160, 170)
    assert reason(rows) == filters.SEVERAL


def test_small_faces():
    rows = good()
    rows["landmarks"] = (rows["landmarks"] - [320, 180]) / 2.6 + [320, 180]  # 46 pixels
    assert reason(rows) == filters.SMALL
    assert reason(rows, Settings(min_face=40, min_face_share=0.1)) == ""
    assert "46 pixels" in filters.span_detail(filters.SMALL, rows, SETTINGS)
    rows = good()
    (only,) = set(filters.instant_reasons(rows, 2 * WIDTH, 4 * HEIGHT, SETTINGS).tolist())
    assert only == filters.SMALL  # 120 of 1280: under 15 %, and under 512 / 4
    (only,) = set(filters.instant_reasons(rows, 2 * WIDTH, 4 * HEIGHT, Settings(size=256)).tolist())
    assert only == ""


def test_face_out_of_the_picture():
    rows = good()
    rows["landmarks"][..., 0] -= 290
    assert reason(rows) == filters.CUT_OFF


def test_unsure():
    rows = good()
    rows["score"] = 0.3
    assert reason(rows) == filters.UNSURE
    assert "0.30" in filters.span_detail(filters.UNSURE, rows, SETTINGS)


def whole(rows: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> str | None:
    squares = crop.squares(rows["landmarks"], width, height, 25)
    refused = filters.clip_reason(rows, squares, width, height, SETTINGS)
    return refused and refused[0]


def test_clip_filters():
    assert whole(good()) is None
    blurred = good()
    blurred["sharpness"] = 3
    assert whole(blurred) == filters.BLURRED
    shaken = good()
    shaken["landmarks"][..., 0] += np.where(np.arange(100) % 2, 70, -70)[:, None]
    assert whole(shaken) == filters.UNSTEADY
    tight = good()
    tight["landmarks"] -= [265, 115]
    assert whole(tight, 110, 130) == filters.BORDER


@pytest.mark.parametrize(
    "wrong", [{"size": 511}, {"size": 8}, {"min_seconds": 0}, {"min_seconds": 11}, {"max_seconds": 100}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="--"):
        Settings(**wrong)
