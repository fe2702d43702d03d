"""What the commands do: generate, score, verify and compare, as functions that take plain arguments."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.manifest import Manifest, find, sha256_of
from benchmarks.material import Material, open_material
from benchmarks.methods import Maker
from benchmarks.reading import Extractors, Truth
from benchmarks.results import REFERENCES, SCHEMA, Result, ResultError, environment, git_state
from benchmarks.scoring import Scorer
from benchmarks.videos import VideosError, check_videos, write_video
from dex.animation.backends import device
from dex.files import file_sha256, write_atomic
from dex.metrics.extractors.faces import MediaPipeReader, ScriptReader
from dex.metrics.extractors.features import Features, I3d
from dex.metrics.extractors.identity import ArcFace
from dex.metrics.extractors.perceptual import Perceptual
from dex.metrics.statistics import holm, sign_flip
from dex.speed import device_name

_MADE = "made.json"  # beside the videos of `run`
_TOLERANCE = 1e-9  # of a number that is computed again on the same device


def open_protocol(protocol: str, shards: Path | None) -> tuple[Path, Manifest, Material]:
    """Raises `ManifestError`."""
    path = find(protocol)
    manifest = Manifest.load(path)
    return path, manifest, open_material(manifest, shards)


def begin(folder: Path, protocol: Path, model: dict[str, Any]) -> None:
    """Writes down what the videos of `folder` are made by and for. Raises `VideosError` where it holds others, which
    would be taken for these."""
    record, said = folder / _MADE, json.dumps({"manifest_sha256": file_sha256(protocol), "model": model}, indent=1)
    held = folder.is_dir() and any(child.is_dir() for child in folder.iterdir())  # asked first: others begin too
    if record.is_file() or held:
        if not record.is_file() or record.read_text() != said:
            raise VideosError(
                f"{folder}: holds videos of other weights, settings or another protocol than these. Delete it, or give "
                "another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(record, said.encode())


def generate(manifest: Manifest, maker: Maker, folder: Path, rank: int = 0, world: int = 1) -> None:
    """Every pair of this process whose video is not there yet."""
    todo = [pair for pair in manifest.pairs[rank::world] if not (folder / pair.id).is_dir()]
    for pair in tqdm(todo, f"generating {folder.name}", unit="clip", leave=False, disable=rank > 0):
        write_video(folder / pair.id, maker(pair))


def score(videos: Path, protocol: Path, truth: Truth, model: dict[str, Any], command: Sequence[str]) -> Result:
    """`protocol`: the manifest of `truth`. Raises ValueError, of which `VideosError` names everything that is wrong
    with the videos."""
    manifest = truth.manifest
    check_videos(videos, manifest, truth.material)
    scores = Scorer(truth).score(videos)
    pairs = manifest.pairs
    content = {
        "schema": SCHEMA,
        "id": "",
        "task": manifest.task,
        "dataset": {"name": manifest.name, "manifest_sha256": file_sha256(protocol)},
        "pairs": {
            "sha256": sha256_of(pair["id"] for pair in scores.pairs),
            "count": len(pairs),
            "sources": len({pair.source.clip for pair in pairs}),
            "drivers": len({span.clip for pair in pairs for span in (pair.pose, pair.expression)}),
        },
        "model": model | git_state(),
        "preprocessing": {
            "resolution": manifest.size,
            "score_resolution": manifest.size,
            "resize": "bicubic with antialiasing, where a method works at another size",
            "crop": manifest.kind,
            "skip_first": manifest.task == "self",
            "videos_sha256": hash_videos(videos, manifest),
        },
        "metrics": scores.metrics,
        "comparisons": [],
        "environment": environment(truth.extractors.device),
        "warnings": scores.warnings,
        "command": list(command),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Result(content, scores.pairs)


def hash_videos(folder: Path, manifest: Manifest) -> str:
    """Of the files of every pair. Raises `VideosError` where there is no such folder."""
    if not folder.is_dir():
        raise VideosError(f"{folder}: no such folder")
    digest = hashlib.sha256()
    for pair in manifest.pairs:
        video = folder / f"{pair.id}.mp4"
        for file in [video] if video.is_file() else sorted((folder / pair.id).glob("*.png")):
            digest.update(f"{pair.id}/{file.name} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def make_extractors(
    perceptual: str,
    features: str,
    identity: str,
    motion: Path | None,
    i3d: Path | None,
    i3d_sha256: str,
    few_videos: bool,
    device: torch.device,
) -> Extractors:
    """`identity`: "none" for no CSIM. `device`: of their networks.

    Raises `WeightsError` where weights are missing, ValueError where MediaPipe is.
    """
    videos = None if i3d is None else I3d(i3d, i3d_sha256, device)
    faces = MediaPipeReader() if motion is None else ScriptReader.from_file(motion, device)
    embedding = None if identity == "none" else ArcFace(device)
    networks = Perceptual(perceptual, device), Features(features, device)
    return Extractors(faces, embedding, *networks, device, videos, few_videos)


def reading_device(name: str | None) -> torch.device:
    """By its name; None: a GPU where there is one. Raises ValueError for one that this machine lacks."""
    if name is None:
        return device()
    try:
        empty = torch.empty(0, device=name)
        empty.cpu()  # the meta device computes nothing
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        raise ValueError(f"--device {name}: {str(error).partition('. ')[0]}") from None
    return empty.device


def verify(
    path: Path, videos: Path | None, protocol: str, shards: Path | None, extractors: Extractors | None
) -> list[str]:
    """What was verified, a line each; the numbers themselves where `videos` and `extractors` are given. Raises
    `ResultError` for the first thing that is not as the file says."""
    result = Result.load(path)
    done = [f"{path}: id and per-pair values are those that were written"]
    for entry in result.content["metrics"]:
        values = [pair["values"].get(entry["id"]) for pair in result.pairs]
        read = [value for value in values if value is not None]
        if not read or not entry["aggregation"].startswith("mean over pairs"):
            continue
        if not _same(float(np.mean(read)), entry["value"]):
            raise ResultError(f"{path}: {entry['id']} is {entry['value']}, its pairs have {np.mean(read)}")
    done.append(f"{path}: every mean is that of its pairs")
    if result.content["task"] == "controlled":
        from benchmarks.controlled.measuring import recomputed  # the renderer takes a second to import

        for name, value in recomputed(result).items():
            entry = result.metric(name)
            if entry is not None and not _same(value, entry["value"]):
                raise ResultError(f"{path}: {name} is {entry['value']}, its pairs have {value}")
        done.append(f"{path}: influence, leaks and selectivity are those of its pairs")
    if videos is not None and extractors is not None:
        content = result.content
        manifest_file, manifest, material = open_protocol(protocol, shards)
        if file_sha256(manifest_file) != content["dataset"]["manifest_sha256"]:
            raise ResultError(f"{path}: was scored with another manifest, {content['dataset']['manifest_sha256']}")
        if hash_videos(videos, manifest) != content["preprocessing"]["videos_sha256"]:
            raise ResultError(f"{videos}: are not the videos of {path}, their hash differs")
        again = score(videos, manifest_file, Truth(manifest, material, extractors), content["model"], [])
        for entry in content["metrics"]:
            found = again.metric(entry["id"])
            if found is None or not _same(found["value"], entry["value"]):
                where = _elsewhere(content["environment"]["device"], device_name(extractors.device))
                raise ResultError(f"{path}: {entry['id']} is {entry['value']}, now {found and found['value']}{where}")
        done.append(f"{path}: {len(content['metrics'])} numbers recomputed from {videos}, all the same")
    return done


def _elsewhere(read: str, now: str) -> str:
    """What a number that differs may be due to."""
    return "" if read == now else f" (read on {read}, now on {now}: last digits depend on that, --device chooses)"


def _same(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else abs(a - b) <= _TOLERANCE * max(1, abs(b))


def compare(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every metric of the first two or more results of one manifest, each pair of methods: the mean difference over the
    pairs that both have, and p of a paired sign-flip test by identity, Holm-corrected over all that is compared.

    Raises `ResultError` for results of different manifests.
    """
    if len({result.content["dataset"]["manifest_sha256"] for result in results}) != 1:
        names = ", ".join(f"{r.method}: {r.content['dataset']['name']} {r.content['task']}" for r in results)
        raise ResultError(f"results of different protocols cannot be compared ({names})")
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(results):
        for b in results[i + 1 :]:
            others = {pair["id"]: pair["values"] for pair in b.pairs}
            for name in a.pairs[0]["values"]:
                both = [
                    (pair["values"][name], others[pair["id"]][name], pair["identity"])
                    for pair in a.pairs
                    if None not in (pair["values"][name], others.get(pair["id"], {}).get(name))
                ]
                if both:
                    x, y, identity = zip(*both, strict=True)
                    p = sign_flip(np.array(x), np.array(y), identity)
                    difference = float(np.mean(np.subtract(x, y)))
                    rows.append(
                        {"a": a.method, "b": b.method, "metric": name, "n": len(x), "a_minus_b": difference, "p": p}
                    )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def with_comparisons(results: Sequence[Result]) -> None:
    """Puts into each result how it compares with the others of its manifest, for tables. Reference rows are never the
    best: they take no part, and no part of the correction."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.method not in REFERENCES:
            groups.setdefault(result.content["dataset"]["manifest_sha256"], []).append(result)
    for group in groups.values():
        by_method = {result.method: result for result in group}
        for row in compare(group) if len(group) > 1 else []:
            for own, other in ((row["a"], row["b"]), (row["b"], row["a"])):
                entry = {"metric": row["metric"], "other": other, "p_holm": row["p_holm"]}
                by_method[own].content["comparisons"].append(entry)
