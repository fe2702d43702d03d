"""Run folder → safetensors: `python -m dex.export RUN [--out DIR]`.

Of a motion trainer: the moving average of its generator side (config.json, generator.safetensors) and, in encoders/,
its pose and expression encoder alone. Of an animator: its networks with the denoiser's moving average (config.json,
animator.safetensors), and a copy of the encoders that it was trained on. `python -m dex.animate` takes both.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from dex.animator import trainer as animator
from dex.animator.config import AnimatorConfig
from dex.animator.storage import save_animator
from dex.motion import trainer as motion  # noqa: F401  # its import registers what its checkpoints hold
from dex.motion.config import MotionConfig
from dex.motion.encoders import save_generator
from dex.saved import ExportError


def export(checkpoint: Path, out: Path) -> None:
    """Raises `ExportError` where the checkpoint is missing or is of neither trainer."""
    if not checkpoint.is_file():
        raise ExportError(f"{checkpoint}: not found. A run writes it while `python -m dex.fit` trains.")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)  # the trainers registered their settings
    provenance = {"checkpoint": checkpoint.name, "step": content.get("global_step")}
    if "motion_config" in content:
        config = MotionConfig.from_dict(content["motion_config"])
        save_generator(out, config, part(content["state_dict"], "average."), provenance, content.get("crop"))
    elif "animator_config" in content:
        export_animator(content, out, provenance)
    else:
        raise ExportError(f"{checkpoint}: not a checkpoint of the motion trainer or of the animator")


def export_animator(content: dict[str, Any], out: Path, provenance: dict[str, Any]) -> None:
    trained = content["animator"]
    encoders = Path(trained["encoders"])
    if animator.encoders_hash(encoders) != trained["encoders_hash"]:
        raise ExportError(
            f"{encoders}: not the encoders that this animator was trained on. "
            "Put those of its training back; expression codes of others mean nothing to it."
        )
    state = part(content["state_dict"], "network.")
    state |= {f"denoiser.{key}": tensor for key, tensor in part(content["state_dict"], "average.").items()}
    sections = {
        "codec": trained["codec"],
        "size": trained["size"],
        "schedule": trained["schedule"],
        "crop": trained["crop"],
        "provenance": provenance | {"phase": trained["phase"], "codec_hash": trained["codec_hash"]},
    }
    save_animator(out, AnimatorConfig.from_dict(content["animator_config"]), state, sections)
    shutil.copytree(encoders, out / "encoders", dirs_exist_ok=True)


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries below a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


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
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    main()
