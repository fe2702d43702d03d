"""The paper-size networks, shape by shape (DeX-Portrait, sec. 3.1), and the parts that mathematics can check."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from dex.motion.config import MotionConfig
from dex.motion.discriminator import Discriminator, minibatch_std
from dex.motion.generator import MotionGenerator, expression_input
from dex.motion.layers import StyleConv
from dex.pose import face_view, make_pose, matrix_from_euler, warp_volume
from tests.motion.conftest import TINY
from tests.poses import identity_pose


def outputs_by_name(module: torch.nn.Module) -> dict[str, list[tuple[int, ...]]]:
    """Registers hooks that note the shape of every submodule's output."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, child in module.named_modules():
        child.register_forward_hook(
            lambda _, __, out, name=name: (
                shapes.setdefault(name, []).append(tuple(out.shape)) if torch.is_tensor(out) else None
            )
        )
    return shapes


def test_paper_size_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        config = MotionConfig()
        generator = MotionGenerator(config)
        shapes = outputs_by_name(generator)
        source, driving = torch.empty(1, 3, 256, 256), torch.empty(4, 3, 256, 256)
        pose, expression = generator.read_motion(driving)
        fake = generator(source, identity_pose(1), pose[None], expression[None])
    assert pose.shape == (4, 3, 4)
    assert expression.shape == (4, 512)
    assert shapes["appearance_encoder"] == [(1, 32, 16, 64, 64)]
    assert shapes["style_encoder"] == [(1, 2048)]
    assert shapes["flatten"] == [(4, 512, 32, 32)]
    assert generator.flatten.block.conv1.in_channels == 64
    assert generator.decoder.middle.affine.in_features == 2560
    assert shapes["decoder.middle"] == [(4, 512, 32, 32)]
    assert [shapes[f"decoder.down.{i}"][0] for i in range(2)] == [(4, 512, 16, 16), (4, 512, 8, 8)]
    assert [shapes[f"decoder.up.{i}"][0] for i in range(3)] == [
        (4, 512, 64, 64),
        (4, 256, 128, 128),
        (4, 128, 256, 256),
    ]
    rgb = [shapes[f"decoder.to_rgb.{i}"][0] for i in range(6)]
    assert rgb == [(4, c, r, r) for c, r in ((96, 8), (48, 16), (24, 32), (12, 64), (6, 128), (3, 256))]
    assert fake.shape == (1, 4, 3, 256, 256)


def poses(yaw: float) -> torch.Tensor:
    angle = torch.tensor([yaw])
    turned = matrix_from_euler(angle, torch.zeros(1), torch.zeros(1))
    return make_pose(turned, torch.tensor([[0.1, 0.0, 0.0]]), torch.tensor([0.9]))


@pytest.mark.parametrize("shell", [0.0, 0.3])
def test_a_split_follows_the_pose_and_a_joint_code_only_its_code(shell: float) -> None:
    torch.manual_seed(0)
    source, code = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, 2, 8)
    driving = torch.stack([poses(-0.4), poses(0.4)], dim=1)
    for joint in (False, True):
        generator = MotionGenerator(dataclasses.replace(TINY, shell=shell, joint_code=joint)).eval()
        first = generator(source, poses(0.0), driving, code[:, :1].expand(-1, 2, -1))[0]
        assert torch.allclose(first[0], first[1]) == joint  # one code, two poses
        second = generator(source, poses(0.0), driving[:, :1].expand(-1, 2, -1, -1), code)[0]
        assert not torch.allclose(second[0], second[1])
        moved = torch.roll(source, 6, dims=3)
        codes = generator.expression_encoder(expression_input(torch.cat([source, moved]), driving[0], generator.config))
        upright = generator.expression_encoder(face_view(torch.cat([source, moved]), driving[0]))
        assert torch.allclose(codes, upright) != joint  # a joint code is of the whole picture


def test_discriminator_at_paper_size() -> None:
    with torch.device("meta"):
        assert Discriminator(MotionConfig())(torch.empty(4, 3, 256, 256)).shape == (4,)


@pytest.mark.slow
def test_paper_size_runs_forward_and_backward() -> None:
    generator = MotionGenerator(MotionConfig())
    source, driving = torch.randn(1, 3, 256, 256).clamp(-1, 1), torch.randn(1, 3, 256, 256).clamp(-1, 1)
    pose, expression = generator.read_motion(driving)
    fake = generator(source, generator.pose_encoder(source), pose[None], expression[None])
    F.l1_loss(fake[:, 0], driving).backward()
    assert torch.isfinite(fake).all()
    silent = [name for name, p in generator.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent, f"no finite gradient reaches {silent}"


def test_style_conv_equals_modulated_weights() -> None:
    """Scaling activations and outputs is the same as a modulated, demodulated weight for each sample."""
    layer = StyleConv(6, 5, style_dim=4, activate=False)
    x, style = torch.randn(3, 6, 8, 8), torch.randn(3, 4)
    found = layer(x, style)
    for i in range(3):
        weight = layer.weight * layer.affine(style[i])[None, :, None, None]
        weight = weight * (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        expected = F.conv2d(x[i : i + 1], weight, layer.bias, padding=1)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_pose_encoder_starts_near_the_identity(tiny: MotionConfig) -> None:
    pose = MotionGenerator(tiny).pose_encoder(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(pose, identity_pose(4), atol=0.1, rtol=0)


def test_output_depends_on_each_input_and_on_no_other_sample(tiny: MotionConfig) -> None:
    generator = MotionGenerator(tiny)
    source = torch.rand(2, 3, 32, 32)
    poses = identity_pose(2, 2).clone()
    expression = torch.randn(2, 2, 8)
    plain = generator(source, poses[:, 0], poses, expression)
    turned = poses.clone()
    turned[0, 0, 0, 3] = 0.3
    moved = generator(source, poses[:, 0], turned, expression)
    assert (moved[0, 0] - plain[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(moved[0, 1], plain[0, 1])
    torch.testing.assert_close(moved[1], plain[1])
    smile = expression.clone()
    smile[1, 1] += 1
    smiled = generator(source, poses[:, 0], poses, smile)
    assert (smiled[1, 1] - plain[1, 1]).abs().max() > 1e-4
    torch.testing.assert_close(smiled[1, 0], plain[1, 0])


def test_same_pose_warps_nothing() -> None:
    volume = torch.randn(2, 3, 4, 8, 8)
    pose = identity_pose(2) * 0.7
    torch.testing.assert_close(warp_volume(volume, pose, pose), volume, atol=1e-5, rtol=0)


def test_minibatch_std_is_zero_for_equal_samples_and_sees_a_spread() -> None:
    x = torch.randn(1, 3, 4, 4).expand(4, -1, -1, -1)
    assert minibatch_std(x).max() < 1e-3
    spread = minibatch_std(torch.randn(4, 3, 64, 64))
    # The mean root of the biased variance of four unit normal numbers: √(3/4) · c₄(4) = 0.798.
    assert spread.mean() == pytest.approx(0.798, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 96}, "power of two"),
        ({"middle_size": 4}, "8 <= middle"),
        ({"pose_dims": (8,)}, "length"),
        ({"size": 64, "volume_size": 32}, "fan_size 64 must be below size 64"),
        ({"fan_size": 8}, "gone after fan_depth 4"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MotionConfig(**changes)
