"""One recording of one camera, as a layout finds it; and the walk over INPUT that every layout shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    path: Path  # a video file, or pictures: a folder or an uncompressed zip of them
    file: str  # path relative to INPUT
    identity: str
    recording: str  # unique in the data set; cameras of one take share it
    camera: str = "0"
    licence: str = "not stated"
    multi_view: bool = False  # cut in the same windows of time in every camera
    picture_fps: float = 0.0  # > 0: pictures, named by their frame number at this rate


def files(root: Path) -> Iterator[Path]:
    """Every entry below `root` that is not a folder, sorted, hidden ones left out; `root` itself where it is a file.

    Links are followed, each folder once, so that loops end. A folder that cannot be read is given as if it were a
    file: reading it fails with the reason.
    """
    if not root.is_dir():
        yield root
        return
    unreadable: list[Path] = []
    seen = {os.path.realpath(root)}
    found: list[Path] = []
    walk = os.walk(root, followlinks=True, onerror=lambda error: unreadable.append(Path(error.filename)))
    for folder, folders, names in walk:
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    yield from sorted(found + unreadable)


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root.is_dir() else path.name
