"""The frozen pose and expression encoder on disk: `encoders/` with config.json and safetensors, what stage 2 reads."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dex.files import file_sha256
from dex.motion.config import MotionConfig
from dex.motion.generator import MotionGenerator, read_motion
from dex.saved import ExportError as ExportError
from dex.saved import Saved, build, read, weights_name, write

ENCODERS = ("pose_encoder", "expression_encoder")
GENERATOR_FILE, ENCODERS_FILE = "generator.safetensors", "encoders.safetensors"


def save_generator(
    folder: Path,
    config: MotionConfig,
    state: dict[str, Tensor],
    provenance: dict[str, Any],
    crop: dict[str, Any] | None = None,
) -> None:
    """Writes config.json, generator.safetensors (everything that animates) and encoders/ (its two encoders alone).

    `state` is a `MotionGenerator` state_dict; `provenance` says where it comes from (run, step); `crop` are the fields
    of the `CropContract` by which the pictures of its training were cut, None where nobody knows.
    """
    sections = {"network": dataclasses.asdict(config), "crop": crop, "provenance": provenance}
    write(folder / "encoders", ENCODERS_FILE, sections, _of_encoders(state))  # before what says that all is there
    write(folder, GENERATOR_FILE, sections, state)


def copy_encoders(folder: Path, to: Path) -> None:
    """The encoders alone, of an export's encoders/ or of the whole export. Raises `ExportError`."""
    saved = read(folder, _file_of(folder))
    sections = {name: saved.content.get(name) for name in ("network", "crop", "provenance")}
    write(to, ENCODERS_FILE, sections, _of_encoders(saved.state))


def encoders_hash(folder: Path) -> str:
    """sha256 of the weights in an export's encoders/, or in the whole export. Raises `ExportError`."""
    weights = folder / _file_of(folder)
    if not weights.is_file():
        raise ExportError(f"{weights}: not found. Write it with `python -m dex.export` of a motion trainer's run.")
    return file_sha256(weights)


def check_trained_on(folder: Path, then: str, now: str) -> None:
    """Raises `ExportError` where the `encoders_hash` of what a run was trained on is not that of what is there now."""
    if then != now:
        raise ExportError(
            f"{folder}: not the encoders that this animator was trained on. "
            "Put those of its training back; expression codes of others mean nothing to it."
        )


def fingerprint(networks: Mapping[str, torch.nn.Module] | torch.nn.ModuleDict) -> str:
    """sha256 over names and values of all weights."""
    digest = hashlib.sha256()
    for name, network in sorted(networks.items()):
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name}.{key}".encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _file_of(folder: Path) -> str:
    return GENERATOR_FILE if weights_name(folder) == GENERATOR_FILE else ENCODERS_FILE


def _of_encoders(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.split(".")[0] in ENCODERS}


def load_generator(folder: Path) -> tuple[MotionGenerator, dict[str, Any]]:
    """The generator of an export, frozen and in evaluation mode, and its config.json. Raises `ExportError`."""
    saved = read(folder, GENERATOR_FILE)
    return build(lambda content: MotionGenerator(MotionConfig.from_dict(content)), saved, folder), saved.content


class Encoders(torch.nn.ModuleDict):
    """{"pose_encoder", "expression_encoder"} of a motion trainer, frozen, for pictures of any size."""

    def __init__(self, config: MotionConfig) -> None:
        whole = MotionGenerator(config)
        super().__init__({name: getattr(whole, name) for name in ENCODERS})
        self.config = config
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def read_pose(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 4"]:
        """P."""
        return self["pose_encoder"](self.fitted(pictures))

    @torch.no_grad()
    def read_motion(self, pictures: Float[Tensor, "N 3 H W"]) -> tuple[Float[Tensor, "N 3 4"], Float[Tensor, "N E"]]:
        """P and e."""
        return read_motion(self["pose_encoder"], self["expression_encoder"], self.fitted(pictures), self.config)

    def fitted(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 h w"]:
        """Scaled to the size that the encoders were trained on."""
        size = (self.config.size, self.config.size)
        if pictures.shape[-2:] == size:
            return pictures
        return F.interpolate(pictures, size=size, mode="bilinear", antialias=True, align_corners=False)


def load_encoders(folder: Path) -> Encoders:
    """The encoders of an export's encoders/, or of the whole export. Raises `ExportError`."""
    saved = read(folder, _file_of(folder))
    theirs = Saved(saved.content, _of_encoders(saved.state))
    return build(lambda content: Encoders(MotionConfig.from_dict(content)), theirs, folder)
