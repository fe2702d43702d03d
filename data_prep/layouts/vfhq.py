"""VFHQ (Xie et al. 2022): clips of interviews, as frame folders of the release or as videos made of them.

    INPUT/…/Clip+{video}+P{person}+C{clip}+F{first}-{last}/{00000000…}.png
    INPUT/…/Clip+{video}+P{person}+C{clip}+F{first}-{last}.mp4

Identity: video and person. The frame folders carry no rate; the release's videos are taken as 25 frames a second.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.layouts.source import Source, files, relative

_NAME = re.compile(r"Clip\+(?P<video>.+)\+(?P<person>P\d+)\+C\d+\+F\d+-\d+")
_LICENCE = "VFHQ: videos of their owners, research use (CC BY 4.0 for the annotations)"
_FPS = 25.0


def sources(root: Path) -> Iterator[Source]:
    found = {}
    for path in files(root):
        is_picture = path.suffix.lower() in (".png", ".jpg")
        clip = path.parent if is_picture else path
        if match := _NAME.fullmatch(clip.name if is_picture else clip.stem):
            file = relative(clip, root)
            identity = f"{match['video']}+{match['person']}"
            found[file] = Source(clip, file, identity, file, licence=_LICENCE, picture_fps=_FPS if is_picture else 0)
    yield from found.values()
