"""The diffusion animator as a backend. Apart from the others, because diffusers takes seconds to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dex.animation.backends import described, device, to_pictures
from dex.animator.codec import decode_frames, load_codec
from dex.animator.sampler import SamplerSettings, sample
from dex.animator.storage import load_animator
from dex.batch import FrameMotion
from dex.motion.encoders import ExportError, load_encoders


class DiffusionBackend:
    """Stage 2: the diffusion animator. Its folder holds config.json (`network`, `codec`, `size`, `schedule`, `sampler`,
    `crop`, `provenance`), animator.safetensors, and encoders/, the frozen ones of stage 1, unless config.json says
    where else they are (`encoders`)."""

    def __init__(self, folder: Path, given: Mapping[str, Any], size: int | None) -> None:
        """`given`: of `SamplerSettings` what is not to be as in the training's validation. `size`: pixels a side; None:
        those of the training. Raises ValueError, `ExportError` and `CodecError` too."""
        self._device = device()
        network, content = load_animator(folder)
        if self._device.type == "cpu":
            network.float()  # 16 bits are to save space; there is no arithmetic of them there to speak of
        self._network = network.to(self._device)
        if missing := {"codec", "size", "schedule"} - content.keys():
            raise ExportError(
                f"{folder / 'config.json'}: says no {' and no '.join(sorted(missing))}. Export the run again."
            )
        self._temporal = network.is_temporal()
        self._codec = load_codec(content["codec"]).to(self._device)
        self._encoders = load_encoders(folder / content.get("encoders", "encoders")).to(self._device)
        self._schedule = content["schedule"]
        settings = sampler_settings(folder, content.get("sampler", {}), given)
        window = min(settings.window, network.config.frames)
        self._settings = dataclasses.replace(settings, window=window, overlap=min(settings.overlap, window // 2))
        self.size = content["size"] if size is None else size
        step = self._codec.factor * 2 ** (len(network.config.unet["block_out_channels"]) - 1)
        if self.size < step or self.size % step:
            raise ValueError(f"--size {self.size}: this checkpoint needs a multiple of {step}")
        self.joint_code = self._encoders.config.joint_code
        self.crop, self.encoders, self.provenance = described(content, dict(self._encoders), "diffusion")
        self.provenance |= {"sampler": dataclasses.asdict(self._settings)}

    @torch.inference_mode()
    def read_motion(self, pictures: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
        poses, codes = self._encoders.read_motion(pictures.to(self._device))
        return poses.cpu(), codes.cpu()

    @torch.inference_mode()
    def animate(
        self, source: Float[Tensor, "3 H W"], source_pose: Float[Tensor, "3 4"], driving: Iterable[FrameMotion]
    ) -> Iterator[Shaped[np.ndarray, "H W 3"]]:
        latent = self._codec.encode(source[None].to(self._device))[0]
        latents = sample(self._network, latent, source_pose, driving, self._settings, self._schedule, self._temporal)
        for picture in decode_frames(self._codec, latents):
            yield to_pictures(picture[None])[0]


def sampler_settings(folder: Path, own: Mapping[str, Any], given: Mapping[str, Any]) -> SamplerSettings:
    """The checkpoint's own, but for what is given. Raises ValueError, and `ExportError` where its own are none."""
    try:
        return SamplerSettings(**{**own, **given})
    except TypeError as error:
        raise ExportError(
            f"{folder / 'config.json'}: no sampler's settings ({error}). Export the run again."
        ) from error
