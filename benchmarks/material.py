"""The frames that a manifest names: drawn from their parameters, or read from the very shards it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from benchmarks.manifest import Clip, Manifest, ManifestError, Pair, Span
from dex.data.shards import StoredClip, packed_clips
from dex.data.synthetic.head import Head, make_head, parameters_hash
from dex.data.synthetic.motion import motion_track
from dex.data.synthetic.render import Rendered, render
from dex.data.synthetic.splits import identity_seed
from dex.video import ClipReader, VideoError

Frames = Shaped[np.ndarray, "F H W 3"]
Given = TypeVar("Given")
Done = TypeVar("Done")
SYNTHETIC_FPS = 10.0  # slow: sixteen frames then see the head turn and the mouth speak
SYNTHETIC_FRAMES = 17


class Material(Protocol):
    """Frames are uint8 RGB of the manifest's size."""

    def frames(self, span: Span) -> Frames: ...

    def truth(self, source: Span, pose: Span, expression: Span) -> Frames | None:
        """What a perfect method makes of them; None where nobody knows."""


class SyntheticClips:
    """Heads of the test split, one identity and one track a clip: any pose and expression of any of them has a
    truth."""

    def __init__(self, size: int, seed: int) -> None:
        """`size`: pixels a side; `seed`: of the tracks."""
        self._size, self._seed = size, seed

    @classmethod
    def of(cls, manifest: Manifest) -> SyntheticClips:
        """Raises `ManifestError` where this program draws other heads than those of the manifest."""
        clips = cls(manifest.size, manifest.seed)
        for clip in manifest.clips:
            if clips.clip(clip.key).sha256 != clip.sha256:
                raise ManifestError(
                    f"{manifest.name}: this program draws {clip.key} by other parameters than the manifest's. "
                    "Use the version that made it, or make it again"
                )
        return clips

    @staticmethod
    def key(number: int) -> str:
        return f"synthetic-test-{number:06d}"

    def clip(self, key: str) -> Clip:
        head, pose, expression = self._parameters(key)
        digest = hashlib.sha256(parameters_hash(head).encode())
        for track in (pose, expression):
            digest.update(np.round(track, 3).astype("<f4").tobytes())
        return Clip(key, f"synthetic-{head.seed}", digest.hexdigest())

    def frames(self, span: Span) -> Frames:
        return self.truth(span, span, span)

    def truth(self, source: Span, pose: Span, expression: Span) -> Frames:
        return self.drawn(source, pose, expression).image

    def drawn(self, source: Span, pose: Span, expression: Span) -> Rendered:
        """The pictures with their masks."""
        head, _, _ = self._parameters(source.clip)
        return render(head, self.expression(expression), self.pose(pose), self._size)

    def pose(self, span: Span) -> Float[np.ndarray, "F 3 4"]:
        return self._parameters(span.clip)[1][span.frames]

    def expression(self, span: Span) -> Float[np.ndarray, "F E"]:
        return self._parameters(span.clip)[2][span.frames]

    @lru_cache(maxsize=16)  # noqa: B019  one of these lives as long as the program
    def _parameters(self, key: str) -> tuple[Head, Any, Any]:
        number = int(key.rpartition("-")[2])
        rng = np.random.default_rng([self._seed, number])
        return make_head(identity_seed("test", number)), *motion_track(rng, SYNTHETIC_FRAMES, SYNTHETIC_FPS)


class ShardClips:
    """Clips of folders of shards."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        """Raises `ManifestError` naming the clips that are missing or have other bytes."""
        self._size, wanted = manifest.size, {clip.key: clip for clip in manifest.clips}
        self._clips = {stored.meta.key: stored for stored in packed_clips(folder) if stored.meta.key in wanted}
        if missing := sorted(set(wanted) - set(self._clips)):
            raise ManifestError(
                f"{folder}: lacks {len(missing)} of {len(wanted)} clips of {manifest.name}: {', '.join(missing[:5])}. "
                "Prepare the shards with the settings that the manifest was made with"
            )
        for key, stored in self._clips.items():
            if clip_of(stored).sha256 != wanted[key].sha256:
                raise ManifestError(
                    f"{folder}: {key} has other bytes than the clip that {manifest.name} was made of. Use the same "
                    "shards, or make the manifest again"
                )

    def frames(self, span: Span) -> Frames:
        """Raises `VideoError` naming the clip."""
        stored = self._clips[span.clip]
        try:
            reader = ClipReader(stored.members["mp4"](), stored.meta.frames, self._size)
            return reader.get(span.frames)
        except VideoError as error:
            raise VideoError(f"{span.clip}: {error}") from error

    def truth(self, source: Span, pose: Span, expression: Span) -> Frames | None:
        return self.frames(pose) if source.clip == pose.clip == expression.clip else None


def clip_of(stored: StoredClip) -> Clip:
    return Clip(stored.meta.key, stored.meta.identity, hashlib.sha256(stored.members["mp4"]()).hexdigest())


def each_once(work: Callable[[Given], Done], *given: Given) -> list[Done]:
    """`work` of each object, once where one comes again, as the frames of a span do that drives pose and expression."""
    done = {key: work(one) for key, one in {id(one): one for one in given}.items()}
    return [done[id(one)] for one in given]


def open_material(manifest: Manifest, shards: Path | None) -> SyntheticClips | ShardClips:
    """Raises `ManifestError`."""
    if manifest.kind == "synthetic":
        return SyntheticClips.of(manifest)
    if shards is None:
        raise ManifestError(f"{manifest.name} is made of shards: say where they are with --shards DIR")
    return ShardClips(manifest, shards)


def edited(pair: Pair) -> Span:
    """The driver that a pair of a tuple takes from b; a's where it takes none."""
    return pair.expression if pair.edit == "expression" else pair.pose
