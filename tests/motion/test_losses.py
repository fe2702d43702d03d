"""Losses against formulas, and the perceptual networks on what they must tell apart."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from dex.batch import EYES, FACE, MOUTH
from dex.motion import losses
from dex.motion.losses import LossWeights, PerceptualLoss
from dex.pose import make_pose


def test_pose_loss_is_the_formula() -> None:
    a, b = Rotation.random(5, random_state=0), Rotation.random(5, random_state=1)
    t1, t2 = torch.randn(5, 3), torch.randn(5, 3)
    s1, s2 = torch.rand(5) + 0.5, torch.rand(5) + 0.5
    weight = torch.tensor([1.0, 0.5, 0, 1, 0.2])
    p1, p2 = (make_pose(torch.tensor(r.as_matrix()).float(), t, s) for r, t, s in ((a, t1, s1), (b, t2, s2)))
    angle = torch.tensor((a.inv() * b).magnitude())
    expected = (angle + (t1 - t2).abs().sum(-1) + (s1 / s2).log().abs()) * weight
    assert losses.pose_loss(p1, p2, weight).item() == pytest.approx((expected.sum() / weight.sum()).item(), rel=1e-4)


def test_labels_without_confidence_give_no_loss() -> None:
    pose = torch.randn(3, 3, 4)
    assert losses.pose_loss(pose, torch.randn(3, 3, 4), torch.zeros(3)).item() == 0


def test_expression_anchor_counts_what_is_known_only() -> None:
    label = torch.tensor([[0.5, math.nan], [math.nan, 0.25]])
    predicted = torch.tensor([[0.25, 7.0], [9.0, 0.25]])
    assert losses.expression_loss(predicted, label) == pytest.approx(0.5)  # one deviation of 0.25, and a hit
    assert losses.expression_loss(predicted, label * math.nan) == 0


def test_anchors_halve_and_stop_at_their_floor() -> None:
    weight = LossWeights(anchor_half_life=100, anchor_floor=0.1)
    assert [losses.anchor_factor(weight, step) for step in (0, 100, 200)] == [1, 0.5, 0.25]
    assert losses.anchor_factor(weight, 10_000) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["r1_interval", "anchor_half_life"])
def test_intervals_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"loss.{name} is 0, need"):
        LossWeights(**{name: 0})


def test_region_loss_looks_at_its_region_only() -> None:
    region = torch.zeros(1, 8, 8, dtype=torch.uint8)
    region[:, 4:, 4:] = MOUTH
    mask = losses.region_mask(region, lowest=MOUTH)
    assert mask[0, 3:, 3:].all()
    assert mask.sum() == 25  # 4×4 and a rim of one pixel inside the picture
    real, fake = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    fake[..., :3, :] = 9
    assert losses.region_l1(fake, real, mask).item() == 0
    fake[..., 5, 5] = 1
    assert losses.region_l1(fake, real, mask).item() == pytest.approx(1 / 25)


def test_reconstruction_losses_follow_the_weights() -> None:
    fake, real = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    region = torch.full((2, 16, 16), FACE, dtype=torch.uint8)
    found = losses.reconstruction_losses(fake, real, region, LossWeights(region_face=1))
    assert set(found) == {"l1", "region_face"}
    torch.testing.assert_close(found["region_face"], found["l1"])  # the face is everywhere
    eyes = losses.reconstruction_losses(fake, real, region, LossWeights(region_eyes=1))["region_eyes"]
    assert eyes.item() == 0
    assert int(EYES) > int(FACE)


def test_multi_scale_ignores_what_averages_out() -> None:
    real = torch.zeros(1, 3, 16, 16)
    checkers = torch.ones(16, 16)
    checkers[::2, ::2] = checkers[1::2, 1::2] = -1
    assert losses.multi_scale_l1(checkers.expand(1, 3, -1, -1), real).item() == pytest.approx(0, abs=1e-6)
    assert losses.multi_scale_l1(real + 0.3, real).item() == pytest.approx(0.3)


def test_adversarial_losses_at_indifference() -> None:
    zero = torch.zeros(4)
    assert losses.generator_adversarial(zero).item() == pytest.approx(math.log(2))
    assert losses.discriminator_adversarial(zero, zero).item() == pytest.approx(2 * math.log(2))


def test_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))
    expected = 0.5 * linear[1].weight.square().sum()
    torch.testing.assert_close(losses.r1_penalty(linear, torch.randn(3, 3, 2, 2)), expected)


@pytest.mark.parametrize("name", ["stlpips_alex", "stlpips_vgg"])
def test_perceptual_networks_tell_faces_apart_and_pass_gradients(name: str, weights_env: object) -> None:
    network = PerceptualLoss(name)  # type: ignore[arg-type]
    real = torch.rand(1, 3, 64, 64) * 2 - 1
    near = (real + 0.05 * torch.randn_like(real)).clamp(-1, 1)
    far = (torch.rand(1, 3, 64, 64) * 2 - 1).requires_grad_(True)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    whole_near, masked_near = network(near, real, mask)
    whole_far, masked_far = network(far, real, mask)
    assert whole_near < whole_far
    assert masked_near < masked_far
    whole_far.backward()
    assert far.grad is not None
    assert far.grad.abs().sum() > 0
    outside = real.clone()
    outside[..., :8, :8] = 0
    assert network(outside, real, mask)[1].item() == pytest.approx(0, abs=1e-5)
    assert not any(p.requires_grad for p in network.parameters())


def test_vgg16_needs_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("DEX_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16.*fetch"):
        PerceptualLoss("vgg16")


def test_vgg16_is_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any VGG16 weights the unmasked loss is the `lpips` package's, layer for layer."""
    import lpips

    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    convolutions = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    state = {}
    for i, module in enumerate(convolutions):
        state |= {f"features.{i}.weight": module.weight.data, f"features.{i}.bias": module.bias.data}
    monkeypatch.setattr(losses.weights, "load_state_dict", lambda name: state)
    fake, real = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    whole, masked = PerceptualLoss("vgg16")(fake, real, torch.ones(2, 32, 32))
    torch.testing.assert_close(whole, reference(fake, real).mean())
    torch.testing.assert_close(masked, whole)
