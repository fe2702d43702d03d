"""Real portraits and a real clip through the command, faces found and cropped; the network is tiny, draws nothing."""

from pathlib import Path

import numpy as np
import pytest

from dex.animate import main
from dex.animation.footage import read_picture
from dex.animation.motion_file import Motion
from dex.motion.encoders import save_generator
from dex.video import count_frames, iter_frames, probe
from tests.animation.conftest import CROP, SIZE, tiny_generator
from tests.motion.conftest import TINY


def run(checkpoint: Path, source: Path, driving: Path, out: Path, *more: object) -> int:
    line = ["-s", source, "-d", driving, "--checkpoint", checkpoint, "-o", out, *more]
    return main([str(part) for part in line])


def test_portrait_and_clip(
    talking_heads: Path, weights_env: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    portrait = talking_heads / "portraits" / "face-recognition_rose1.jpg"  # 1280×799
    assert run(checkpoint, portrait, talking_heads / "videos" / "hellomeme_tndtc.mp4", tmp_path, "--paste-back") == 0
    said = capsys.readouterr()
    assert "ms/frame" in said.out
    assert "warning" not in said.err
    video, joined = (tmp_path / f"face-recognition_rose1--hellomeme_tndtc{end}.mp4" for end in ("", "_concat"))
    info = probe(video)
    assert (info.width, info.height, info.fps, info.has_audio) == (1280, 798, 15, True)
    assert (probe(joined).width, probe(joined).height) == (3 * SIZE, SIZE)
    assert count_frames(video) == count_frames(joined) == 34
    motion = Motion.load(tmp_path / "face-recognition_rose1--hellomeme_tndtc.motion.safetensors")
    assert len(motion.pose) == 34
    assert motion.crop is not None
    assert motion.crop.rule == CROP["rule"]
    shown = next(image for _, image in iter_frames(video)).astype(int)
    change = np.abs(shown - read_picture(portrait)[:798]).mean(-1)
    assert change.max() > 60
    assert (change > 30).mean() < 0.5
    assert np.median(change[:, :100]) < 3  # far from the face


def test_faces_that_cannot_be_had(
    talking_heads: Path, weights_env: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = talking_heads / "portraits" / "lia_monroe.png"
    for source, driving, said in (
        (talking_heads / "hard" / "liveportrait_s33.jpg", good, "no face found"),
        (talking_heads / "hard" / "facenet-pytorch_multiface.jpg", good, "6 faces; choose one with --face"),
        (good, talking_heads / "hard" / "liveportrait_s33.jpg", "no face found"),
    ):
        assert run(checkpoint, source, driving, tmp_path / "out") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert said in line
    assert not (tmp_path / "out").exists()


def test_crops_that_the_checkpoint_was_not_trained_on(
    talking_heads: Path, weights_env: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    portrait = talking_heads / "portraits" / "lia_monroe.png"
    for crop, said in ((None, "does not say how"), ({**CROP, "rule": "synthetic.v1", "margin": 1.65}, "synthetic.v1")):
        save_generator(tmp_path, TINY, tiny_generator().state_dict(), {}, crop)
        assert run(tmp_path, portrait, portrait, tmp_path / "out") == 0
        warning = capsys.readouterr().err
        assert warning.count("warning: ") == 1
        assert said in warning
        assert "--no-crop" in warning
        assert run(tmp_path, portrait, portrait, tmp_path / "out", "--no-crop") == 0
        assert "warning" not in capsys.readouterr().err
