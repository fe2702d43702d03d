"""Real faces: the reader-based measures must put the truth before a warp, and a warp before wrong drivers."""

import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.results import Result
from data_prep.__main__ import main as prepare

# Short clips of different people: eight make a table of small n, in minutes.
CLIPS = ("advancedliveportrait_d5", "aniportrait_pose_ref", "hellomeme_nhs", "lia-x_driving1", "sadtalker_aoc")
CLIPS += ("sadtalker_katiehill", "video-retalking_face2", "x-portrait_driving")
AED, APD = "aed.mp_blendshapes_l1mean.v1", "apd.mp_geodesic_deg.v1"


@pytest.mark.slow
def test_truth_before_warp_before_wrong_drivers(
    talking_heads: Path, weights_env: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    for name in CLIPS:
        shutil.copy(talking_heads / "videos" / f"{name}.mp4", tmp_path / "videos")
    shards, out = str(tmp_path / "shards"), tmp_path / "out"
    assert prepare([str(tmp_path / "videos"), "--out", shards, "--size", "256"]) == 0
    values: dict[tuple[str, str], Result] = {}
    for task in ("self", "cross", "disentangled"):
        protocol = str(tmp_path / f"real-{task}.jsonl")
        words = ["make", "--task", task, "--name", "real", "--shards", shards, "--frames", "4", "--stride", "12"]
        assert main([*words, "--out", protocol]) == 0
        capfd.readouterr()
        assert main(["baselines", "--protocol", protocol, "--shards", shards, "--out", str(out)]) == 0
        table = capfd.readouterr().out
        with capfd.disabled():
            print("\n" + table[table.index("**real") :])
        for path in out.glob(f"*-real-{task}.json"):
            values[path.name.removesuffix(f"-real-{task}.json"), task] = Result.load(path)

    def value(row: str, task: str, name: str) -> float:
        entry = values[row, task].metric(name)
        assert entry is not None
        return entry["value"]

    for name in (AED, APD):
        assert value("oracle", "self", name) == 0
        for task in ("self", "cross", "disentangled"):
            assert value("landmark-warp", task, name) < 0.8 * value("shuffled-driver", task, name), (task, name)
        assert value("copy-driver", "cross", name) == 0
        assert value("landmark-warp", "cross", name) > 0
    assert ("oracle", "cross") not in values
