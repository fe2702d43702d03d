"""The networks that animate, behind one interface."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dex.batch import FrameMotion, picture_to_float, to_unit
from dex.data.shards import CropContract
from dex.motion.encoders import ENCODERS, GENERATOR_FILE, ExportError, fingerprint, load_generator
from dex.saved import weights_name

_BATCH = 8  # frames that the generator makes at once


class Backend(Protocol):
    """A checkpoint that reads motion and draws it. Pictures are in [-1, 1], poses in the crop's coordinates."""

    crop: CropContract | None  # how the pictures of its training were cut; None: not known
    size: int  # pixels a side of the pictures that it reads and makes
    joint_code: bool  # one code for pose and expression, of models made to compare with
    encoders: str  # fingerprint: expression codes mean something to the encoders that made them only
    provenance: dict[str, Any]  # of the checkpoint

    def read_motion(self, pictures: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
        """Poses and expression codes."""

    def animate(
        self, source: Float[Tensor, "3 H W"], source_pose: Float[Tensor, "3 4"], driving: Iterable[FrameMotion]
    ) -> Iterator[Shaped[np.ndarray, "H W 3"]]:
        """uint8 RGB frames of the source in each driving pose and expression; reads `driving` as it goes."""


class MotionBackend:
    """Stage 1's generator alone: one forward a frame, the fast preview."""

    def __init__(self, folder: Path) -> None:
        """`folder`: an export. Raises `ExportError`."""
        self._device = device()
        generator, content = load_generator(folder)
        self._generator = generator.to(self._device)
        self.size, self.joint_code = self._generator.config.size, self._generator.config.joint_code
        encoders = {name: getattr(self._generator, name) for name in ENCODERS}
        self.crop, self.encoders, self.provenance = described(content, encoders, "motion")

    @torch.inference_mode()
    def read_motion(self, pictures: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
        pictures = pictures.to(self._device)
        pose, expression = self._generator.read_motion(pictures)
        return pose.cpu(), expression.cpu()

    @torch.inference_mode()
    def animate(
        self, source: Float[Tensor, "3 H W"], source_pose: Float[Tensor, "3 4"], driving: Iterable[FrameMotion]
    ) -> Iterator[Shaped[np.ndarray, "H W 3"]]:
        pose_s = source_pose[None].to(self._device)
        feature = self._generator.appearance_encoder(source[None].to(self._device), pose_s)
        style = self._generator.style_encoder(feature)
        remaining = iter(driving)
        while chunk := list(itertools.islice(remaining, _BATCH)):
            pose, expression = (torch.stack(part)[None].to(self._device) for part in zip(*chunk, strict=True))
            yield from to_pictures(self._generator.animate(feature, style, pose_s, pose, expression)[0])


def load_backend(
    checkpoint: Path,
    kind: str | None,
    size: int | None,
    seed: int,
    steps: int | None,
    guidance: float | None,
    delay: int | None = None,
    blend: int | None = None,
) -> Backend:
    """What a folder of `python -m dex.export`, or the run that it was made of, holds.

    `kind`: "motion" or "diffusion"; None: whichever it is. `steps`, `guidance`, `delay` and `blend`: None takes the
    checkpoint's own. Raises ValueError, `ExportError` among others, with what to do.
    """
    folder = checkpoint / "export" if (checkpoint / "export" / "config.json").is_file() else checkpoint
    config = folder / "config.json"
    if not config.is_file():
        raise ExportError(
            f"{checkpoint}: no export (a folder with config.json and safetensors). Make one of a training run with "
            "`python -m dex.export RUN` and pass RUN or RUN/export"
        )
    if kind is None:
        kind = "motion" if weights_name(folder) in (GENERATOR_FILE, None) else "diffusion"
    given: dict[str, Any] = {
        name: value
        for name, value in {"steps": steps, "scale": guidance, "delay": delay, "blend": blend}.items()
        if value is not None
    }
    if kind == "diffusion":
        from dex.animation.diffusion import DiffusionBackend  # diffusers takes seconds to import

        return DiffusionBackend(folder, {"seed": seed, **given}, size)
    if given:
        refuse(["guidance" if name == "scale" else name for name in given])
    return MotionBackend(folder)


def refuse(options: Iterable[str]) -> NoReturn:
    """Raises `ValueError` for options that mean nothing to the motion backend."""
    named = ", ".join(f"--{name}" for name in options)
    raise ValueError(f"{named}: of the diffusion backend only, this checkpoint is of the motion one")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def described(
    content: Mapping[str, Any], encoders: Mapping[str, torch.nn.Module], backend: str
) -> tuple[CropContract | None, str, dict[str, Any]]:
    """Crop contract, fingerprint and provenance, as an export's config.json has them."""
    crop = CropContract(**content["crop"]) if content.get("crop") else None
    return crop, fingerprint(encoders), {"backend": backend, **content.get("provenance", {})}


def to_network(pictures: list[Shaped[np.ndarray, "H W 3"]]) -> Float[Tensor, "N 3 H W"]:
    """uint8 → [-1, 1]."""
    return picture_to_float(torch.from_numpy(np.stack(pictures)).movedim(-1, 1))


def to_pictures(pictures: Float[Tensor, "N 3 H W"]) -> Shaped[np.ndarray, "N H W 3"]:
    """[-1, 1] → uint8."""
    levels = (to_unit(pictures) * 255).round().to(torch.uint8)
    return levels.movedim(1, -1).cpu().numpy()
