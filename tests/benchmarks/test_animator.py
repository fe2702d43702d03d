"""The animator benchmark runs from the command line, counts what the sampler is known to need, and refuses nonsense."""

import json
from pathlib import Path

from tests.benchmarks.conftest import ROOT, Called


def test_it_measures_all_three(tmp_path: Path, called: Called) -> None:
    report = tmp_path / "report.json"
    config = ROOT / "configs" / "animator_quick.yaml"
    settings = ("--device", "cpu", "--size", 64, "--frames", 2, "--repeats", 1)
    called("animator", "--config", config, *settings, "--json", report)
    figures = json.loads(report.read_text())
    assert all(figures[name]["ms"] > 0 for name in ("forward", "training_step", "video"))
    # 35 steps: 2 branches, 3 while they blend (5 steps, one of which still has a weight of 0), 2
    assert figures["video"]["reference_calls"] == 1
    assert figures["video"]["denoiser_calls"] == 74


def test_errors_are_one_line(tmp_path: Path, refused: Called) -> None:
    assert "multiple of 64" in refused("animator", "--size", 100)
    assert str(tmp_path) in refused("animator", "--config", tmp_path)
