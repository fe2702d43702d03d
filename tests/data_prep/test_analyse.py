"""The first pass: rows spooled to disk, repeated frames measured once, the end of a damaged file told."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.analyse import ROW, analyse
from data_prep.frames import Instant
from dex.faces.detect import Face, Seen
from dex.video import VideoError
from tests.data_prep.made_videos import scene


class CountingTracker:
    """Stands in for the detectors: the n-th picture it sees has a face whose landmarks are all n."""

    looked = restarted = 0

    def restart(self) -> None:
        self.restarted += 1

    def track(self, image: np.ndarray) -> Seen:
        self.looked += 1
        face = Face(np.full((478, 2), self.looked), np.eye(3, 4), np.zeros(52), sharpness=1.0)
        return Seen(face, 0.9, np.array([[1.0, 2, 3, 4]]))


def instants(count: int, repeat: int = 1, breaks: bool = False) -> Iterator[Instant]:
    image = scene(0)
    for index in range(count):
        yield Instant(index, image, fresh=index % repeat == 0)
    if breaks:
        raise VideoError("truncated")


def test_rows(tmp_path: Path):
    tracker = CountingTracker()
    said: list[float] = []
    rows, ended = analyse(instants(9, repeat=3, breaks=True), tracker, tmp_path / "rows", said.append)
    assert ended == "truncated"
    assert rows["index"].tolist() == said == list(range(9))
    assert rows["landmarks"][:, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert tracker.looked == 3
    assert rows["others"][0].tolist() == [[1, 2, 3, 4], *[[0, 0, 0, 0]] * 3]
    assert len(analyse(instants(0), tracker, tmp_path / "none", said.append)[0]) == 0


def test_cut_restarts_the_tracker(tmp_path: Path):
    tracker = CountingTracker()
    pictures = [scene(1)] * 3 + [scene(2)] * 3
    analyse((Instant(i, image, True) for i, image in enumerate(pictures)), tracker, tmp_path / "rows", lambda _: None)
    assert tracker.restarted == 2  # the file's beginning, the cut


def test_memory_does_not_grow_with_length(tmp_path: Path):
    def peak(count: int) -> int:
        tracemalloc.start()
        analyse(instants(count), CountingTracker(), tmp_path / str(count), lambda _: None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    short, long = peak(50), peak(1000)
    assert long < short + 100 * ROW.itemsize  # 950 rows more
