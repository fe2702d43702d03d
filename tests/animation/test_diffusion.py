"""The diffusion animator behind the command, at tiny size: its options reach the sampler, and only it has them."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from dex.animate import main
from dex.animation.backends import load_backend
from dex.animation.motion_file import Motion
from dex.animator.sampler import NOISE_SCHEDULE
from dex.animator.storage import load_animator, save_animator
from dex.animator.unet import AnimatorUNet, Reference, blocks_of
from dex.motion.encoders import save_generator
from dex.video import count_frames, probe
from tests.animation.conftest import CROP, tiny_generator
from tests.animator.conftest import TINY_PIXELS, away_from_zero
from tests.motion.conftest import TINY


@pytest.fixture(scope="module")
def animator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of stage 2 with the same encoders as the tiny stage-1 export."""
    folder = tmp_path_factory.mktemp("animator")
    torch.manual_seed(0)
    sections = {"codec": "space-to-depth:4", "size": 32, "schedule": dict(NOISE_SCHEDULE), "crop": CROP}
    network = away_from_zero(AnimatorUNet(TINY_PIXELS))
    save_animator(folder, TINY_PIXELS, network.state_dict(), {**sections, "provenance": {"step": 1}})
    save_generator(folder / "stage1", TINY, tiny_generator().state_dict(), {}, CROP)
    (folder / "stage1" / "encoders").rename(folder / "encoders")
    return folder


def run(animator: Path, material: Path, out: Path, *arguments: object) -> int:
    fixed = ["-s", material / "portrait.png", "-d", material / "b.mp4", "--checkpoint", animator, "-o", out]
    return main([str(part) for part in (*fixed, "--no-crop", *arguments)])


def test_video_and_motion(animator: Path, checkpoint: Path, material: Path, tmp_path: Path) -> None:
    """The motion is what stage 1 reads: a motion file of the fast preview drives the diffusion, and the reverse."""
    assert run(animator, material, tmp_path / "a", "--steps", 2) == 0
    assert count_frames(tmp_path / "a" / "portrait--b.mp4") == 12
    assert probe(tmp_path / "a" / "portrait--b_concat.mp4").width == 96
    assert run(checkpoint, material, tmp_path / "b") == 0
    slow, fast = (Motion.load(tmp_path / name / "portrait--b.motion.safetensors") for name in "ab")
    assert slow.encoders == fast.encoders
    torch.testing.assert_close(slow.pose, fast.pose)
    torch.testing.assert_close(slow.expression, fast.expression)
    assert slow.provenance["checkpoint"]["sampler"]["steps"] == 2


def test_frames_are_drawn_in_each_others_sight_where_that_was_trained(
    animator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(animator, tmp_path / "image")
    network, content = load_animator(animator)
    for parameter in itertools.chain(*(b.temporal.proj_out.parameters() for b in blocks_of(network.denoiser))):
        torch.nn.init.zeros_(parameter)
    sections = {name: content[name] for name in ("codec", "size", "schedule", "crop", "provenance")}
    save_animator(tmp_path / "image", network.config, network.state_dict(), sections)
    told: set[bool] = set()
    forward = AnimatorUNet.forward

    def listen(self: AnimatorUNet, *args: object, temporal: bool) -> torch.Tensor:
        told.add(temporal)
        return forward(self, *args, temporal=temporal)

    monkeypatch.setattr(AnimatorUNet, "forward", listen)
    motion = [(torch.eye(3, 4), torch.zeros(network.config.expression_dim))] * 2
    for folder, temporal in ((animator, True), (tmp_path / "image", False)):
        backend = load_backend(folder, None, None, 0, 2, None)
        assert len(list(backend.animate(torch.zeros(3, 32, 32), torch.eye(3, 4), motion))) == 2
        assert told == {temporal}
        told.clear()


def test_seed_steps_and_guidance_reach_the_sampler(animator: Path, material: Path, tmp_path: Path) -> None:
    made = {}
    for name, options in {
        "one": ["--seed", 1],
        "again": ["--seed", 1],
        "other seed": ["--seed", 2],
        "more steps": ["--seed", 1, "--steps", 3],
        "guided": ["--seed", 1, "--guidance", 4],
    }.items():
        assert run(animator, material, tmp_path / name, "--fps", 5, "--steps", 2, "--guidance", 1, *options) == 0
        made[name] = (tmp_path / name / "portrait--b.mp4").read_bytes()
    assert made["one"] == made.pop("again")
    assert len(set(made.values())) == len(made)


def test_sizes(animator: Path, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(animator, material, tmp_path, "--size", 64, "--steps", 1, "--fps", 5) == 0
    assert probe(tmp_path / "portrait--b.mp4").width == 64
    assert run(animator, material, tmp_path, "--size", 36) == 1
    assert "needs a multiple of 8" in capsys.readouterr().err
    assert run(animator, material, tmp_path, "--backend", "motion") == 1
    assert "belongs to animator.safetensors" in capsys.readouterr().err


def test_references(animator: Path, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A portrait is encoded once for the whole video; of a video source each frame is a reference of its own."""
    latents: list[torch.Tensor] = []
    encode = AnimatorUNet.encode_reference

    def counted(self: AnimatorUNet, source_latent: torch.Tensor, source_pose: torch.Tensor) -> Reference:
        latents.append(source_latent)
        return encode(self, source_latent, source_pose)

    monkeypatch.setattr(AnimatorUNet, "encode_reference", counted)
    assert run(animator, material, tmp_path, "--steps", 1) == 0
    assert len(latents) == 1
    latents.clear()
    assert run(animator, material, tmp_path, "--steps", 1, "-s", material / "pictures") == 0
    assert len(latents) == 11
    assert all((one != two).any() for one, two in itertools.pairwise(latents))
