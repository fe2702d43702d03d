"""CelebV-HQ (Zhu et al. 2022), as its own download script leaves it.

    INPUT/…/{youtube id}_{clip number}.mp4

A YouTube id is eleven characters and may hold "_" itself. Identity: the YouTube video (the release names no people).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative

_NAME = re.compile(r"(?P<video>.{11})_\d+")
_LICENCE = "CelebV-HQ: videos of their owners, non-commercial research"


def sources(root: Path) -> Iterator[Source]:
    for path in files(root):
        if match := _NAME.match(path.stem):
            file = relative(path, root)
            yield Source(path, file, identity=match["video"], recording=file, licence=_LICENCE)
