"""What scoring costs beside its networks: frames a second, against the same networks on frames held in memory.

    python -m benchmarks.score_speed [--size 512] [--clips 6] [--turns 3] [--device cuda] [--json FILE]

`ratio` = seconds of the bare extractors / seconds of `benchmarks score`, which also checks, decodes and draws. Both see
the same frames as often, in turns, so that another load on the machine meets them alike. `kib_per_clip` is what the
resident memory grows by with each further clip of a self protocol: numbers are kept, frames are not (Linux only).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import measured
from benchmarks.make import make_synthetic
from benchmarks.manifest import Manifest
from benchmarks.material import SyntheticClips
from benchmarks.memory import resident_bytes, return_freed
from benchmarks.reading import Extractors, Truth, as_float
from benchmarks.scoring import Scorer
from benchmarks.suite import generate, make_extractors, reading_device
from benchmarks.videos import check_videos
from dex.metrics.pictures import psnr, ssim


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", help="of the networks (default: a GPU where there is one)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    measured(lambda: run(arguments.size, arguments.clips, arguments.turns, arguments.device), arguments.json)


def run(size: int, clips: int, turns: int, device: str | None = None) -> dict[str, Any]:
    if clips < 1 or turns < 1:
        raise ValueError("--clips and --turns must be at least 1")
    manifest = make_synthetic("self", "speed", clips, size, 0)
    material = SyntheticClips.of(manifest)
    with (
        tempfile.TemporaryDirectory() as folder,
        make_extractors(
            "stlpips_alex", "effnet_lite0", "arcface", None, None, "", False, reading_device(device)
        ) as extractors,
    ):
        videos = Path(folder)
        generate(manifest, lambda pair: material.frames(pair.pose), videos)
        bare, scored = [], []
        for _ in range(turns):
            bare.append(time_bare(manifest, material, extractors))
            scored.append(time_scored(manifest, material, extractors, videos))
        growth = memory_per_clip(extractors)
    frames = sum(pair.pose.count for pair in manifest.pairs)
    parts = {name: float(np.median([turn[name] for turn in bare])) / frames * 1000 for name in bare[0]}
    ratio = float(np.median([sum(b.values()) / s for b, s in zip(bare, scored, strict=True)]))
    for name, value in parts.items():
        print(f"{name:11} {value:8.1f} ms a frame")
    print(f"bare        {sum(parts.values()):8.1f} ms a frame")
    print(f"scored      {float(np.median(scored)) / frames * 1000:8.1f} ms a frame, ratio {ratio:.3f}")
    print(f"memory      {growth / 1024:8.1f} KiB for each further clip")
    return {
        "size": size,
        "clips": clips,
        "milliseconds_per_frame": parts | {"scored": float(np.median(scored)) / frames * 1000},
        "ratio": ratio,
        "kib_per_clip": growth / 1024,
    }


def time_bare(manifest: Manifest, material: SyntheticClips, extractors: Extractors) -> dict[str, float]:
    """Seconds of each extractor, on outputs and drivers as scoring reads them: pictures against the truth once,
    whatever reads one picture twice."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
        begin = time.perf_counter()
        result = work(*inputs)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
        return result

    assert extractors.identity is not None
    for pair in manifest.pairs:
        truth = material.frames(pair.pose)
        for frames in (truth, truth, material.frames(pair.source)):
            faces = timed("faces", extractors.faces.read, frames)
            timed("identity", extractors.identity.embed, frames, faces.points)
        made, true = as_float(truth), as_float(truth)
        for pictures in (made, true):
            timed("features", extractors.features.features, pictures)
        timed("perceptual", extractors.perceptual.distance, made, true)
        timed("psnr", psnr, made.double(), true.double())
        timed("ssim", ssim, made.double(), true.double())
    return spent


def time_scored(manifest: Manifest, material: SyntheticClips, extractors: Extractors, videos: Path) -> float:
    begin = time.perf_counter()
    check_videos(videos, manifest, material)
    Scorer(Truth(manifest, material, extractors)).score(videos)
    return time.perf_counter() - begin


def memory_per_clip(extractors: Extractors, clips: int = 40, size: int = 128) -> float:
    """Bytes: the slope of resident memory over the second half of the clips, the first being warm-up."""
    manifest = make_synthetic("self", "memory", clips, size, 0)
    material, resident = SyntheticClips.of(manifest), []
    scorer = Scorer(Truth(manifest, material, extractors))
    for pair in manifest.pairs:
        scorer.add(pair, material.frames(pair.pose))
        return_freed()
        resident.append(resident_bytes())
    half = resident[clips // 2 :]
    return float(np.polyfit(range(len(half)), half, 1)[0])


if __name__ == "__main__":
    main()
