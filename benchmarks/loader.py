"""Frames a second of the training loader, against the bare decode loop in as many bare processes.

    python -m benchmarks.loader [--shards DIR] [--mode both] [--workers 2] [--size 256] [--json FILE]

`ratio` = loader / bare. The bare loop holds the clips' bytes in memory and does nothing but open them with decord and
decode frames of the same kind at the same size: no labels, no region maps, no tensors, no queue. Both are measured in
turns of a few seconds, so that another load on the machine meets them alike.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import measured
from dex.data.reading import Tally, find_shards, read_units
from dex.data.shards import ShardIndex
from dex.data.synthetic.write import Plan, write
from dex.data.talking_heads import TalkingHeads
from dex.video import decord  # which loads it safely

CLIP_BYTES_HELD = 256_000_000  # the bare loop reads no more than this into memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", help="folder of shards; without it, synthetic heads in a temporary folder")
    parser.add_argument("--mode", choices=("pairs", "clip", "both"), default="both")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes of either side")
    parser.add_argument("--size", type=int, help="pixels a side of the batches (default: as stored, at most 256)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    measured(lambda: run(arguments), arguments.json)


def run(arguments: argparse.Namespace) -> dict:
    if arguments.workers < 1 or arguments.turns < 1:
        raise ValueError("--workers and --turns must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        shards = arguments.shards or folder
        if not arguments.shards:
            write(Plan(clips=max(4, arguments.workers), size=512, seconds=4), Path(folder))
        size = arguments.size or min(256, ShardIndex.load(shards).crop.size)
        figures: dict = {"workers": arguments.workers, "size": size, "modes": {}}
        for mode in ("pairs", "clip") if arguments.mode == "both" else (arguments.mode,):
            figures["modes"][mode] = measure(shards, mode, size, arguments)
            print("{:5}  loader {:7.1f} frames/s  bare {:7.1f} frames/s  ratio {:.3f}".format(
                mode, *figures["modes"][mode].values()
            ))  # fmt: skip
    figures["ratio"] = min(mode["ratio"] for mode in figures["modes"].values())
    return figures


def measure(shards: str, mode: Any, size: int, arguments: argparse.Namespace) -> dict[str, float]:
    data = TalkingHeads(
        shards, mode=mode, size=size, batch_size=arguments.batch_size, workers=arguments.workers,
        max_background_motion=None, cross_view=False,
    )  # fmt: skip
    data.setup()
    clips = load_clips(shards)
    loader, bare = [], []
    for _ in range(arguments.turns):
        loader.append(time_loader(data, arguments.seconds))
        bare.append(time_bare(clips, data, arguments.workers, arguments.seconds))
    return {
        "loader_frames_per_second": float(np.median(loader)),
        "bare_frames_per_second": float(np.median(bare)),
        "ratio": float(np.median(np.divide(loader, bare))),  # of turns that are neighbours in time
    }


def frames_per_sample(data: TalkingHeads) -> int:
    return 1 + (data.sampling.drivers if data.sampling.mode == "pairs" else data.sampling.clip_length)


def time_loader(data: TalkingHeads, seconds: float) -> float:
    """Frames a second once the queue has been emptied, so that nothing made beforehand is counted."""
    batches = iter(data.train_dataloader())
    for _ in range(4 * data.workers):
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds or count % data.workers:
        next(batches)
        count += 1
    return count * data.batch_size * frames_per_sample(data) / (time.perf_counter() - begin)


# ---- the bare side ---------------------------------------------------------------------------------------------------


def load_clips(shards: str) -> list[tuple[bytes, int]]:
    """(mp4, frames) of as many clips as fit."""
    held: list[tuple[bytes, int]] = []
    units = (unit for url in find_shards(shards)[0] for unit in read_units(url, Tally(), cameras=1))
    for unit in units:
        held.append((unit.clips[0].members["mp4"](), unit.clips[0].meta.frames))
        if sum(len(data) for data, _ in held) > CLIP_BYTES_HELD:
            break
    return held


def time_bare(clips: list[tuple[bytes, int]], data: TalkingHeads, processes: int, seconds: float) -> float:
    context = multiprocessing.get_context("fork")
    counts, barrier = context.SimpleQueue(), context.Barrier(processes)
    children = [
        context.Process(target=_decode_for, args=(clips, data, seconds, seed, counts, barrier))
        for seed in range(processes)
    ]
    for child in children:
        child.start()
    total = sum(counts.get() for _ in children)
    for child in children:
        child.join()
    return total


def _decode_for(
    clips: list[tuple[bytes, int]],
    data: TalkingHeads,
    seconds: float,
    seed: int,
    counts: multiprocessing.SimpleQueue,
    barrier: Barrier,
) -> None:
    rng = np.random.default_rng(seed)
    barrier.wait()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        video, frames = clips[rng.integers(len(clips))]
        reader = decord.VideoReader(
            io.BytesIO(video), num_threads=1, width=data.sampling.size, height=data.sampling.size
        )
        for indices in _plan(data, frames, rng):
            reader.get_batch(indices).asnumpy()
        count += data.samples_per_clip * frames_per_sample(data)
    counts.put(count / (time.perf_counter() - begin))


def _plan(data: TalkingHeads, frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The frames that the loader would take from one opened clip, call by call of the decoder."""
    how, samples = data.sampling, range(data.samples_per_clip)
    if how.mode == "pairs":
        return [np.unique([rng.choice(frames, 1 + how.drivers, replace=False) for _ in samples])]
    begins = [int(rng.integers(frames - how.clip_length)) for _ in samples]
    return [np.unique([rng.integers(frames), *range(begin, begin + how.clip_length)]) for begin in begins]


if __name__ == "__main__":
    main()
