"""Counts over fixed bins that add up over clips, sources, and parts of a job array."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

# name → (edges, axis label)
BINS: dict[str, tuple[Float[np.ndarray, "N"], str]] = {
    "yaw": (np.arange(-90.0, 91, 5), "yaw, degrees (positive: towards the picture's left)"),
    "pitch": (np.arange(-90.0, 91, 5), "pitch, degrees (positive: down)"),
    "face": (np.arange(0.0, 1025, 32), "face size, pixels of the source"),
    "seconds": (np.arange(0.0, 15.5, 0.5), "clip length, seconds"),
}

Counts = dict[str, list[int]]


def empty() -> Counts:
    return {name: [0] * (len(edges) - 1) for name, (edges, _) in BINS.items()}


def add(counts: Counts, more: Counts) -> Counts:
    return {name: [a + b for a, b in zip(counts[name], more[name], strict=True)] for name in BINS}


def count(**values: Float[np.ndarray, "N"]) -> Counts:
    """Values of every bin name; those beyond the edges count in the outermost bins."""
    return {
        name: np.histogram(np.clip(values[name], edges[0], edges[-1]), edges)[0].tolist()
        for name, (edges, _) in BINS.items()
    }
