"""Videos and pictures as sources, at even instants."""

import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import frames
from data_prep.layouts import Source
from dex.video import VideoError
from tests.data_prep.made_videos import scene, write_video


def test_video_of_variable_rate(tmp_path: Path):
    times = [Fraction(i, 30) for i in range(30)] + [1 + Fraction(i, 10) for i in range(10)]
    path = tmp_path / "vfr.mp4"
    write_video(path, (np.full((32, 32, 3), 5 * i, np.uint8) for i in range(40)), times)
    source = Source(path, "vfr.mp4", "x", "x")
    got = {i.index: round(i.image.mean() / 5) for i in frames.instants(source)}
    assert abs(got[20] - 24) <= 1  # 0.8 s
    assert abs(got[40] - 36) <= 1  # 1.6 s
    assert len(got) == pytest.approx(50, abs=1)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures(tmp_path: Path, kind: str):
    """Every fourth of 30 numbered pictures a second, from 120 on: the first instant is 4 s."""
    folder = tmp_path / "cam1"
    folder.mkdir()
    for number in range(120, 180, 4):
        cv2.imwrite(str(folder / f"{number:06d}.png"), scene(number)[..., ::-1])
    path = folder
    if kind == "zip":
        path = tmp_path / "cam1.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for picture in sorted(folder.iterdir()):
                archive.write(picture, f"cam1/{picture.name}")
    source = Source(path, path.name, "x", "x", picture_fps=30.0)
    info = frames.describe(source)
    assert (info.width, info.height, info.fps) == (64, 48, 7.5)
    got = list(frames.instants(source))
    assert got[0].index == 100
    np.testing.assert_array_equal(got[0].image, scene(120))
    assert sum(instant.fresh for instant in got) == 15
    assert len(frames.sha256(source)) == 64


def test_no_pictures(tmp_path: Path):
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    for path in (tmp_path / "broken.zip", tmp_path):
        with pytest.raises(VideoError, match=r"zip of pictures|no picture"):
            frames.describe(Source(path, path.name, "x", "x", picture_fps=30.0))
