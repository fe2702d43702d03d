"""What a user hands over as source or driver: a video, a picture, or a folder of pictures; frames at even instants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from dex.resample import Instant, resample
from dex.video import VideoError, iter_frames, probe

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PAGES = ("MPO", "TIFF")  # kinds of picture whose further ones are views and pages, no animation; a phone writes MPO
FOLDER_FPS = Fraction(25)


@dataclass(frozen=True)
class Footage:
    """Frames are decoded anew each time they are asked for: nothing is held."""

    path: Path
    pictures: tuple[Path, ...]  # in order; none: a video
    native_fps: Fraction | None  # of the file; None: one picture, which holds for ever
    seconds: float  # about how long it lasts
    has_sound: bool

    @property
    def still(self) -> bool:
        return self.native_fps is None

    @property
    def name(self) -> str:
        return self.path.resolve().name if self.path.is_dir() else self.path.stem

    def instants(self, fps: Fraction) -> Iterator[Instant]:
        """uint8 RGB pictures of shape (H, W, 3) at instants i / fps. Raises `VideoError` naming the file."""
        try:
            yield from resample(self._timed(), fps)
        except VideoError as error:
            raise VideoError(f"{self.path}: {error}") from error

    def _timed(self) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
        if not self.pictures:
            yield from iter_frames(self.path)
        for number, picture in enumerate(self.pictures):
            yield float(number / (self.native_fps or FOLDER_FPS)), read_picture(picture)


def open_footage(path: Path) -> Footage:
    """Raises `VideoError` where there is nothing to see."""
    if path.is_dir():
        pictures = tuple(sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURES), key=natural_order))
        if not pictures:
            raise VideoError(f"{path}: a folder without pictures ({', '.join(PICTURES)})")
        return Footage(path, pictures, FOLDER_FPS, len(pictures) / float(FOLDER_FPS), has_sound=False)
    if not path.is_file():
        raise VideoError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        raise VideoError(f"{path}: a motion file can only drive; the source must be a picture or a video")
    if _is_picture(path):
        return Footage(path, (path,), None, 0.0, has_sound=False)
    try:
        info = probe(path)
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from error
    fps = Fraction(info.fps).limit_denominator(1001) or FOLDER_FPS
    return Footage(path, (), fps, info.duration, info.has_audio)


def read_picture(path: Path) -> Shaped[np.ndarray, "H W 3"]:
    """uint8 RGB, upright, what is transparent white. Raises `VideoError` where it cannot be read."""
    try:
        with Image.open(path) as file:
            picture: Image.Image = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):  # which PIL would cut at 255, not scale
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be read as a picture: {error}") from error


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return getattr(file, "n_frames", 1) == 1 or file.format in PAGES  # else an animation, which is a video
    except Image.DecompressionBombError:
        return True  # `read_picture` says that it is too large
    except UnidentifiedImageError:
        return path.suffix.lower() in PICTURES  # a damaged one


def natural_order(path: Path) -> list[Any]:
    """frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
