"""What pictures are read by before they are measured. Each extractor carries a `source`: a number is worth what it is
read by.

    faces.py       head pose, expression coefficients, five points of a face: MediaPipe, or a network of your own
    identity.py    face embeddings
    perceptual.py  LPIPS and its shift-tolerant relatives
    features.py    features of pictures (FID) and of videos (FVD)

Networks come from dex.weights, verified, without a network connection.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dex import weights


@dataclass(frozen=True)
class Source:
    """What stands beside a number in a result file."""

    name: str
    sha256: str  # of the file; of the hashes of several
    licence: str


def source_of(*names: str) -> Source:
    """Of registered weights. Raises `WeightsError` for an unknown name."""
    entries = [weights.entry(name) for name in names]
    joined = hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
    licences = dict.fromkeys(entry.licence for entry in entries)
    return Source(" + ".join(names), entries[0].sha256 if len(entries) == 1 else joined, "; ".join(licences))
