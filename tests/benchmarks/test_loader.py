"""The loader benchmark runs from the command line and its figures are consistent."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Called
from tests.data.shards_for_tests import make_shards


def test_it_reports_a_ratio(tmp_path: Path, called: Called) -> None:
    make_shards(tmp_path / "shards", clips=4, size=64)
    report = tmp_path / "report.json"
    called(
        "loader",
        "--shards", tmp_path / "shards", "--workers", 1, "--batch-size", 2, "--seconds", 0.5, "--turns", 1,
        "--json", report,
    )  # fmt: skip
    figures = json.loads(report.read_text())
    assert figures["size"] == 64
    for mode in ("pairs", "clip"):
        measured = figures["modes"][mode]
        fast, bare = measured["loader_frames_per_second"], measured["bare_frames_per_second"]
        assert measured["ratio"] == pytest.approx(fast / bare)
        assert 0 < measured["ratio"] < 2  # a loader cannot be much faster than decoding alone
    assert figures["ratio"] == min(figures["modes"][mode]["ratio"] for mode in ("pairs", "clip"))


def test_errors_are_one_line(tmp_path: Path, refused: Called) -> None:
    assert str(tmp_path / "gone") in refused("loader", "--shards", tmp_path / "gone")
