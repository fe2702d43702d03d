"""The frozen pose and expression encoder on disk: `encoders/` with config.json and safetensors, what stage 2 reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dex.motion.config import MotionConfig
from dex.motion.generator import MotionGenerator
from dex.saved import ExportError as ExportError
from dex.saved import load_exactly, read, write

ENCODERS = ("pose_encoder", "expression_encoder")


def save_generator(folder: Path, config: MotionConfig, state: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    """Writes config.json, generator.safetensors (everything that animates) and encoders/ (its two encoders alone).

    `state` is a `MotionGenerator` state_dict; `provenance` says where it comes from (run, step).
    """
    sections = {"network": dataclasses.asdict(config), "provenance": provenance}
    write(folder, "generator.safetensors", sections, state)
    encoders = {name: tensor for name, tensor in state.items() if name.split(".")[0] in ENCODERS}
    write(folder / "encoders", "encoders.safetensors", sections, encoders)


def load_generator(folder: Path) -> MotionGenerator:
    """The generator of an export, frozen and in evaluation mode. Raises `ExportError`."""
    saved = read(folder, "generator.safetensors")
    generator = MotionGenerator(MotionConfig.from_dict(saved.content["network"]))
    load_exactly(generator, saved.state, folder)
    return generator.requires_grad_(False).eval()


def load_encoders(folder: Path) -> torch.nn.ModuleDict:
    """{"pose_encoder", "expression_encoder"} of an export's encoders/, frozen and in evaluation mode."""
    saved = read(folder, "encoders.safetensors")
    whole = MotionGenerator(MotionConfig.from_dict(saved.content["network"]))
    encoders = torch.nn.ModuleDict({name: getattr(whole, name) for name in ENCODERS})
    load_exactly(encoders, saved.state, folder)
    return encoders.requires_grad_(False).eval()
