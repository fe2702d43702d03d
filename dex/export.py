"""Run folder → safetensors: `python -m dex.export RUN [--out DIR]`.

Of a motion trainer: the moving average of its generator side (config.json, generator.safetensors) and, in encoders/,
its pose and expression encoder alone. Of an animator: the moving averages of its networks (config.json,
animator.safetensors), and a copy of the encoders that it was trained on (`--encoders` names an export that has them, in
place of the copy). `python -m dex.animate` takes both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from dex import checkpoint
from dex.animator.config import AnimatorConfig
from dex.animator.storage import save_animator
from dex.motion.config import MotionConfig
from dex.motion.encoders import (
    check_trained_on,
    copy_encoders,
    encoders_hash,
    fingerprint,
    load_encoders,
    save_generator,
)
from dex.saved import ExportError, of_this_version

TRAINED_BY = "Export it with the version that trained it."  # the remedy for a checkpoint of another one


def checkpoint_of(run: Path) -> Path:
    """The checkpoint at which a run goes on; where it has none, `export` says so of what this returns. Raises
    `CheckpointError`."""
    checkpoints = run / "checkpoints"
    return checkpoint.newest(checkpoints) or checkpoints / checkpoint.LAST


def export(path: Path, out: Path, half: bool = False, encoders: str | None = None) -> None:
    """`half`: weights as 16-bit floats. `encoders`: see `export_animator`. Raises `ExportError` or `CheckpointError`
    where the checkpoint is missing, damaged, of another version, or of neither trainer."""
    state = checkpoint.read_state(path)
    said = state["module"]
    provenance = {"checkpoint": path.resolve().name, "step": state["step"]}
    if "motion_config" in said:
        with of_this_version(path, TRAINED_BY):
            config = MotionConfig.from_dict(said["motion_config"])
        save_generator(out, config, tensors(path, "model.average.", half), provenance, said.get("crop"))
    elif "animator_config" in said:
        export_animator(path, said, out, provenance, half, encoders)
    else:
        raise ExportError(f"{path}: not a checkpoint of the motion trainer or of the animator")


def export_animator(
    path: Path, said: dict[str, Any], out: Path, provenance: dict[str, Any], half: bool, shared: str | None
) -> None:
    """`shared`: a motion trainer's export with the same encoders, from `out`; config.json then names it and they are
    not copied."""
    trained = said["animator"]
    encoders = Path(trained["encoders"])
    check_trained_on(encoders, trained["encoders_hash"], encoders_hash(encoders))
    if shared is not None:
        there = (out / shared).resolve()  # `out` may not be there yet
        if fingerprint(load_encoders(there)) != fingerprint(load_encoders(encoders)):
            raise ExportError(f"{there}: holds other encoders than {encoders}. Leave out --encoders to copy those.")
    state = tensors(path, "model.network.", half)
    average = tensors(path, "model.average.", half)
    if not average.keys() <= state.keys():
        raise ExportError(f"{path}: its averages are none of this version of dex. {TRAINED_BY}")
    state |= average  # what the phase does not train has none
    sections = {
        "codec": trained["codec"],
        "size": trained["size"],
        "schedule": trained["schedule"],
        "sampler": trained.get("sampler", {}),  # of a checkpoint that does not say: the sampler's own
        **({} if shared is None else {"encoders": shared}),
        "crop": trained["crop"],
        "provenance": provenance | {"phase": trained["phase"], "codec_hash": trained["codec_hash"]},
    }
    with of_this_version(path, TRAINED_BY):
        config = AnimatorConfig.from_dict(said["animator_config"])
    if shared is None:
        copy_encoders(encoders, out / "encoders")  # before what says that all is there
    save_animator(out, config, state, sections)


def tensors(path: Path, prefix: str, half: bool) -> dict[str, Tensor]:
    """Of a checkpoint, those that begin with `prefix`, without it."""
    found = checkpoint.read_tensors(path, prefix)
    return {name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dex.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--half", action="store_true", help="weights as 16-bit floats: half the size")
    parser.add_argument(
        "--encoders", metavar="DIR", help="an animator's, in place of a copy: a motion export, from the folder of --out"
    )
    parser.add_argument("--out", type=Path, help="default: RUN/export")
    arguments = parser.parse_args()
    run: Path = arguments.run
    single = (run / checkpoint.STATE).is_file()
    out = arguments.out or (run.parent if single else run) / "export"
    try:
        export(run if single else checkpoint_of(run), out, arguments.half, arguments.encoders)
    except (ExportError, checkpoint.CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    main()
