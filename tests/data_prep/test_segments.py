"""From reasons to spans: lengths, bridges, cuts, windows shared by cameras."""

import itertools

import numpy as np

from data_prep import filters
from data_prep.analyse import ROW
from data_prep.segments import spans
from data_prep.settings import Settings

SETTINGS = Settings(min_seconds=1, max_seconds=2)  # 25 to 50 instants


def rows(count: int, first: int = 0) -> np.ndarray:
    made = np.zeros(count, ROW)
    made["index"] = np.arange(count) + first
    made["found"] = True
    made["landmarks"] = np.random.default_rng(0).uniform(100, 200, (478, 2))
    return made


def cut(made: np.ndarray, reasons: np.ndarray | None = None, cuts: tuple[int, ...] = (), **options) -> list:
    reasons = np.full(len(made), "", "U40") if reasons is None else reasons
    found = spans(made, reasons, list(cuts), options.pop("settings", SETTINGS), options.pop("multi_view", False))
    return [(span.start, span.stop, span.reason) for span in found]


def test_long_run_is_split_evenly():
    assert cut(rows(120)) == [(0, 40, ""), (40, 80, ""), (80, 120, "")]
    assert cut(rows(50)) == [(0, 50, "")]
    assert cut(rows(25)) == [(0, 25, "")]
    assert cut(rows(24)) == [(0, 24, filters.SHORT)]


def test_no_piece_is_shorter_than_asked_for():
    narrow = Settings(min_seconds=1.6, max_seconds=2)
    assert cut(rows(60), settings=narrow) == [(0, 50, ""), (50, 60, filters.SHORT)]


def test_cut_divides_and_is_trimmed():
    assert cut(rows(80), cuts=(40,)) == [(0, 38, ""), (42, 80, "")]


def test_gap_in_time_divides():
    made = rows(60)
    made["index"][30:] += 10
    assert cut(made) == [(0, 30, ""), (30, 60, "")]


def test_short_lapse_is_bridged_and_long_one_is_not():
    reasons = np.full(60, "", "U40")
    reasons[20:25] = filters.NO_FACE
    assert cut(rows(60), reasons) == [(0, 30, ""), (30, 60, "")]
    reasons[20:26] = filters.NO_FACE
    assert cut(rows(60), reasons) == [(0, 20, filters.SHORT), (20, 26, filters.NO_FACE), (26, 60, "")]
    reasons[:] = ""
    reasons[55:] = filters.SEVERAL  # nothing follows: no bridge
    assert cut(rows(60), reasons)[-1] == (55, 60, filters.SEVERAL)


def test_jump_of_the_face_divides():
    made = rows(60)
    made["landmarks"][30:] += 60  # of a box of 100
    assert cut(made) == [(0, 30, ""), (30, 60, "")]


def test_lapse_across_a_jump_is_not_bridged():
    made, reasons = rows(60), np.full(60, "", "U40")
    made["landmarks"][28:] += 60
    reasons[26:30] = filters.NO_FACE
    assert (26, 30, filters.NO_FACE) in cut(made, reasons)


def test_cameras_share_windows():
    """Two cameras begin and fail at different times; their windows are the same instants."""
    one = cut(rows(110), multi_view=True)
    late = rows(100, first=10)
    reasons = np.full(100, "", "U40")
    reasons[45:52] = filters.NO_FACE
    two = cut(late, reasons, multi_view=True)
    windows = [
        {(start + first, stop + first) for start, stop, why in found if not why}
        for found, first in ((one, 0), (two, 10))
    ]
    assert windows[0] == {(0, 25), (25, 50), (50, 75), (75, 100)}
    assert windows[1] == {(25, 50), (75, 100)}


def test_everything_is_accounted_for():
    rng = np.random.default_rng(1)
    reasons = np.repeat(rng.choice(["", filters.NO_FACE, filters.SMALL], 40), rng.integers(1, 30, 40)).astype("U40")
    for multi_view in (False, True):
        found = cut(rows(len(reasons)), reasons, multi_view=multi_view)
        assert found[0][0] == 0
        assert found[-1][1] == len(reasons)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
