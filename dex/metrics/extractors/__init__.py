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
    return together(*(Source(name, entry.sha256, entry.licence) for name, entry in zip(names, entries, strict=True)))


def together(*sources: Source) -> Source:
    """What is read by several networks."""
    joined = hashlib.sha256("".join(source.sha256 for source in sources).encode()).hexdigest()
    licences = dict.fromkeys(source.licence for source in sources)
    names = " + ".join(source.name for source in sources)
    return Source(names, sources[0].sha256 if len(sources) == 1 else joined, "; ".join(licences))
