"""Does a long training leak? Resident memory and open files of every process of a run, over its steps.

    python -m benchmarks.soak [--steps 2000] [--workers 2] [--json FILE] [-- ARGUMENTS OF dex.fit]

Trains the quickstart in a temporary folder with loader processes, looks at each process every few seconds, and fits a
line to what came after the first half, in which caches and pools fill. `drift` is what that line gains from the
first to the last look, `noise` the standard deviation about it. A training whose later steps hold more than its first,
as the quickstart's do, is told after -- to be alike throughout:

    python -m benchmarks.soak --json FILE -- --model.init_args.optimisation.anchors_first 0 \\
        --model.init_args.optimisation.encoders_every 1

Linux only.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import measured
from benchmarks.memory import resident_bytes

_WARM_UP = 0.5  # of the looks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("fit", nargs="*", help="arguments of dex.fit, after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end by which `run` still kills its training
    figures = measured(lambda: run(options.steps, options.workers, options.interval, options.fit), options.json)
    for process in figures["processes"]:
        print(
            "{name:22} {looks:4} looks  {memory_mb:7.1f} MB, drift {memory_drift_mb:+7.2f}, "
            "noise {memory_noise_mb:6.2f}   {files:5.1f} files, "
            "drift {files_drift:+6.2f}, noise {files_noise:5.2f}".format(**process)
        )


def run(steps: int, workers: int, interval: float, arguments: list[str]) -> dict[str, Any]:
    """Raises `ValueError` where the training fails, or ends before it was seen often enough to fit a line."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "dex.fit", "--run", folder, "--trainer.max_steps", str(steps)]
        command += ["--data.init_args.workers", str(workers), *arguments]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as training:
            try:
                seen = watch(training, interval)
            finally:
                training.kill()  # an interrupted soak leaves nothing behind
        if training.returncode:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ValueError(f"the training ended with {training.returncode}: {last}")
    rows = [line(name, looks) for name, looks in seen.items() if len(looks) >= 8]
    if not rows:
        raise ValueError("no process was seen eight times: take more --steps or a shorter --interval")
    return {"steps": steps, "seconds": time.perf_counter() - started, "processes": rows}


def watch(training: subprocess.Popen[bytes], interval: float) -> dict[str, list[tuple[int, int]]]:
    """(resident bytes, open files) at every look, of the training and of each process that it started."""
    seen: dict[str, list[tuple[int, int]]] = {}
    while training.poll() is None:
        for number in (training.pid, *children(training.pid)):
            name = "training" if number == training.pid else f"its process {number}"
            try:
                look = resident_bytes(number), len(list(Path(f"/proc/{number}/fd").iterdir()))
            except OSError:  # ended since it was listed
                continue
            seen.setdefault(name, []).append(look)
        time.sleep(interval)
    return seen


def children(process: int) -> list[int]:
    """Processes started by any thread of `process`."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    try:
        return [int(number) for file in lists for number in file.read_text().split()]
    except OSError:  # a thread ended
        return []


def line(name: str, looks: list[tuple[int, int]]) -> dict[str, Any]:
    """Least squares through what came after the warm-up."""
    kept = np.array(looks[int(_WARM_UP * len(looks)) :], dtype=float) / (1e6, 1)
    time_of = np.arange(len(kept))
    slopes, offsets = np.polyfit(time_of, kept, 1)
    noise = (kept - offsets - time_of[:, None] * slopes).std(axis=0)
    drift = slopes * (len(kept) - 1)
    return {
        "name": name,
        "looks": len(kept),
        "memory_mb": float(kept[:, 0].mean()),
        "memory_drift_mb": float(drift[0]),
        "memory_noise_mb": float(noise[0]),
        "files": float(kept[:, 1].mean()),
        "files_drift": float(drift[1]),
        "files_noise": float(noise[1]),
        "memory_mb_of_looks": [round(memory / 1e6, 1) for memory, _ in looks],
        "files_of_looks": [files for _, files in looks],
    }


if __name__ == "__main__":
    main()
