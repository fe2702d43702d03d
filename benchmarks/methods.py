"""Methods behind one interface: a source picture, a pose driver and an expression driver → frames.

Reference rows (oracle, copy-source, …), a classical opponent without learning, and checkpoints of either stage. Another
method needs none of this: write its videos to a folder by the ids of the manifest, and `score` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.manifest import Manifest, Pair
from benchmarks.material import Frames, Material, each_once, edited
from benchmarks.results import checkpoint_sha256
from dex.animation.backends import Backend, load_backend, to_network
from dex.animation.reenact import resized

BY_LANDMARKS = ("landmark-warp", "shuffled-driver")  # the second is the first with the drivers of other pairs
_READ_AT_ONCE = 8


class Method(Protocol):
    def animate(self, source: Frames, pose: Frames, expression: Frames) -> Frames:
        """Of one source picture (1, H, W, 3), F frames in the poses of `pose` and the expressions of `expression`, both
        (F, H, W, 3), uint8 RGB. Those of one span are one array."""


Maker = Callable[[Pair], Frames]


def maker_of(method: Method, material: Material) -> Maker:
    """Pairs of a manifest through a method, which sees nothing but pictures."""

    def make(pair: Pair) -> Frames:
        spans = pair.source, pair.pose, pair.expression
        frames = {span: material.frames(span) for span in dict.fromkeys(spans)}
        return method.animate(*(frames[span] for span in spans))

    return make


def reference(name: str, manifest: Manifest, material: Material) -> Maker | None:
    """Rows that show what a number means; None where a row is not defined for this protocol.

    oracle: the truth. copy-driver: the pose driver's own frames, another person. copy-source: the source, unmoved.
    constant: one picture for all pairs. joint-code: the truth of a method with one code for pose and expression, which
    takes both from the driver that was edited.
    """

    def truth(pair: Pair) -> Frames:
        made = material.truth(pair.source, pair.pose, pair.expression)
        assert made is not None
        return made

    def joint(pair: Pair) -> Frames:
        made = material.truth(pair.source, edited(pair), edited(pair))
        assert made is not None
        return made

    def still(span_of: Callable[[Pair], Any]) -> Maker:
        return lambda pair: np.repeat(material.frames(span_of(pair)), pair.pose.count, axis=0)

    first = manifest.pairs[0]
    known = material.truth(first.source, first.pose, first.expression) is not None
    makers: dict[str, Maker | None] = {
        "oracle": truth if known else None,
        "copy-driver": (lambda pair: material.frames(pair.pose)) if manifest.task == "cross" else None,
        "copy-source": still(lambda pair: pair.source),
        "constant": still(lambda pair: first.source),
        "joint-code": joint if known and manifest.task == "disentangled" else None,
    }
    return makers[name]


def is_defined(name: str, manifest: Manifest, material: Material) -> bool:
    """Whether a row can be made for this protocol."""
    return name in BY_LANDMARKS or reference(name, manifest, material) is not None


def shuffled(manifest: Manifest, maker: Callable[[Pair], Frames]) -> Maker:
    """Each pair made with the drivers of another one: what a measure must be able to tell from the right ones. Half the
    list away, and by whole tuples: the next pair of a cycle is driven by this one's source."""
    away = max(1, len(manifest.pairs) // 6 * 3)
    following = dict(zip(manifest.pairs, [*manifest.pairs[away:], *manifest.pairs[:away]], strict=True))

    def make(pair: Pair) -> Frames:
        other = following[pair]
        return maker(Pair(pair.id, pair.source, other.pose, other.expression))

    return make


class CheckpointMethod:
    """The motion trainer or the animator, in the drivers' absolute poses."""

    def __init__(self, checkpoint: Path, seed: int, steps: int | None, guidance: float | None) -> None:
        """`checkpoint`: a run or an export. Raises ValueError."""
        self._backend: Backend = load_backend(checkpoint, None, None, seed, steps, guidance)
        self.name = checkpoint.resolve().name if checkpoint.name != "export" else checkpoint.resolve().parent.name
        provenance = self._backend.provenance
        self.description = {
            "checkpoint_sha256": checkpoint_sha256(checkpoint),
            "sampler": provenance.get("sampler"),
            "seeds": [seed],
            "dtype": "float32",
            "provenance": provenance,
        }

    def animate(self, source: Frames, pose: Frames, expression: Frames) -> Frames:
        size, wanted = self._backend.size, source.shape[1]
        given = each_once(
            lambda frames: to_network([resized(frame, size) for frame in frames]), source, pose, expression
        )
        (at, _), (poses, _), (_, codes) = each_once(self._read, *given)
        made = self._backend.animate(given[0][0], at[0], zip(poses, codes, strict=True))
        return np.stack([resized(frame, wanted) for frame in made])

    def _read(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._backend.read_motion(part) for part in pictures.split(_READ_AT_ONCE)]
        poses, codes = (torch.cat(kind) for kind in zip(*parts, strict=True))
        return poses, codes
