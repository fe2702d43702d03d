"""HDTF (Zhang et al. 2021), as its download scripts leave it.

    INPUT/…/{RD|WDA|WRA}_{Name}_{recording number}[_{clip number}…].mp4
    INPUT/…/RD_Radio{number}_{recording number}….mp4

Identity: group and name, e.g. WDA_KatieHill; the radio speakers have numbers for names.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative

_NAME = re.compile(r"(?P<identity>(?:RD|WDA|WRA)_[^_]+?)_\d+(?:_.*)?")
_LICENCE = "HDTF: CC BY 4.0 (annotations), videos of their owners"


def sources(root: Path) -> Iterator[Source]:
    for path in files(root):
        if match := _NAME.fullmatch(path.stem):
            file = relative(path, root)
            yield Source(path, file, identity=match["identity"], recording=file, licence=_LICENCE)
