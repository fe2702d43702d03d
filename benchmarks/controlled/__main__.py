"""The controlled experiment: what keeps pose and expression apart, on heads whose truth is exact.

`python -m benchmarks.controlled --preset small|full|long` trains the method and the forms of it that lack one part
each, measures each on heads that no training saw, and prints one table (docs/experiments.md). It goes on where it
stopped: a run that has its result file is not made again, one that was cut short continues at its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml

from benchmarks.controlled.measuring import (
    REFERENCES,
    Questions,
    described,
    measured,
    recorded,
    reference,
    result_of,
)
from benchmarks.controlled.tables import load, table
from benchmarks.controlled.variants import PRESETS, VARIANTS, Preset, Variant
from benchmarks.results import checkpoint_sha256
from dex.animation.backends import load_backend
from dex.checkpoint import CheckpointError
from dex.cores import usable_cores
from dex.data.synthetic.motion import FramingName
from dex.export import checkpoint_of, export
from dex.saved import ExportError
from dex.speed import emulates_bf16

CONFIGS = Path(__file__).parents[2] / "configs"
RESULTS = Path(__file__).parents[1] / "results" / "controlled"
ESTIMATOR = "estimator-{}.json"  # beside the results
ONE_AT_A_TIME = Lock()  # of measuring, which takes all cores, and of exports, which turn off warnings of all threads
RUNS: dict[Path, Lock] = {}  # of a training that several jobs may ask for at once


class RunError(ValueError):
    """A training of the experiment failed; the message says which and where its output is."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controlled", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument(
        "--encoders", type=Path, metavar="DIR", help="what all of stage 2 stands on, instead of (a) of its seed"
    )
    parser.add_argument(
        "--tuples", type=int, metavar="N", help="measured on, of poses as in training alone; with an --out of its own"
    )
    parser.add_argument(
        "--drivers",
        type=int,
        metavar="D",
        help="of each source in place of 2: all pairs, a grid; with an --out of its own",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/controlled"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time, which share the cores")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what there is")
    asked = parser.parse_args()
    try:
        if asked.table:
            making = ("only", "seeds", "encoders", "tuples", "drivers")
            if given := [f"--{name}" for name in making if getattr(asked, name) is not None]:
                raise ValueError(f"--table prints all results of --out; leave out {', '.join(given)}")
        else:
            make_all(asked)
        print(table(load(asked.out, asked.preset)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")


def make_all(asked: argparse.Namespace) -> None:
    """Every result that is not there yet; stage 2 after stage 1, which it stands on."""
    preset, size, framing, record = asked_of_all(asked)
    if preset.tuples < 2 or preset.drivers < 2:
        raise ValueError(f"--tuples {preset.tuples}, --drivers {preset.drivers}: need at least 2")
    recorded(record, described(preset, size, framing))  # before hours of training, not after
    names = asked.only or preset.variants
    if not preset.animator and (second := [name for name in names if VARIANTS[name].stage == 2]):
        raise ValueError(f"--only {' '.join(second)}: the preset {asked.preset} has no stage 2")
    seeds = preset.seeds if asked.seeds is None else tuple(asked.seeds)
    jobs = [(name, seed) for seed in seeds for name in names if not file_of(asked, name, seed).is_file()]
    # stage 1, then stage 2, then what shares a training with another variant
    for wave in (1, 2, 3):
        make_together(asked, [job for job in jobs if VARIANTS[job[0]].wave == wave])
    make_references(asked)


def make_together(asked: argparse.Namespace, jobs: Sequence[tuple[str, int]]) -> None:
    """`asked.processes` at a time. Where one fails, those at work end and no other begins."""
    with ThreadPoolExecutor(asked.processes) as pool:
        at_work = [pool.submit(make, asked, *job) for job in jobs]
        try:
            for done in as_completed(at_work):
                print(done.result(), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def file_of(asked: argparse.Namespace, name: str, seed: int | None = None) -> Path:
    return asked.out / f"{asked.preset}-{name}{'' if seed is None else f'-{seed}'}.json"


def make(asked: argparse.Namespace, name: str, seed: int) -> Path:
    """Trains, exports, measures and writes one result."""
    variant = VARIANTS[name]
    run = exported(asked, variant.of or name, seed)
    backend = load_backend(run, None, None, 0, None, None, **(variant.sampler or {}))
    trained = json.loads((run / "result.json").read_text())
    model = {
        **backend.provenance,
        "name": name,
        "letter": variant.letter,
        "seed": seed,  # of the training
        "checkpoint_sha256": checkpoint_sha256(run),
        "steps": trained["step"],
        "seconds": None if trained["continued"] else trained["seconds"],  # of a whole training only
        "threads": trained.get("threads"),
        "device": trained.get("device"),
        "precision": settings_of(run)["trainer"]["precision"],
        "config": config_of(run, asked.runs),
        "encoders_fingerprint": backend.encoders,
    }
    path = file_of(asked, name, seed)
    with ONE_AT_A_TIME:
        measured(questions_of(*asked_of_all(asked)), backend, asked.preset, model, command_of(asked, model)).save(path)
    return path


def command_of(asked: argparse.Namespace, model: Mapping[str, Any]) -> list[str]:
    """By which this one result is made again."""
    command = ["python", "-m", "benchmarks.controlled", "--preset", asked.preset]
    if model["seed"] is not None:  # no reference
        command += ["--only", model["name"], "--seeds", str(model["seed"])]
        if asked.encoders and VARIANTS[model["name"]].stage == 2:
            command += ["--encoders", model["config"]["init_args"]["encoders"]]
    for name in ("tuples", "drivers"):
        if (value := getattr(asked, name)) is not None:
            command += [f"--{name}", str(value)]
    return command


def config_of(run: Path, runs: Path) -> dict[str, Any]:
    """The training's model settings. Stage 1's encoders by their path from `runs`, or from what holds the project, or
    by their folder's name alone: that says nothing of a machine."""
    config = settings_of(run)["model"]
    settings = config["init_args"]
    if "encoders" in settings:
        encoders = Path(settings["encoders"]).resolve()
        within = [folder for folder in (runs.resolve(), CONFIGS.parent) if encoders.is_relative_to(folder)]
        settings["encoders"] = encoders.relative_to(within[0]).as_posix() if within else encoders.name
    return config


def settings_of(run: Path) -> dict[str, Any]:
    """All that `dex.fit` was told."""
    return yaml.safe_load((run / "config.yaml").read_text())


def exported(asked: argparse.Namespace, name: str, seed: int) -> Path:
    """The run of a variant, trained where it is not: its result file may be there without it."""
    run = asked.runs / f"{asked.preset}-{name}-{seed}"
    with RUNS.setdefault(run, Lock()):
        if not (run / "export" / "config.json").is_file():
            train(asked, run, VARIANTS[name], seed)
    return run


def asked_of_all(asked: argparse.Namespace) -> tuple[Preset, int, FramingName, Path]:
    """What is asked of every variant: how much, how large, how framed, and where the estimator's own figures lie."""
    preset = PRESETS[asked.preset]
    data: dict[str, Any] = {}
    for name in preset.motion:
        data |= yaml.safe_load((CONFIGS / name).read_text()).get("data", {}).get("init_args", {})
    given = {name: value for name in ("tuples", "drivers") if (value := getattr(asked, name)) is not None}
    preset = replace(preset, **given, strata=()) if given else preset
    return preset, data["size"], data.get("framing", "wide"), asked.out / ESTIMATOR.format(asked.preset)


questions_of = cache(Questions.make)


def threads(asked: argparse.Namespace) -> int:
    """Of each training."""
    return max(1, usable_cores() // asked.processes)


def train(asked: argparse.Namespace, run: Path, variant: Variant, seed: int) -> None:
    """In a process of its own, which goes on where an earlier one stopped; then the export, here. Raises `RunError`."""
    change = {
        "seed_everything": seed,
        "model.init_args.seed": seed,
        "data.init_args.seed": seed,
        **(variant.change or {}),
    }
    if variant.stage == 2:
        encoders = asked.encoders or exported(asked, "everything", seed) / "export" / "encoders"
        change["model.init_args.encoders"] = encoders
    if (run / "config.yaml").is_file():  # it goes on as it began
        change["trainer.precision"] = settings_of(run)["trainer"]["precision"]
    elif not torch.accelerator.is_available() and emulates_bf16():
        change["trainer.precision"] = "32-true"  # a step of the presets' bf16 takes several times as long
    arguments = [f"--{key}={value}" for key, value in change.items()]
    preset = PRESETS[asked.preset]
    configs = preset.motion if variant.stage == 1 else preset.animator
    arguments = [*(f"--config={CONFIGS / name}" for name in configs), *arguments]
    run.mkdir(parents=True, exist_ok=True)
    log = run / "output.log"
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", "dex.fit", *arguments, "--run", str(run)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads(asked))},
            check=False,
        )
    if done.returncode:
        raise RunError(f"{run}: python -m dex.fit ended with {done.returncode}; its output is in {log}")
    try:
        with ONE_AT_A_TIME:
            export(checkpoint_of(run), run / "export")
    except (ExportError, CheckpointError, OSError) as error:
        raise RunError(f"{run}: trained, not exported: {error}") from error


def make_references(asked: argparse.Namespace) -> None:
    """The rows that say what a figure means, on the same tuples and by the same estimator."""
    todo = [name for name in REFERENCES if not file_of(asked, name).is_file()]
    for name in todo:
        questions = questions_of(*asked_of_all(asked))
        made = {"": reference(name, questions.sets[""])}
        model = {"name": name, "letter": "", "seed": None}
        result_of(questions, made, asked.preset, model, command_of(asked, model), {}).save(file_of(asked, name))


if __name__ == "__main__":
    main()
