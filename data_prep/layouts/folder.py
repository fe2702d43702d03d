"""Any folder of videos.

    INPUT/{anything}.mp4                  identity: the file's name without its ending
    INPUT/{identity}/{anything…}.mp4      identity: the first folder

Every file is looked at, whatever its ending; what is no video is reported as such.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative


def sources(root: Path) -> Iterator[Source]:
    for path in files(root):
        file = relative(path, root)
        parts = Path(file).parts
        yield Source(path, file, identity=parts[0] if len(parts) > 1 else path.stem, recording=file)
