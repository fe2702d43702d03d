"""Disentanglement on real pictures: outputs for three people's faces, read by a detector.

Nobody knows the truth of a real face, so the detector's own cross-talk is unknown too: gains and drifts are raw, and
leaks and S are not given (`dex.reading.measure` has them, of synthetic heads).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dex.metrics.extractors.faces import FaceReading, MediaPipeReader
from dex.metrics.influence import Reading, distances_of, influence_of
from dex.reading.tuples import EDITS, Asked

LEAST_SIDE = 256  # the detector misses the faces of smaller pictures
LEAST_CLIPS = 3  # a source and two drivers


_TURNS = (-1, -2)  # from a clip to those that drive it, a and b


def rotated(pictures: Shaped[Tensor, "N 3 H W"]) -> Asked:
    """N tuples of N clips: each clip's picture once as source, once as driver a, once as driver b."""
    return Asked(pictures, torch.stack([pictures.roll(turn, 0) for turn in _TURNS]))


class ClipReadings(NamedTuple):
    """Of the drivers of N `rotated` tuples, which stay the same for a whole training."""

    a: FaceReading
    b: FaceReading

    @classmethod
    def of(cls, reader: MediaPipeReader, tuples: Asked) -> ClipReadings:
        """Reads each clip once."""
        clips = read_each(reader, tuples.source.float() / 255)
        return cls(*(FaceReading(*(column.roll(turn, 0) for column in clips)) for turn in _TURNS))


def read_each(reader: MediaPipeReader, pictures: Float[Tensor, "N 3 H W"]) -> FaceReading:
    """Pictures in [0, 1], each on its own; rows of NaN where no face was found."""
    if pictures.shape[-1] < LEAST_SIDE:
        pictures = F.interpolate(pictures, size=(LEAST_SIDE, LEAST_SIDE), mode="bicubic", align_corners=False)
    levels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    rows = [reader.read(picture[None]) for picture in np.ascontiguousarray(levels)]
    return FaceReading(*(torch.cat(column) for column in zip(*rows, strict=True)))


def measure_clips(
    made: Mapping[str, Float[Tensor, "N 3 H W"]], drivers: ClipReadings, reader: MediaPipeReader
) -> dict[str, float]:
    """I_pp, I_ee, I_pe, I_ep over the tuples in whose drivers and outputs every face was found, and how many those are;
    `faces_found`: share of the outputs in which one was. `made`: in [0, 1], after each of `EDITS`."""
    read = {edit: read_each(reader, made[edit].nan_to_num()) for edit in EDITS}
    seen = torch.stack([reading.found for reading in read.values()])
    whole = seen.all(dim=0) & drivers.a.found & drivers.b.found
    found = {"faces_found": float(seen.double().mean()), "tuples": float(whole.sum())}
    if not whole.any():
        return found
    every = (*(read[edit] for edit in EDITS), *drivers)
    return found | influence_of(distances_of(*(_kept(reading, whole) for reading in every)).sum(dim=1))


def _kept(reading: FaceReading, which: Bool[Tensor, "N"]) -> Reading:
    return Reading(reading.pose[which], reading.expression[which])
