"""Videos of other programs: what is wrong with them is named, all of it, before anything is scored."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.make import make_synthetic
from benchmarks.manifest import Manifest
from benchmarks.material import Material, open_material
from benchmarks.videos import VideosError, check_videos, read_video, write_video
from dex.video import write_clip

FRAMES = 16


@pytest.fixture(scope="module")
def protocol() -> tuple[Manifest, Material]:
    manifest = make_synthetic("self", "s", 5, 64, 0)
    return manifest, open_material(manifest, None)


@pytest.fixture
def folder(protocol: tuple[Manifest, Material], tmp_path: Path) -> Path:
    manifest, material = protocol
    for pair in manifest.pairs:
        write_video(tmp_path / pair.id, material.frames(pair.pose))
    return tmp_path


def test_pictures_come_back_bit_by_bit(folder: Path, protocol: tuple[Manifest, Material]) -> None:
    manifest, material = protocol
    check_videos(folder, manifest, material)
    pair = manifest.pairs[2]
    assert np.array_equal(read_video(folder, pair, 64, 10.0), material.frames(pair.pose))


def test_mp4_is_read_too(folder: Path, protocol: tuple[Manifest, Material]) -> None:
    manifest, material = protocol
    pair = manifest.pairs[0]
    (folder / pair.id).rename(folder / "aside")
    write_clip(folder / f"{pair.id}.mp4", material.frames(pair.pose), fps=10)
    made = read_video(folder, pair, 64, 10.0).astype(int)
    assert np.abs(made - material.frames(pair.pose)).mean() < 6


def _first(folder: Path) -> Path:
    return folder / "self-0000" / "00003.png"


def _mode(mode: str) -> Callable[[Path], None]:
    return lambda folder: Image.open(_first(folder)).convert(mode).save(_first(folder))


def _missing(folder: Path) -> None:
    (folder / "self-0000").rename(folder / "aside")


def _resized(folder: Path) -> None:
    Image.open(_first(folder)).resize((32, 32)).save(_first(folder))


def _both(folder: Path) -> None:
    write_clip(folder / "self-0000.mp4", np.zeros((FRAMES, 64, 64, 3), np.uint8), fps=10)


def _rate(folder: Path) -> None:
    _missing(folder)
    write_clip(folder / "self-0000.mp4", np.zeros((FRAMES, 64, 64, 3), np.uint8), fps=25)


def _no_video(folder: Path) -> None:
    _missing(folder)
    (folder / "self-0000.mp4").write_bytes(b"no video")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_missing, "self-0000: is missing"),
        (lambda folder: _first(folder).unlink(), "15 frames, need 16"),
        (_resized, "32×32, 64×64, need 64×64"),
        (_mode("RGBA"), "mode RGBA"),
        (_mode("L"), "mode L"),
        (lambda folder: _first(folder).write_bytes(b"\x89PNG garbage"), "00003.png: cannot be read"),
        (_both, "as a folder and as .mp4"),
        (_rate, "25 frames a second, need 10"),
        (_no_video, "self-0000.mp4"),
    ],
)
def test_faults_are_named(
    damage: Callable[[Path], None], words: str, folder: Path, protocol: tuple[Manifest, Material]
) -> None:
    damage(folder)
    with pytest.raises(VideosError, match="1 of 5 videos") as caught:
        check_videos(folder, *protocol)
    assert words in str(caught.value)


def test_all_faults_are_named_at_once(folder: Path, protocol: tuple[Manifest, Material]) -> None:
    _missing(folder)
    (folder / "self-0003" / "00000.png").unlink()
    with pytest.raises(VideosError, match="2 of 5") as caught:
        check_videos(folder, *protocol)
    assert "self-0000" in str(caught.value)
    assert "self-0003" in str(caught.value)


def test_empty_and_absent_folders(tmp_path: Path, protocol: tuple[Manifest, Material]) -> None:
    with pytest.raises(VideosError, match="5 of 5 videos"):
        check_videos(tmp_path, *protocol)
    with pytest.raises(VideosError, match="no such folder"):
        check_videos(tmp_path / "none", *protocol)


def test_exchanged_channels_are_noticed(tmp_path: Path, protocol: tuple[Manifest, Material]) -> None:
    manifest, material = protocol
    for pair in manifest.pairs:
        write_video(tmp_path / pair.id, material.frames(pair.pose)[..., ::-1])
    with pytest.raises(VideosError, match="red and blue exchanged"):
        check_videos(tmp_path, manifest, material)
