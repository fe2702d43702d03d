"""Videos of a method, named by the ids of a manifest's pairs: `ID.mp4`, or a folder `ID/` of PNG pictures.

They are checked before anything is scored: every one there, as many frames as its drivers, the manifest's size and
rate, three channels of eight bits in RGB order. What is wrong is named, all of it at once, and nothing is scored.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import Image, UnidentifiedImageError

from benchmarks.manifest import Manifest, Pair
from benchmarks.material import Frames, Material
from dex.animation.footage import natural_order
from dex.video import VideoError, iter_frames, probe

_NAMED = 20  # faults that are written out
_RATE_TOLERANCE = 0.01
_SWAPPED = 0.7  # of their distance from the sources remains when red and blue are exchanged: they were exchanged before
_LEAST = 4  # videos, to judge that


class VideosError(ValueError):
    """Videos that cannot be scored; the message names each fault on a line of its own."""


def write_video(folder: Path, frames: Frames) -> None:
    """A folder of PNGs, which appears whole or not at all."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(partial / f"{number:05d}.png", compress_level=1)
    os.replace(partial, folder)


def read_video(folder: Path, pair: Pair, size: int, fps: float) -> Frames:
    """uint8 RGB. Raises `VideosError` for one that is missing, short, of another size, rate or kind."""
    pictures, video = folder / pair.id, folder / f"{pair.id}.mp4"
    if pictures.is_dir() == video.is_file():
        both = (
            "is there as a folder and as .mp4, keep one" if video.is_file() else "is missing (a folder of PNG or .mp4)"
        )
        raise VideosError(f"{pair.id}: {both}")
    try:
        frames = list(_pictures(pictures) if pictures.is_dir() else _frames(video, fps))
    except VideoError as error:
        raise VideosError(f"{video}: {error}") from error
    if len(frames) != pair.pose.count:
        raise VideosError(f"{pair.id}: {len(frames)} frames, need {pair.pose.count}, one for each of its drivers'")
    shapes = {frame.shape[:2] for frame in frames}
    if shapes != {(size, size)}:
        found = ", ".join(f"{w}×{h}" for h, w in sorted(shapes))
        raise VideosError(f"{pair.id}: frames of {found}, need {size}×{size}")
    return np.stack(frames)


def _frames(path: Path, fps: float) -> Iterator[Shaped[np.ndarray, "H W 3"]]:
    rate = probe(path).fps
    if abs(rate - fps) > _RATE_TOLERANCE * fps:
        raise VideosError(f"{path}: {rate:g} frames a second, need {fps:g}")
    return (frame for _, frame in iter_frames(path))


def _pictures(folder: Path) -> Iterator[Shaped[np.ndarray, "H W 3"]]:
    files = sorted(folder.glob("*.png"), key=natural_order)
    for file in files:
        try:
            with Image.open(file) as picture:
                if picture.mode != "RGB":
                    raise VideosError(f"{file}: a picture of mode {picture.mode}, need RGB of 8 bits without alpha")
                yield np.asarray(picture)
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise VideosError(f"{file}: cannot be read as a picture: {error}") from error


def check_videos(folder: Path, manifest: Manifest, material: Material) -> None:
    """Reads everything once. Raises `VideosError` with all that is wrong."""
    if not folder.is_dir():
        raise VideosError(f"{folder}: no such folder")
    faults, distances = [], np.zeros(2)
    for pair in manifest.pairs:
        try:
            frames = read_video(folder, pair, manifest.size, manifest.fps)
            distances += _distances(frames, material.frames(pair.source)[0])
        except VideosError as error:
            faults.append(str(error))
    if faults:
        more = [f"… and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        raise VideosError(
            f"{folder}: {len(faults)} of {len(manifest.pairs)} videos of {manifest.name} cannot be scored:\n"
            + "\n".join([*faults[:_NAMED], *more])
        )
    if len(manifest.pairs) >= _LEAST and distances[1] < _SWAPPED * distances[0]:
        raise VideosError(
            f"{folder}: the colours fit those of the sources better with red and blue exchanged: written by OpenCV as "
            "BGR? Write RGB"
        )


def _distances(frames: Frames, source: Shaped[np.ndarray, "H W 3"]) -> Shaped[np.ndarray, "2"]:
    """Mean difference of the colours of 8×8 fields, as they are and with red and blue exchanged."""

    def fields(picture: Shaped[np.ndarray, "H W 3"]) -> Shaped[np.ndarray, "8 8 3"]:
        return np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX), dtype=float)

    own, made = fields(source), fields(frames[0])
    return np.array([np.abs(made - own).mean(), np.abs(made[..., ::-1] - own).mean()])
