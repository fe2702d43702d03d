"""Train: `python -m dex.fit [--config FILE] [--run DIR] [--model.… --data.… --trainer.…]`.

Without `--config` it trains the quickstart on synthetic heads. A run is a folder: configuration, TensorBoard events,
checkpoints, result. The same command on an unfinished run continues it at its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dex import checkpoint
from dex.callbacks.checkpoints import Checkpoints, Preempted
from dex.callbacks.log_lines import LogLines
from dex.callbacks.monitor import Monitor
from dex.callbacks.preview import Preview
from dex.callbacks.throughput import Throughput
from dex.files import write_atomic
from dex.saved import flatten
from dex.sharding import leave_group
from dex.speed import device_name, emulates_bf16

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
# Exit status that asks for a second start: a temporary failure in BSD's sysexits.h, 75. A cancelled run gives the
# shell's status for its signal instead, and is left alone.
REQUEUE = os.EX_TEMPFAIL
# What a user can mend: told in one line. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, MisconfigurationException)


class FitCLI(LightningCLI):
    """LightningCLI whose run folder decides where everything is written and whether a run is continued."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str, required=True, help="folder of this run: configuration, logs, checkpoints"
        )
        parser.add_argument(
            "--force-resume", action="store_true", help="continue a run although its settings were others"
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Preview, "preview")
        parser.add_lightning_class_args(Monitor, "monitor")
        parser.add_lightning_class_args(Throughput, "throughput")

    @property
    def folder(self) -> Path:
        return Path(self.config.run)

    @property
    def checkpoints(self) -> Path:
        return Path(self.config.checkpoint.folder or self.folder / "checkpoints")

    @property
    def newest(self) -> Path | None:
        """The checkpoint at which the run goes on; None in a new run. Raises `CheckpointError`."""
        return checkpoint.newest(self.checkpoints)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        # Of what a killed run logged after its last checkpoint, TensorBoard shows only the repetition.
        purge = checkpoint.read_state(self.newest)["step"] if self.newest else None
        logger = TensorBoardLogger(self.folder, name="", version="", purge_step=purge)
        if SLURMEnvironment.detect():
            # Lightning's own handler saves in the middle of a step, on whichever ranks the signal has reached.
            asked: Any = self.config_init.trainer.plugins or []
            others = asked if isinstance(asked, list) else [asked]
            kwargs["plugins"] = [*others, SLURMEnvironment(auto_requeue=False)]
        trainer: Any = super().instantiate_trainer(
            logger=logger,
            default_root_dir=str(self.folder),
            use_distributed_sampler=False,  # the datamodules share out their data themselves
            **kwargs,
        )
        trainer.callbacks.insert(0, LogLines())  # ahead of Checkpoints, which Lightning keeps last
        return trainer

    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is continued: not the machine, of which the loader's workers are a part."""
        whole = yaml.safe_load(self.parser.dump(self.config))
        named = flatten({name: whole[name] for name in ("seed_everything", "model", "data")})
        return {key: value for key, value in named.items() if key != "data.init_args.workers"}


def check_same_settings(cli: FitCLI, newest: Path) -> None:
    """Raises `ValueError` naming every setting in which the checkpoint differs from what is asked for now."""
    old, new = checkpoint.read_state(newest)["settings"], cli.settings()
    changed = [f"{key} {old.get(key)} → {new.get(key)}" for key in sorted(old | new) if old.get(key) != new.get(key)]
    if changed and not cli.config.force_resume:
        raise ValueError(
            f"{cli.folder} holds a run with other settings ({'; '.join(changed[:5])}). Name a new folder with --run, "
            "repeat the settings of its config.yaml, or continue all the same with --force-resume."
        )


def fit(cli: FitCLI) -> None:
    """Trains, or continues, or where the run is complete only says so; then prints the result."""
    newest = cli.newest
    saves: Any = cli.trainer.checkpoint_callback
    if newest:
        check_same_settings(cli, newest)
        print(f"continuing {cli.folder} from {newest.name}; give another --run to start afresh", flush=True)
    if cli.trainer.precision == "bf16-mixed" and cli.trainer.strategy.root_device.type == "cpu" and emulates_bf16():
        told(
            "warning: this processor has no bf16: steps take several times as long as with --trainer.precision 32-true"
        )
    saves.folder, saves.resume, saves.settings = cli.checkpoints, newest, cli.settings()
    saves.listen()
    started = time.perf_counter()
    cli.trainer.fit(cli.model, cli.datamodule)
    seconds = time.perf_counter() - started
    if saves.received == signal.SIGINT:  # in the validation behind the last step
        raise Preempted(signal.SIGINT, cli.trainer.global_step)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # all is saved: what is left may end at once
    validated = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    figures = validated[0] if validated else {}
    if cli.trainer.is_global_zero:
        step, report = cli.trainer.global_step, cli.folder / "result.json"
        trained: dict[str, Any] = {"step": step, "seconds": round(seconds, 1), "continued": newest is not None}
        trained |= {"device": device_name(cli.model.device), "threads": torch.get_num_threads()}
        complete = newest and newest.name == checkpoint.step_folder(cli.checkpoints, step).name
        if complete and report.is_file():  # nothing was trained now
            before = json.loads(report.read_text())
            trained = {name: before.get(name) for name in trained}
        write_atomic(report, json.dumps({**trained, **figures}, indent=1).encode())
        print(cli.model.report(figures) if figures else "Nothing was validated: no data or no batches for it.")
        print(f"\n{trained['seconds']:.0f} s of training. Curves and pictures: tensorboard --logdir {cli.folder}")


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
        trainer_defaults={"devices": 1},  # several take a strategy, which is chosen and not guessed
    )


@rank_zero_only
def told(line: str) -> None:
    """Once, however many ranks have it to say."""
    print(line, flush=True)


def main() -> None:
    # Lightning's advertisements, its advice for other ways of training, and its own deprecations are no news to a user.
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    try:
        fit(make_cli(sys.argv[1:]))
    except Preempted as ended:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # repeated until we have ended, also while Python tidies up
        told(f"{ended}: saved, the same command continues the run")
        sys.exit(REQUEUE if ended.signum == signal.SIGUSR1 else 128 + ended.signum)
    except USER_ERRORS as error:
        if os.environ.get("DEX_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    finally:
        leave_group()


if __name__ == "__main__":
    main()
