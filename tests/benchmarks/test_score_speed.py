"""The speed benchmark of scoring runs and its parts are those of the whole."""

from pathlib import Path

import pytest

from benchmarks.score_speed import run


def test_reports_each_extractor_and_the_whole(weights_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.score_speed.memory_per_clip", lambda extractors: 1024.0)  # 40 clips otherwise
    figures = run(size=128, clips=1, turns=1)
    spent = figures["milliseconds_per_frame"]
    assert set(spent) == {"faces", "identity", "features", "psnr", "ssim", "perceptual", "scored"}
    assert min(spent.values()) > 0
    bare = sum(value for name, value in spent.items() if name != "scored")
    assert figures["ratio"] == pytest.approx(bare / spent["scored"])
    assert figures["kib_per_clip"] == 1
