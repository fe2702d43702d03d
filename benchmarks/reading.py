"""What extractors read: of any video, and of a protocol's own clips, which is the same for every method.

Numbers are kept, frames are not.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.manifest import Manifest, Pair, Span
from benchmarks.material import Frames, Material
from dex.metrics.distributions import FrechetDistance, KernelDistance
from dex.metrics.extractors.faces import FaceReading, MediaPipeReader
from dex.metrics.extractors.features import VIDEO_FRAMES, Features, I3d
from dex.metrics.extractors.identity import ArcFace
from dex.metrics.extractors.perceptual import Perceptual

_KERNEL_PICTURES = 10_000  # the kernel distance holds the features of all its pictures: about so many, evenly spaced


@dataclass(frozen=True)
class Seen:
    """What was read from one video."""

    faces: FaceReading
    embedding: Float[Tensor, "F D"]  # D = 0 where there is no identity network


@dataclass
class Extractors:
    """What pictures are read by. In a `with` block."""

    faces: MediaPipeReader
    identity: ArcFace | None  # None: no CSIM
    perceptual: Perceptual
    features: Features
    device: torch.device  # of the networks; MediaPipe reads on the CPU
    videos: I3d | None = None  # None: no FVD
    few_videos: bool = False  # an FVD of fewer than 256 is wanted all the same
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.faces)
        # On a GPU convolutions would otherwise keep ten bits of each number (TF32), and choose their order of addition.
        self._stack.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def see(self, frames: Frames) -> Seen:
        faces = self.faces.read(frames)
        if self.identity is None:
            return Seen(faces, torch.empty(len(frames), 0))
        return Seen(faces, self.identity.embed(frames, faces.points))

    def video(self, frames: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "1 D"]:
        """The features of its beginning."""
        assert self.videos is not None
        return self.videos.features(frames[None, :VIDEO_FRAMES])


class Truth:
    """What is read of a protocol's own clips: sources and drivers by their spans, true pictures by their pairs. All of
    it once, whatever number of methods is scored."""

    def __init__(self, manifest: Manifest, material: Material, extractors: Extractors) -> None:
        self.manifest, self.material, self.extractors = manifest, material, extractors
        self.spans: dict[Span, Seen] = {}
        self.faces: dict[str, FaceReading] = {}  # by pair
        features, pictures = extractors.features.dimensions, len(manifest.pairs) * manifest.pairs[0].pose.count
        self.kernel_stride = math.ceil(pictures / _KERNEL_PICTURES)
        # Of the drivers' pictures, and no others; `floor` has one half of the clips against the other.
        self.frechet, self.kernel = FrechetDistance(features), KernelDistance(features)
        self.floor = FrechetDistance(features)
        self._driving = {span for pair in manifest.pairs for span in (pair.pose, pair.expression)}
        self._videos: dict[Span, Float[Tensor, "1 D"]] = {}

    def seen(self, span: Span) -> Seen:
        """Drivers are also what generated pictures are compared with as a distribution."""
        if span not in self.spans:
            frames = self.material.frames(span)
            self.spans[span] = self.extractors.see(frames)
            if span in self._driving:
                features = self.extractors.features.features(as_float(frames))
                self.frechet.update(features, real=True)
                self.kernel.update(features[:: self.kernel_stride], real=True)
                self.floor.update(features, real=bool(len(self.spans) // 2 % 2))
        return self.spans[span]

    def look_at(self, pair: Pair, picture: Frames) -> None:
        """Reads the faces of a pair's true pictures."""
        if pair.id not in self.faces:
            self.faces[pair.id] = self.extractors.faces.read(picture)

    def video(self, span: Span) -> Float[Tensor, "1 D"]:
        """Features of a driver as a video."""
        if span not in self._videos:
            self._videos[span] = self.extractors.video(as_float(self.material.frames(span)))
        return self._videos[span]


def as_float(frames: Frames) -> Float[Tensor, "F 3 H W"]:
    """[0, 1]."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
