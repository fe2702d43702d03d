"""A trained animator on disk: config.json and animator.safetensors, read back without base weights or network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from dex.animator.config import AnimatorConfig
from dex.animator.unet import AnimatorUNet
from dex.saved import build, read, write

WEIGHTS = "animator.safetensors"


def save_animator(folder: Path, config: AnimatorConfig, state: dict[str, Tensor], sections: dict[str, Any]) -> None:
    """Writes config.json and animator.safetensors.

    `state` is an `AnimatorUNet` state_dict, in the precision in which it is to be stored; `sections` is what else
    config.json is to say: where the weights come from, which codec makes the latents.
    """
    write(folder, WEIGHTS, {"network": dataclasses.asdict(config), **sections}, state)


def load_animator(folder: Path) -> tuple[AnimatorUNet, dict[str, Any]]:
    """The network of an export, frozen, in evaluation mode and in the precision it was stored in, and its config.json.

    Raises `ExportError`.
    """
    saved = read(folder, WEIGHTS)
    network = build(lambda content: AnimatorUNet(AnimatorConfig.from_dict(content)), saved, folder)
    return network.to(next(iter(saved.state.values())).dtype), saved.content
