"""The frozen pose and expression encoder on disk: `encoders/` with config.json and safetensors, what stage 2 reads."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dex.motion.config import MotionConfig
from dex.motion.generator import MotionGenerator

SCHEMA = 1
ENCODERS = ("pose_encoder", "expression_encoder")


class ExportError(ValueError):
    """An export that cannot be read; the message names the file and the remedy."""


def save_generator(folder: Path, config: MotionConfig, state: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    """Writes config.json, generator.safetensors (everything that animates) and encoders/ (its two encoders alone).

    `state` is a `MotionGenerator` state_dict; `provenance` says where it comes from (run, step).
    """
    write(folder, "generator.safetensors", config, state, provenance)
    encoders = {name: tensor for name, tensor in state.items() if name.split(".")[0] in ENCODERS}
    write(folder / "encoders", "encoders.safetensors", config, encoders, provenance)


def write(folder: Path, name: str, config: MotionConfig, state: dict[str, Tensor], provenance: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, folder / name)
    content = {"schema": SCHEMA, "weights": name, "network": dataclasses.asdict(config), "provenance": provenance}
    (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n")


@dataclass(frozen=True)
class Export:
    """A folder written by `save_generator`, read back."""

    config: MotionConfig
    state: dict[str, Tensor]
    provenance: dict[str, Any]


def read(folder: Path) -> Export:
    """Raises `ExportError` where config.json is missing, or of another schema, or the weights are absent."""
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(f"{path}: not found. Write it with `python -m dex.export RUN --out {folder}`.")
    content = json.loads(path.read_text())
    if content.get("schema") != SCHEMA:
        raise ExportError(f"{path}: schema {content.get('schema')}, this program reads {SCHEMA}. Export the run again.")
    weights = folder / content["weights"]
    if not weights.is_file():
        raise ExportError(f"{weights}: not found beside config.json. Export the run again.")
    return Export(MotionConfig.from_dict(content["network"]), load_file(weights), content["provenance"])


def load_generator(folder: Path) -> MotionGenerator:
    """The generator of an export, frozen and in evaluation mode. Raises `ExportError`."""
    export = read(folder)
    generator = MotionGenerator(export.config)
    load_exactly(generator, export.state, folder)
    return generator.requires_grad_(False).eval()


def load_encoders(folder: Path) -> torch.nn.ModuleDict:
    """{"pose_encoder", "expression_encoder"} of an export's encoders/, frozen and in evaluation mode."""
    export = read(folder)
    whole = MotionGenerator(export.config)
    encoders = torch.nn.ModuleDict({name: getattr(whole, name) for name in ENCODERS})
    load_exactly(encoders, export.state, folder)
    return encoders.requires_grad_(False).eval()


def load_exactly(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    found = module.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise ExportError(
            f"{folder}: weights do not fit config.json; missing {found.missing_keys}, "
            f"unexpected {found.unexpected_keys}. Export the run again."
        )
