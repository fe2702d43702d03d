"""Run folder → safetensors: `python -m dex.export RUN [--out DIR]`.

Writes the moving average of a motion trainer's generator side (config.json, generator.safetensors) and, in encoders/,
its pose and expression encoder alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from dex.motion.config import MotionConfig
from dex.motion.encoders import ExportError, save_generator
from dex.motion.trainer import SETTINGS


def export(checkpoint: Path, out: Path) -> None:
    """Raises `ExportError` where the checkpoint is missing or is not a motion trainer's."""
    if not checkpoint.is_file():
        raise ExportError(f"{checkpoint}: not found. A run writes it while `python -m dex.fit` trains.")
    with torch.serialization.safe_globals(SETTINGS):
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = {
        name.removeprefix("average."): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith("average.")
    }
    if not state or "motion_config" not in content:
        raise ExportError(f"{checkpoint}: not a checkpoint of the motion trainer")
    config = MotionConfig.from_dict(content["motion_config"])
    save_generator(out, config, state, {"checkpoint": checkpoint.name, "step": content["global_step"]})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dex.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, or a checkpoint file")
    parser.add_argument("--out", type=Path, help="default: RUN/export")
    arguments = parser.parse_args()
    run: Path = arguments.run
    checkpoint = run if run.is_file() else run / "checkpoints" / "last.ckpt"
    out = arguments.out or (run.parent if run.is_file() else run) / "export"
    try:
        export(checkpoint, out)
    except ExportError as error:
        sys.exit(f"error: {error}")
    print(f"{out}: config.json, generator.safetensors, encoders/")


if __name__ == "__main__":
    main()
