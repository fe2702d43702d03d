"""Where poses and expression codes come from, frame by frame: footage read by the network's encoders, or a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from dex.animation.backends import Backend, to_network
from dex.animation.motion_file import SUFFIX, Motion, MotionError
from dex.animation.views import View
from dex.resample import resample

_BATCH = 8  # frames that are read at once


class Moment(NamedTuple):
    """One frame of a driver."""

    pose: Float[Tensor, "3 4"]
    expression: Float[Tensor, "E"]
    picture: Shaped[np.ndarray, "n n 3"] | None = None  # as the network sees it; a motion file has none


class Driver(Protocol):
    name: str
    count: int  # moments; for a file that does not know its length, about
    still: bool  # one moment that holds for ever
    sound: Path | None  # a file that is heard with it

    def moments(self) -> Iterator[Moment]: ...


class FootageDriver:
    """A video or pictures, read by the encoders of a backend."""

    def __init__(self, view: View, backend: Backend, size: int) -> None:
        """`size`: pixels of the pictures that come with the moments."""
        self._view, self._backend, self._size = view, backend, size
        footage = view.footage
        self.name, self.count, self.still = footage.name, view.count, footage.still
        self.sound = footage.path if footage.has_sound else None

    def moments(self) -> Iterator[Moment]:
        shots = self._view.shots()
        while chunk := list(itertools.islice(shots, _BATCH)):
            poses, codes = self._backend.read_motion(to_network([shot.cut(self._backend.size) for shot in chunk]))
            for shot, pose, code in zip(chunk, poses, codes, strict=True):
                yield Moment(pose, code, picture=shot.cut(self._size))


class MotionDriver:
    """A motion file at another rate, or its own."""

    def __init__(self, path: Path, motion: Motion, fps: Fraction) -> None:
        self._motion, self._fps = motion, fps
        self.name = path.name.removesuffix(SUFFIX).removesuffix(".safetensors")
        self.still = motion.still
        self.count = round(len(motion.pose) / motion.fps * fps)
        self.sound: Path | None = None

    def moments(self) -> Iterator[Moment]:
        numbers = ((float(i / self._motion.fps), i) for i in range(len(self._motion.pose)))
        for instant in resample(numbers, self._fps):
            yield Moment(self._motion.pose[instant.image], self._motion.expression[instant.image])


def check_motion(path: Path, motion: Motion, backend: Backend, code_length: int) -> list[str]:
    """Warnings about a motion file for this backend. Raises `MotionError` where its codes cannot be used."""
    remedy = "Make the motion file again from its video with this checkpoint"
    if motion.expression.shape[1] != code_length:
        raise MotionError(
            f"{path}: expression codes of {motion.expression.shape[1]} numbers, the checkpoint's have {code_length}. "
            f"{remedy}"
        )
    warnings = []
    if motion.encoders != backend.encoders:
        warnings.append(f"{path.name} was read by other encoders than the checkpoint's; expect wrong faces. {remedy}")
    if _framing(motion) != _framing(backend):
        warnings.append(
            f"{path.name} belongs to pictures cut by {_framing(motion)}, the checkpoint to {_framing(backend)}; "
            f"place and size of the head will be off. {remedy}"
        )
    return warnings


def _framing(owner: Motion | Backend) -> str:
    crop = owner.crop
    return f"{crop.rule}, margin {crop.margin:g}, shift {crop.shift_up:g}" if crop else "an unknown rule"
