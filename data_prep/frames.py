"""Frames of a source as they come, and what is known of it.

Nothing here holds more than one frame. Times are seconds on the source's own line: for videos 0 is the first frame,
for numbered pictures 0 is picture number 0, so that all cameras of a recording share it.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from data_prep.layouts import Source
from data_prep.settings import FPS
from dex import video
from dex.files import file_sha256
from dex.resample import Instant, resample

# A source frame stands for an instant at most this far away (seconds); farther from any frame is a gap.
_REACH = 0.25
_PICTURES = (".png", ".jpg", ".jpeg", ".avif", ".webp")


def instants(source: Source) -> Iterator[Instant]:
    """`read` at 25 frames a second, by time; instants in gaps of the source are left out."""
    return resample(read(source), FPS, _REACH)


def read(source: Source) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
    """(seconds, uint8 RGB) of every frame. Raises `VideoError` as `dex.video.iter_frames` does."""
    return _pictures(source) if source.picture_fps else video.iter_frames(source.path)


def describe(source: Source) -> video.VideoInfo:
    """Size, rate, length, sound. Raises `VideoError` for what is no video."""
    if not source.picture_fps:
        return video.probe(source.path)
    first = next(_pictures(source), None)
    names = _names(source.path)
    if first is None:
        raise video.VideoError("no picture")
    height, width = first[1].shape[:2]
    # Releases drop frames evenly: the usual step is the rate.
    step = float(np.median(np.diff([number for number, _ in names]))) if len(names) > 1 else 1.0
    fps = source.picture_fps / step
    return video.VideoInfo(width, height, len(names) / fps, fps, has_audio=False, start=first[0], codec="pictures")


def sha256(source: Source) -> str:
    """Hash of a file's bytes; of a folder of pictures, over their names and bytes."""
    if source.path.is_file():
        return file_sha256(source.path)
    digest = hashlib.sha256()
    for _, name in _names(source.path):
        digest.update(name.encode() + bytes.fromhex(file_sha256(source.path / name)))
    return digest.hexdigest()


def _names(path: Path) -> list[tuple[int, str]]:
    """(number, name) of the pictures of a folder or zip; the number is the last one in the name."""
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise video.VideoError(f"cannot be read as a zip of pictures: {error}") from error
    numbered = ((re.findall(r"\d+", Path(name).stem), name) for name in names if name.lower().endswith(_PICTURES))
    return sorted((int(digits[-1]), name) for digits, name in numbered if digits)


def _pictures(source: Source) -> Iterator[tuple[float, Shaped[np.ndarray, "H W 3"]]]:
    names = _names(source.path)
    archive = None if source.path.is_dir() else zipfile.ZipFile(source.path)
    try:
        for number, name in names:
            data = (source.path / name).read_bytes() if archive is None else archive.read(name)
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
            if image is not None:  # a damaged picture is a short gap
                yield number / source.picture_fps, image
    finally:
        if archive is not None:
            archive.close()
