"""The animator benchmark runs from the command line, counts what the sampler is known to need, and refuses nonsense."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.animator", *arguments], capture_output=True, text=True, timeout=300
    )


def test_it_measures_all_three(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    config = ROOT / "configs" / "animator_quick.yaml"
    done = run(
        "--config", str(config), "--device", "cpu", "--size", "64", "--frames", "2", "--repeats", "1",
        "--json", str(report),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    assert all(figures[name]["ms"] > 0 for name in ("forward", "training_step", "video"))
    # 35 steps: 2 branches, 3 while they blend (5 steps, one of which still has a weight of 0), 2
    assert figures["video"]["reference_calls"] == 1
    assert figures["video"]["denoiser_calls"] == 74


def test_errors_are_one_line(tmp_path: Path) -> None:
    for wrong, said in ((["--size", "100"], "multiple of 64"), (["--config", str(tmp_path)], str(tmp_path))):
        done = run(*wrong)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
