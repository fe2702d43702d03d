"""Train: `python -m dex.fit [--config FILE] [--run DIR] [--model.… --data.… --trainer.…]`.

Without `--config` it trains the quickstart on synthetic heads. A run is a folder: configuration, TensorBoard events,
checkpoints, result. The same command on an unfinished run continues it at its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dex.callbacks.log_lines import LogLines
from dex.callbacks.preview import Preview
from dex.callbacks.throughput import Throughput
from dex.data.shards import write_atomic
from dex.motion.encoders import ExportError

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
# What a user can mend: told in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, FileNotFoundError, MisconfigurationException, ExportError)


class FitCLI(LightningCLI):
    """LightningCLI whose run folder decides where everything is written and whether a run is continued."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str, required=True, help="folder of this run: configuration, logs, checkpoints"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 1000,
                "checkpoint.filename": "step-{step:07d}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_last": True,
            }
        )
        parser.add_lightning_class_args(Preview, "preview")
        parser.add_lightning_class_args(Throughput, "throughput")

    @property
    def folder(self) -> Path:
        return Path(self.config.run)

    def before_instantiate_classes(self) -> None:
        self.config.checkpoint.dirpath = str(self.folder / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        logger = TensorBoardLogger(self.folder, name="", version="")
        trainer: Any = super().instantiate_trainer(logger=logger, default_root_dir=str(self.folder), **kwargs)
        trainer.callbacks.insert(0, LogLines())  # ahead of ModelCheckpoint, which Lightning keeps last
        return trainer

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is continued."""
        whole = yaml.safe_load(self.parser.dump(self.config))
        return {name: whole[name] for name in ("seed_everything", "model", "data")}


def check_same_settings(cli: FitCLI) -> None:
    """Raises `ValueError` naming every setting in which the run's folder differs from what is asked for now."""
    before = yaml.safe_load((cli.folder / "config.yaml").read_text())
    old = flatten({name: before.get(name) for name in cli.settings()})
    new = flatten(cli.settings())
    changed = [f"{key} {old.get(key)} → {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed:
        raise ValueError(
            f"{cli.folder} holds a run with other settings ({'; '.join(changed[:5])}). "
            "Name a new folder with --run, or repeat the settings of its config.yaml."
        )


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    if not isinstance(content, dict):
        return {prefix: content}
    return {k: v for key, value in content.items() for k, v in flatten(value, f"{prefix}.{key}".strip(".")).items()}


def fit(cli: FitCLI) -> None:
    """Trains, or continues, or where the run is complete only says so; then prints the result."""
    last = cli.folder / "checkpoints" / "last.ckpt"
    resumed = last.is_file()
    if resumed:
        check_same_settings(cli)
        print(f"continuing {cli.folder} from {last.name}; give another --run to start afresh", flush=True)
    started = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last if resumed else None, weights_only=True)
    seconds = time.perf_counter() - started
    if cli.trainer.interrupted:
        sys.exit(f"interrupted at step {cli.trainer.global_step}; the same command continues the run")
    figures = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)[0]
    if cli.trainer.is_global_zero:
        result = {"step": cli.trainer.global_step, "seconds": round(seconds, 1), "continued": resumed, **figures}
        write_atomic(cli.folder / "result.json", json.dumps(result, indent=1).encode())
        print(cli.model.report(figures))
        print(f"\n{seconds:.0f} s of training. Curves and pictures: tensorboard --logdir {cli.folder}")


def make_cli(args: list[str]) -> FitCLI:
    """Parses and builds everything; trains nothing yet."""
    if not any(argument.split("=")[0] in ("--config", "-c", "--help", "-h") for argument in args):
        args = ["--config", str(QUICKSTART), *args]
    return FitCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        args=args,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
    )


def main() -> None:
    # Lightning's advertisements, its advice for other ways of training, and its own deprecations are no news to a user.
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        fit(make_cli(sys.argv[1:]))
    except USER_ERRORS as error:
        if os.environ.get("DEX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
