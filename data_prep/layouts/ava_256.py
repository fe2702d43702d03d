"""Ava-256 (Martinez et al. 2024): 80 synchronous cameras of a dome, one uncompressed zip of pictures for each.

    INPUT/{capture}/decoder/image/cam{camera}.zip      holding …/{frame number, six digits}.avif
    capture: [m--]{date}--{time}--{subject}[--GHS]

Frame numbers count the dome's 30 frames a second in every release; the smaller releases lack some. The headset's
infrared pictures (encoder/) are not used.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative

_CAPTURE = re.compile(r"(?:m--)?\d{8}--\d{4}--(?P<subject>\w+?)(?:--.*)?")
_LICENCE = "Ava-256: CC BY-NC 4.0"
_FPS = 30.0


def sources(root: Path) -> Iterator[Source]:
    for path in files(root):
        match Path(relative(path, root)).parts:
            case (*_, capture, "decoder", "image", name) if name.endswith(".zip") and _CAPTURE.fullmatch(capture):
                yield Source(
                    path,
                    relative(path, root),
                    identity=_CAPTURE.fullmatch(capture)["subject"],
                    recording=capture,
                    camera=path.stem.removeprefix("cam"),
                    licence=_LICENCE,
                    multi_view=True,
                    picture_fps=_FPS,
                )
