"""Folder trees of public data sets: each adapter turns INPUT into `Source`s, one for each recording of a camera."""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.layouts import ava_256, celebv_hq, folder, hdtf, nersemble, vfhq
from data_prep.layouts.source import Source

LAYOUTS: dict[str, Callable[[Path], Iterator[Source]]] = {
    "folder": folder.sources,
    "vfhq": vfhq.sources,
    "celebv-hq": celebv_hq.sources,
    "hdtf": hdtf.sources,
    "nersemble": nersemble.sources,
    "ava-256": ava_256.sources,
}

__all__ = ["LAYOUTS", "Source"]
