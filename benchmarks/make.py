"""Manifests from a seed: synthetic heads, or the clips of a folder of shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.manifest import TASKS, Clip, Manifest, ManifestError, Pair, Span
from benchmarks.material import SYNTHETIC_FPS, SYNTHETIC_FRAMES, SyntheticClips, clip_of
from dex.data.shards import packed_clips


def make_synthetic(task: str, name: str, clips: int, size: int, seed: int) -> Manifest:
    """One clip an identity of the synthetic test split. Raises `ManifestError`."""
    drawn = SyntheticClips(size, seed)
    chosen = [drawn.clip(drawn.key(i)) for i in range(clips)]
    return _manifest(task, name, "synthetic", size, SYNTHETIC_FPS, seed, chosen, SYNTHETIC_FRAMES - 1, 1)


def make_of_shards(
    task: str, name: str, folder: Path, size: int | None, seed: int, clips: int | None, frames: int, stride: int
) -> Manifest:
    """One clip, the first, of each identity that is long enough. `clips`: at most so many, chosen by the seed; `size`:
    None takes the shards' own; `frames`: of each driver, every `stride`-th.

    Raises `ManifestError` and `ShardError`.
    """
    need = 1 + frames * stride
    first: dict[str, Clip] = {}
    fps, sizes = set(), set()
    for stored in packed_clips(folder):
        meta = stored.meta
        if meta.frames >= need and meta.identity not in first:
            first[meta.identity] = clip_of(stored)
            fps.add(meta.fps)
            sizes.add(meta.crop.size)
    if len(fps) != 1 or len(sizes) != 1:
        raise ManifestError(
            f"{folder}: clips of {need} frames have rates {sorted(fps)} and sizes {sorted(sizes)}: need one of each. "
            "Lower --frames or --stride, or prepare the shards alike"
        )
    chosen = [first[identity] for identity in sorted(first)]
    if clips is not None and clips < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), clips, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    return _manifest(task, name, "shards", size or sizes.pop(), fps.pop() / stride, seed, chosen, frames, stride)


def _manifest(
    task: str, name: str, kind: str, size: int, fps: float, seed: int, clips: Sequence[Clip], frames: int, stride: int
) -> Manifest:
    least = {"self": 1, "cross": 2, "disentangled": 3}.get(task)
    if least is None:
        raise ManifestError(f"task {task!r}: need one of {', '.join(TASKS)}")
    if len(clips) < least or frames < 1 or stride < 1 or size < 16:
        raise ManifestError(
            f"{len(clips)} identities, {frames} frames, stride {stride}, size {size}: {task} needs at least {least} "
            "identities, a frame, a stride of 1 and 16 pixels"
        )
    pairs = _PAIRS[task](clips, frames, stride, np.random.default_rng([seed, TASKS.index(task)]))
    return Manifest(task, name, kind, size, fps, seed, tuple(clips), tuple(pairs))


def _self(clips: Sequence[Clip], frames: int, stride: int, rng: np.random.Generator) -> list[Pair]:
    spans = [(Span(clip.key, 0, 1), Span(clip.key, stride, frames, stride)) for clip in clips]
    return [Pair(f"self-{i:04d}", source, rest, rest) for i, (source, rest) in enumerate(spans)]


def _cross(clips: Sequence[Clip], frames: int, stride: int, rng: np.random.Generator) -> list[Pair]:
    """Every identity is source once and driver once: a random cycle."""
    order = rng.permutation(len(clips))
    pairs = []
    for i, (s, d) in enumerate(zip(order, np.roll(order, 1), strict=True)):
        driver = Span(clips[d].key, stride, frames, stride)
        pairs.append(Pair(f"cross-{i:04d}", Span(clips[s].key, 0, 1), driver, driver))
    return pairs


def _disentangled(clips: Sequence[Clip], frames: int, stride: int, rng: np.random.Generator) -> list[Pair]:
    """Every identity is once s, once a, once b, three different ones in each tuple."""
    order = rng.permutation(len(clips))
    pairs = []
    for i, (s, one, other) in enumerate(zip(order, np.roll(order, 1), np.roll(order, 2), strict=True)):
        source = Span(clips[s].key, 0, 1)
        a, b = (Span(clips[k].key, stride, frames, stride) for k in (one, other))
        name = f"dis-{i:04d}"
        pairs += [
            Pair(f"{name}-none", source, a, a, name, "none"),
            Pair(f"{name}-pose", source, b, a, name, "pose"),
            Pair(f"{name}-expression", source, a, b, name, "expression"),
        ]
    return pairs


_PAIRS = {"self": _self, "cross": _cross, "disentangled": _disentangled}
