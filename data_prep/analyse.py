"""First pass over a source: what is seen at every instant, spooled to disk so that memory does not grow with length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from data_prep import shots
from dex.resample import Instant
from dex.video import VideoError

if TYPE_CHECKING:  # loads MediaPipe
    from dex.faces.detect import FaceTracker

LANDMARKS, BLENDSHAPES = 478, 52  # of the Face Landmarker
_OTHERS = 4

# One row an instant, in pixels of the source's picture.
ROW = np.dtype(
    [
        ("index", "i8"),  # the instant, in 1/25 s
        ("thumbnail", "u1", (shots.SIDE, shots.SIDE, 3)),
        ("found", "?"),
        ("score", "f4"),
        ("landmarks", "f4", (LANDMARKS, 2)),
        ("pose", "f4", (3, 4)),
        ("blendshapes", "f4", (BLENDSHAPES,)),
        ("sharpness", "f4"),
        ("others", "f4", (_OTHERS, 4)),  # boxes of other faces, rows of zeros where there are fewer
    ]
)


def analyse(
    instants: Iterator[Instant], tracker: FaceTracker, spool: Path, progress: Callable[[float], None]
) -> tuple[Shaped[np.ndarray, "T"], str | None]:
    """Rows (mapped from the file `spool`) of all instants, and why the source ended early where it did.

    `progress` is called with the index of every instant.
    """
    tracker.restart()
    row, ended = np.zeros((), ROW), None
    previous: np.ndarray | None = None
    with open(spool, "wb") as file:
        try:
            for index, image, fresh in instants:
                if fresh:
                    row = np.zeros((), ROW)
                    row["thumbnail"] = shots.thumbnail(image)
                    if previous is not None and shots.differs(previous, row["thumbnail"]):
                        tracker.restart()
                    previous = row["thumbnail"]
                    _look(row, tracker, image)
                row["index"] = index
                file.write(row.tobytes())
                progress(index)
        except VideoError as error:  # raised after the good frames
            ended = str(error)
        count = file.tell() // ROW.itemsize
    return (np.memmap(spool, ROW, "r", shape=(count,)) if count else np.zeros(0, ROW)), ended


def _look(row: Shaped[np.ndarray, ""], tracker: FaceTracker, image: Shaped[np.ndarray, "H W 3"]) -> None:
    seen = tracker.track(image)
    others = seen.others[:_OTHERS]
    row["score"] = seen.score
    row["others"][: len(others)] = others
    if seen.face is not None:
        row["found"] = True
        row["landmarks"] = seen.face.landmarks
        row["pose"] = seen.face.pose
        row["blendshapes"] = seen.face.blendshapes
        row["sharpness"] = seen.face.sharpness
