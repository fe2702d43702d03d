"""`python -m dex.animate --demo`: the shipped model moves what it is asked to, and says what it cannot be asked."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dex.animate import main
from dex.animation import demo
from dex.animation.backends import load_backend, to_network
from dex.pose import geodesic, split_pose
from dex.video import iter_frames

ROOT = Path(__file__).parents[2]


LOOKED_AT = 15  # frames of a video, evenly spread


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "diffusion" else ()) for name in demo.MODELS],
)
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage 1 demo as a user starts it; that of the diffusion with fewer frames, which take longer."""
    folder = tmp_path_factory.mktemp("demo")
    if request.param == "diffusion":
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as told:
            patch.setattr(demo, "FRAMES", 2 * LOOKED_AT)
            assert main(["--demo", "--backend", "diffusion", "-o", str(folder)]) == 0
        assert told.getvalue().count("30 frames") == 3
        return folder
    done = subprocess.run(
        [sys.executable, "-m", "dex.animate", "--demo", "--backend", request.param, "-o", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=550, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("75 frames") == 3
    return folder


def motion_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses and codes that the model itself reads from frames of a video."""
    backend = load_backend(demo.MODELS["motion"], None, None, 0, None, None)
    frames = [frame for _, frame in iter_frames(path)]
    frames = frames[:: len(frames) // LOOKED_AT]
    small = [np.asarray(Image.fromarray(f).resize((backend.size, backend.size), Image.Resampling.BOX)) for f in frames]
    return backend.read_motion(to_network(small))


def turns(pose: torch.Tensor) -> float:
    """Degrees that the head turns about its mean frame, on the average."""
    rotation = split_pose(pose)[0]
    return float(geodesic(rotation, rotation[:1].expand_as(rotation)).mean() * 57.3)


def test_pose_and_expression_move_alone(out: Path) -> None:
    only_pose, pose_codes = motion_of(out / "portrait--pose.mp4")
    only_expression, expression_codes = motion_of(out / "portrait--expression.mp4")
    driver, driver_codes = motion_of(out / "expression.mp4")
    assert turns(only_expression) < turns(only_pose) / 3
    assert turns(only_expression) < turns(driver) / 3
    spread = [float(codes.std(dim=0).norm()) for codes in (pose_codes, expression_codes, driver_codes)]
    assert spread[1] > spread[2] / 3  # the driver's expression arrives
    assert spread[1] > spread[0]


def test_both_follow_their_own_driver(out: Path) -> None:
    made, driver = motion_of(out / "portrait--pose+expression.mp4")[0], motion_of(out / "pose.mp4")[0]
    apart = geodesic(split_pose(made)[0], split_pose(driver)[0]) * 57.3
    strangers = geodesic(split_pose(made)[0], split_pose(driver)[0].roll(7, dims=0)) * 57.3
    assert apart.mean() < strangers.mean() / 1.5


@pytest.mark.parametrize("folder", demo.MODELS.values(), ids=demo.MODELS.keys())
def test_a_model_says_where_it_is_from(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    content = json.loads((folder / "config.json").read_text())
    assert content["provenance"]["checkpoint"] in card
    for word in ("Data", "Commit", "Configuration", "Figures", "Limits", "Licence"):
        assert word in card


def test_the_models_are_small_and_share_their_encoders() -> None:
    assert sum(path.stat().st_size for path in demo.ASSETS.rglob("*") if path.is_file()) < 12e6
    motion, diffusion = (load_backend(folder, kind, None, 0, None, None) for kind, folder in demo.MODELS.items())
    assert motion.encoders == diffusion.encoders


def test_it_chooses_everything_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--demo", "-o", str(tmp_path), "--pose-only", "-s", "x.png", "--no-crop"]) == 1
    assert "leave out --source, --pose-only, --no-crop" in capsys.readouterr().err
    assert main(["-d", "x.mp4"]) == 1
    assert "--source and --checkpoint missing; --demo needs neither" in capsys.readouterr().err
