"""Resampling by time, and pictures as sources."""

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


def stream(times):
    """Frames whose first pixel is their number."""
    for number, time in enumerate(times):
        yield float(time), np.full((1, 1, 3), number, np.int32)


def shown(times):
    return [(instant.index, int(instant.image[0, 0, 0])) for instant in frames.resample(stream(times))]


def test_25_frames_a_second_pass_unchanged():
    assert shown(np.arange(50) / 25) == [(i, i) for i in range(50)]


def test_jitter_does_not_double_or_drop():
    times = np.arange(50) / 25 + np.random.default_rng(0).uniform(-0.008, 0.008, 50).clip(0 - np.arange(50) / 25)
    assert shown(times) == [(i, i) for i in range(50)]


@pytest.mark.parametrize(
    ("fps", "count", "want"), [(30, 120, 100), (60, 240, 100), (29.97, 120, 100), (10, 40, 100), (73, 292, 100)]
)
def test_length_and_nearness(fps, count, want):
    got = shown(np.arange(count) / fps)
    assert len(got) == want
    assert [index for index, _ in got] == list(range(want))
    assert max(abs(index / 25 - number / fps) for index, number in got) <= 0.5 / min(fps, 25) + 0.021


def test_variable_rate_goes_by_time():
    """One second at 30 frames/s, then one at 12: not by number."""
    times = [*(np.arange(30) / 30), *(1 + np.arange(12) / 12)]
    got = dict(shown(times))
    assert got[12] == 14  # 0.48 s lies nearest 14 / 30
    assert got[35] == 30 + 5  # 1.40 s lies nearest 1 + 5 / 12
    assert len(got) == 50


def test_gap_is_left_out_and_repeats_are_told():
    got = [(i.index, i.fresh) for i in frames.resample(stream([0, 0.12, 0.2, 2.0, 2.12]))]
    indices = [index for index, _ in got]
    assert all(index <= 11 or index >= 44 for index in indices)
    assert 5 in indices
    assert 50 in indices
    assert [index for index, fresh in got if fresh] == [0, 2, 4, 44, 52]


def test_single_frame_and_nothing():
    assert shown([0]) == [(0, 0)]
    assert shown([]) == []


def test_video_of_variable_rate(tmp_path: Path):
    times = [Fraction(i, 30) for i in range(30)] + [1 + Fraction(i, 10) for i in range(10)]
    path = tmp_path / "vfr.mp4"
    write_video(path, (np.full((32, 32, 3), 5 * i, np.uint8) for i in range(40)), times)
    source = Source(path, "vfr.mp4", "x", "x")
    got = {i.index: round(i.image.mean() / 5) for i in frames.resample(frames.read(source))}
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
    got = list(frames.resample(frames.read(source)))
    assert got[0].index == 100
    np.testing.assert_array_equal(got[0].image, scene(120))
    assert sum(instant.fresh for instant in got) == 15
    assert len(frames.sha256(source)) == 64


def test_no_pictures(tmp_path: Path):
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    for path in (tmp_path / "broken.zip", tmp_path):
        with pytest.raises(VideoError, match=r"zip of pictures|no picture"):
            frames.describe(Source(path, path.name, "x", "x", picture_fps=30.0))
