"""Resampling by time."""

from fractions import Fraction

import numpy as np
import pytest

from dex.resample import resample


def stream(times):
    """Frames whose first pixel is their number."""
    for number, time in enumerate(times):
        yield float(time), np.full((1, 1, 3), number, np.int32)


def shown(times):
    return [(instant.index, int(instant.image[0, 0, 0])) for instant in resample(stream(times), 25, 0.25)]


def test_25_frames_a_second_pass_unchanged():
    assert shown(np.arange(50) / 25) == [(i, i) for i in range(50)]


def test_jitter_does_not_double_or_drop():
    times = np.arange(50) / 25 + np.random.default_rng(0).uniform(-0.008, 0.008, 50).clip(0 - np.arange(50) / 25)
    assert shown(times) == [(i, i) for i in range(50)]


@pytest.mark.parametrize(
    ("fps", "count", "want"), [(30, 120, 100), (60, 240, 100), (29.97, 120, 100), (10, 40, 100), (73, 292, 100)]
)
def test_length_and_nearness(fps, count, want):
    got = shown(np.arange(count) / fps)
    assert len(got) == want
    assert [index for index, _ in got] == list(range(want))
    assert max(abs(index / 25 - number / fps) for index, number in got) <= 0.5 / min(fps, 25) + 0.021


def test_variable_rate_goes_by_time():
    """One second at 30 frames/s, then one at 12: not by number."""
    times = [*(np.arange(30) / 30), *(1 + np.arange(12) / 12)]
    got = dict(shown(times))
    assert got[12] == 14  # 0.48 s lies nearest 14 / 30
    assert got[35] == 30 + 5  # 1.40 s lies nearest 1 + 5 / 12
    assert len(got) == 50


def test_gap_is_left_out_and_repeats_are_told():
    got = [(i.index, i.fresh) for i in resample(stream([0, 0.12, 0.2, 2.0, 2.12]), 25, 0.25)]
    indices = [index for index, _ in got]
    assert all(index <= 11 or index >= 44 for index in indices)
    assert 5 in indices
    assert 50 in indices
    assert [index for index, fresh in got if fresh] == [0, 2, 4, 44, 52]


def test_single_frame_and_nothing():
    assert shown([0]) == [(0, 0)]
    assert shown([]) == []


def test_without_reach_gaps_are_held():
    got = [(i.index, int(i.image[0, 0, 0])) for i in resample(stream([0, 0.1, 1.0]), 10)]
    assert [index for index, _ in got] == list(range(19))
    assert dict(got)[5] == 1
    assert dict(got)[6] == 2


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(15)])
def test_its_own_rate_changes_nothing(fps):
    times = [round(float(i / fps), 3) for i in range(2000)]  # containers keep milliseconds
    assert [int(i.image[0, 0, 0]) for i in resample(stream(times), fps)] == list(range(2000))
