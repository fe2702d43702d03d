"""NeRSemble v1 and v2 (Kirschstein et al. 2023): 16 synchronous cameras at 73 frames a second.

    INPUT/{participant}/sequences/{sequence}/images/cam_{serial}.mp4

Sequences without a face (BACKGROUND) are left out.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative

_LICENCE = "NeRSemble terms of use: non-commercial research, access on request"


def sources(root: Path) -> Iterator[Source]:
    for path in files(root):
        match Path(relative(path, root)).parts:
            case (*_, participant, "sequences", sequence, "images", name) if name.startswith("cam_"):
                if sequence != "BACKGROUND":
                    yield Source(
                        path,
                        relative(path, root),
                        identity=participant,
                        recording=f"{participant}/{sequence}",
                        camera=path.stem.removeprefix("cam_"),
                        licence=_LICENCE,
                        multi_view=True,
                    )
