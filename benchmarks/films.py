"""Filmstrips of the worst pairs of a result, beside their drivers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.material import Frames
from benchmarks.results import REFERENCES, Result
from benchmarks.suite import open_protocol
from benchmarks.videos import read_video
from dex.files import file_sha256

COUNT = 10
_FRAMES = 8  # of a strip


class Film(NamedTuple):
    """One pair: named rows of frames."""

    method: str
    pair: str
    metric: str
    value: float | None
    rows: list[tuple[str, Frames]]


def worst(result: Result, count: int = COUNT) -> tuple[str, list[tuple[str, float | None]]]:
    """The metric that it is judged by (the first AED, else the first of all), and the pairs with their values, the
    worst first; one that could not be read is the worst."""
    names = list(result.pairs[0]["values"])
    name = next((n for n in names if n.startswith("aed.")), names[0])
    entry = result.metric(name)
    sign = -1 if entry is not None and entry["better"] == "lower" else 1

    def badness(pair: tuple[str, float | None]) -> float:
        return -np.inf if pair[1] is None else sign * pair[1]

    return name, sorted(((p["id"], p["values"][name]) for p in result.pairs), key=badness)[:count]


def films(results: Sequence[Result], videos: Path, protocol: str, shards: Path | None) -> list[Film]:
    """Of every result that is no reference row; `videos`: the folder of `run` with a folder for each method. Raises
    ValueError where the videos or the protocol are missing."""
    path, manifest, material = open_protocol(protocol, shards)
    pairs = {pair.id: pair for pair in manifest.pairs}
    wanted, made = file_sha256(path), []
    for result in results:
        if result.method in REFERENCES or result.content["dataset"]["manifest_sha256"] != wanted:
            continue
        name, chosen = worst(result)
        folder = videos / f"{result.method}-{path.stem}"
        for id_, value in chosen:
            pair = pairs[id_]
            output = read_video(folder if folder.is_dir() else videos, pair, manifest.size, manifest.fps)
            spans = {"source": pair.source, "pose driver": pair.pose, "expression driver": pair.expression}
            rows = [(label, material.frames(span)) for label, span in spans.items()]
            made.append(
                Film(result.method, id_, name, value, [*((k, _few(f)) for k, f in rows), ("output", _few(output))])
            )
    return made


def _few(frames: Frames) -> Frames:
    return frames[np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))]
