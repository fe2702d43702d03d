"""Motion files: what is written is read, and what cannot be a motion is refused by name."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dex.animation.motion_file import Motion, MotionError
from dex.data.shards import CropContract
from tests.poses import identity_pose


def motion(frames: int = 5) -> Motion:
    crop = CropContract("rule.v1", 64, 1.9, 0.06)
    return Motion(identity_pose(frames), torch.rand(frames, 8), Fraction(30000, 1001), crop, "abc", {"source": "ä.png"})


def test_round_trip(tmp_path: Path) -> None:
    written = motion()
    written.save(tmp_path / "a.motion.safetensors")
    read = Motion.load(tmp_path / "a.motion.safetensors")
    assert torch.equal(read.pose, written.pose)
    assert torch.equal(read.expression, written.expression)
    assert (read.fps, read.crop, read.encoders, read.provenance) == (
        written.fps,
        written.crop,
        written.encoders,
        written.provenance,
    )
    written.save(tmp_path / "b.motion.safetensors")
    assert (tmp_path / "a.motion.safetensors").read_bytes() == (tmp_path / "b.motion.safetensors").read_bytes()


def test_it_is_plain_safetensors_with_a_json_header(tmp_path: Path) -> None:
    motion().save(tmp_path / "a.motion.safetensors")
    assert set(load_file(tmp_path / "a.motion.safetensors")) == {"pose", "expression"}
    with safe_open(tmp_path / "a.motion.safetensors", framework="np") as file:
        header = json.loads(file.metadata()["motion"])
    assert header["fps"] == "30000/1001"
    assert header["crop"]["rule"] == "rule.v1"
    assert header["provenance"] == {"source": "ä.png"}


def test_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.motion.safetensors"
    motion().save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["motion"])
    good = load_file(path)
    flat = good["pose"].clone()
    flat[2, :, :3] = 0
    spoiled = {
        "other": ({"weight": torch.zeros(3)}, {}),
        "no codes": ({"pose": good["pose"]}, header),
        "lengths": ({**good, "pose": good["pose"][:3].clone()}, header),
        "empty": ({name: tensor[:0].clone() for name, tensor in good.items()}, header),
        "nan": ({**good, "expression": good["expression"] * torch.nan}, header),
        "flat": ({**good, "pose": flat}, header),
        "rate": (good, {**header, "fps": "0"}),
        "words": (good, {**header, "fps": "fast"}),
        "fraction": (good, {**header, "fps": "1/0"}),
        "crop": (good, {**header, "crop": {"rule": "x"}}),
        "list": (good, []),
    }
    for name, (tensors, metadata) in spoiled.items():
        save_file(tensors, path, {"motion": json.dumps(metadata)})
        with pytest.raises(MotionError, match="motion") as caught:
            Motion.load(path)
        assert str(path) in str(caught.value), name
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(MotionError, match="cannot be read"):
        Motion.load(path)
    with pytest.raises(MotionError, match="no such"):
        Motion.load(tmp_path / "gone.motion.safetensors")
