"""The image codec: pictures to latents and back, frozen. A configuration names it by one string:

    space-to-depth:4            each 4×4 square of pixels becomes one cell of 48 channels; lossless, no weights
    path/to/folder              diffusers' `AutoencoderKL` (Stable Diffusion's VAE) or `AutoencoderTiny` (TAESD):
                                config.json and diffusion_pytorch_model.safetensors, in the folder or in its vae/
    owner/name                  the same from the hub

Pictures are in [-1, 1]; a VAE's latents are scaled to about unit variance (Stable Diffusion's 0.18215 stands in its
config).
Both kinds run outside autocast, so that a latent from a cache and one encoded while training are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from torch import Tensor, nn

from dex.pose import full_precision

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = ("AutoencoderKL", "AutoencoderTiny")
SPACE_TO_DEPTH = "space-to-depth"
# Pixels deviate by 0.49 from their picture's mean, but neighbours say the same: the noise that hides a picture must be
# stronger than for a VAE's latents, or the pixels weaker (Chen 2023, arXiv:2301.10972). A power of two loses no bit.
PIXEL_SCALE = 0.5


class CodecError(ValueError):
    """A codec that cannot be had, or pictures that it cannot take; the message says what to do."""


class SpaceToDepth(nn.Module):
    """Squares of factor × factor pixels as channels, times `PIXEL_SCALE`; the way back is exact to the last bit."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise CodecError(f"{SPACE_TO_DEPTH}:{factor}: the factor must be at least 1, as in {SPACE_TO_DEPTH}:4")
        self.factor, self.channels = factor, 3 * factor**2
        self.name = f"{SPACE_TO_DEPTH}:{factor}"
        self.hash = hashlib.sha256(f"{self.name} {PIXEL_SCALE}".encode()).hexdigest()

    @torch.no_grad()
    def encode(
        self, pictures: Float[Tensor, "N 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "N c h w"]:
        """Has no spread: `generator` draws nothing. Raises `CodecError` for sides that the factor does not divide."""
        _check_size(self, pictures)
        return F.pixel_unshuffle(pictures.float(), self.factor) * PIXEL_SCALE

    def decode(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        """May leave [-1, 1] where the latents do. With a gradient, where there is one."""
        return F.pixel_shuffle(latents.float() / PIXEL_SCALE, self.factor)


class Autoencoder(nn.Module):
    """diffusers' `AutoencoderKL` or `AutoencoderTiny`, frozen.

    `chunk` pictures go through it at a time: what a decoder needs for each grows with the picture's area.
    `hash` is that of its settings and weights, whatever file they came from.
    """

    def __init__(self, vae: Any, name: str, chunk: int = 4) -> None:  # diffusers' classes carry no types
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.name, self.chunk = name, chunk
        config = vae.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale: float = config.scaling_factor
        self.shift: float = config.shift_factor or 0.0
        self.hash = _hash(vae)

    @torch.no_grad()
    def encode(
        self, pictures: Float[Tensor, "N 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "N c h w"]:
        """float32 latents: a draw from the posterior by `generator`, without one its mode.

        Raises `CodecError` for sides that the factor does not divide.
        """
        _check_size(self, pictures)
        with full_precision(pictures):
            parts = [self._encode(part.to(self.vae.dtype), generator) for part in pictures.split(self.chunk)]
        return (torch.cat(parts).float() - self.shift) * self.scale

    def _encode(self, pictures: Tensor, generator: torch.Generator | None) -> Tensor:
        encoded = self.vae.encode(pictures)
        if not hasattr(encoded, "latent_dist"):  # TAESD has no posterior
            return encoded.latents
        return encoded.latent_dist.mode() if generator is None else encoded.latent_dist.sample(generator)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "N c h w"]) -> Float[Tensor, "N 3 H W"]:
        """float32 pictures; they may leave [-1, 1] a little."""
        unscaled = (latents.float() / self.scale + self.shift).to(self.vae.dtype)
        with full_precision(latents):
            return torch.cat([self.vae.decode(part).sample.float() for part in unscaled.split(self.chunk)])


Codec = SpaceToDepth | Autoencoder


def load_codec(name: str) -> Codec:
    """The codec of that name (see above), on the CPU in float32. Raises `CodecError`."""
    kind, _, factor = name.partition(":")
    if kind == SPACE_TO_DEPTH:
        if not factor.isdecimal():
            raise CodecError(f"codec {name!r}: needs a whole factor, as in {SPACE_TO_DEPTH}:4")
        return SpaceToDepth(int(factor))
    folder = _folder(name)
    config = _read_config(folder / "config.json")
    if config.get("_class_name") not in KINDS:
        raise CodecError(f"{folder / 'config.json'}: is of {config.get('_class_name')}, need one of {', '.join(KINDS)}")
    try:
        vae, found = getattr(diffusers, config["_class_name"]).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # diffusers hands on whatever its parts raise: OSError, RuntimeError, SafetensorError …
        raise CodecError(f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if wrong := [f"{what.replace('_', ' ')} {found[what]}" for what in found if found[what]]:
        raise CodecError(f"{folder}: the weights do not fit config.json: {'; '.join(wrong)[:500]}. Fetch it again.")
    return Autoencoder(vae, name)


def decode_frames(
    codec: Codec, latents: Iterable[Float[Tensor, "c h w"]], chunk: int = 4
) -> Iterator[Float[Tensor, "3 H W"]]:
    """Pictures in [-1, 1] of a stream of latents, `chunk` at a time; a stream of any length takes no more memory."""
    stream = iter(latents)
    while part := list(itertools.islice(stream, chunk)):
        yield from codec.decode(torch.stack(part)).clamp(-1, 1)


def _folder(name: str) -> Path:
    """Where config.json and weights lie; from the hub's local copy where `name` is no folder."""
    path = Path(name).expanduser()
    if not path.exists():
        return _from_hub(name)
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    if missing := [file for file in ("config.json", WEIGHTS) if not (folder / file).is_file()]:
        raise CodecError(
            f"{folder}: {' and '.join(missing)} not found. A codec is a folder written by diffusers' "
            f"save_pretrained with safetensors (no pickle is read), or {SPACE_TO_DEPTH}:4"
        )
    return folder


def _from_hub(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CodecError(f"codec {name!r}: no such folder; give one, a hub id (owner/name) or {SPACE_TO_DEPTH}:4")
    try:
        for place in ("", "vae/"):
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(name, f"{place}config.json")
                return Path(hf_hub_download(name, f"{place}{WEIGHTS}")).parent
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CodecError(f"codec {name!r}: no such folder, and the hub does not give it: {reason}") from error
    raise CodecError(
        f"codec {name!r}: no such folder; config.json and {WEIGHTS} are neither in the hub's local copy nor "
        "on the hub as far as it can be reached, in root or vae/. "
        "Fetch it once with the hub reachable and HF_HUB_OFFLINE unset."
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise CodecError(f"{path}: is no JSON object. Fetch the codec again.")
    return content


def _check_size(codec: Codec, pictures: Float[Tensor, "N 3 H W"]) -> None:
    height, width = pictures.shape[-2:]
    if height % codec.factor or width % codec.factor:
        raise CodecError(f"pictures of {height}×{width}: codec {codec.name} needs multiples of {codec.factor}")


def _hash(vae: Any) -> str:
    settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
