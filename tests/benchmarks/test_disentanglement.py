"""python -m benchmarks.disentanglement: a checkpoint's figures with intervals, as a table and as JSON."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.disentanglement import by_source, intervals_of, table
from dex.metrics.influence import influence_of
from dex.motion.encoders import save_generator
from dex.motion.generator import MotionGenerator
from dex.reading.fit import Fit
from dex.reading.measure import squared_distances
from dex.reading.tuples import EDITS, make_tuples
from tests.benchmarks.conftest import Called, command
from tests.motion.conftest import TINY

GOOD = {"I_pe": 0.0, "I_ep": 0.0, "r2/expression": 1.0} | {
    f"r2/{name}": 1.0 for name in ("yaw", "pitch", "roll", "tx", "ty", "log_scale")
}


def test_intervals_are_of_the_tuples_and_hold_the_figure() -> None:
    tuples = make_tuples(12, 16)
    exact = {
        edit: Fit(tuples.asked_pose(edit), tuples.asked_controls(edit).clone(), torch.zeros(len(tuples)))
        for edit in EDITS
    }
    half = tuples.controls.mean(dim=0)
    exact["expression"] = Fit(tuples.asked_pose("expression"), half, torch.zeros(len(tuples)))
    squares = squared_distances(exact, tuples)
    matrix = influence_of(squares.sum(dim=1))
    assert matrix["I_pp"] == pytest.approx(1)
    assert matrix["I_pe"] == matrix["I_ep"] == 0
    assert 0.4 < matrix["I_ee"] < 0.7  # half of the way, but for controls with two ends
    between = intervals_of(squares.T.numpy(), GOOD)
    low, high = between["I_ee"]
    assert low < matrix["I_ee"] < high < 0.8
    assert between["I_pp"] == pytest.approx((1, 1))
    low, high = between["S"]
    assert low <= matrix["I_ee"] <= high
    said = table({**matrix, "S": matrix["I_ee"]}, between, GOOD)
    assert f"| I_ee | {matrix['I_ee']:.3f} |" in said
    assert "not measurable" not in said
    assert "not measurable" in table(matrix, {}, GOOD | {"I_ep": 0.3})
    assert "S" not in intervals_of(squares.T.numpy(), GOOD | {"I_ep": 0.3})
    assert by_source(squares.T.numpy(), 4)[1] == pytest.approx(squares[:, 4:8].sum(dim=1).numpy())


@pytest.mark.slow
def test_a_checkpoint_is_measured_and_the_same_twice(tmp_path: Path, called: Called) -> None:
    """In this process and in one of its own."""
    torch.manual_seed(0)
    save_generator(tmp_path / "export", TINY, MotionGenerator(TINY).state_dict(), {"run": "tiny"})
    written = []
    for name in ("here", "apart"):
        into = tmp_path / name
        pictures = ("--picture", into / "p.png", "--swap-grid", into / "grid.jpg")
        asked = ("disentanglement", tmp_path, "--tuples", 2, "--json", into / "f.json", *pictures)
        if name == "here":
            said = called(*asked)
        else:
            done = command(*asked)
            assert done.returncode == 0, done.stderr
            said = done.stdout
        assert "| I_pp |" in said
        assert "| pose_leakage/normalised |" in said
        written.append(json.loads((into / "f.json").read_text()))
        assert (into / "p.png").stat().st_size > 1000
        with Image.open(into / "grid.jpg") as grid:
            assert grid.size == (104, 104)  # a head, two drivers of each kind, and frames of two pixels
    assert written[0]["figures"] == written[1]["figures"]
    assert all(math.isfinite(value) for value in written[0]["figures"].values())
    assert written[0]["model"]["run"] == "tiny"
    assert len(written[0]["model"]["checkpoint_sha256"]["generator.safetensors"]) == 64


def test_mistakes_are_told_in_one_line(tmp_path: Path, refused: Called) -> None:
    assert "dex.export" in refused("disentanglement", tmp_path)
    assert "need at least 2" in refused("disentanglement", tmp_path, "--tuples", 1)
    said = refused("disentanglement", tmp_path, "--picture", tmp_path / "p.txt")
    assert "need a name that ends in .png or .jpg" in said
