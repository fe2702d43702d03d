"""A transformer block alone: shapes of the paper, and its additions against formulas written out here."""

import pytest
import torch
from torch import Tensor

from dex.animator.blocks import DenoisingBlock, as_volume, volume_depth
from dex.animator.conditions import BlockConditions, FrameConditions, Reference, per_frame
from dex.animator.unet import AnimatorUNet, blocks_of
from dex.motion.head_surface import coordinates
from dex.pose import make_pose, matrix_from_euler
from tests.animator.conftest import random_poses
from tests.poses import identity_pose

SIZE = 8
INDEX = 2  # a block of the second level: 32 channels at half the latent's size


@pytest.fixture
def block(moved: AnimatorUNet) -> DenoisingBlock:
    return blocks_of(moved.denoiser)[INDEX].requires_grad_(False)


def conditions(feature: Tensor, source: Tensor, driving: Tensor) -> BlockConditions:
    """One source's feature, seen at the poses of one frame each."""
    reference = Reference((feature,) * 16, (feature,) * 16)
    told = FrameConditions(reference, source, driving, keep=None, expression=None, keep_expression=None)
    return BlockConditions((2 * SIZE, 2 * SIZE), len(driving) // len(feature), False, told)


def test_depth_of_the_3d_feature() -> None:
    assert [volume_depth(c, h) for c, h in ((320, 64), (640, 32), (1280, 16), (1280, 8))] == [32, 16, 8, 4]
    # Where h/2 does not divide c, the nearest divisor below; never less than one slice.
    assert [volume_depth(c, h) for c, h in ((320, 48), (640, 24), (1280, 12), (32, 1))] == [20, 10, 5, 1]


def test_shapes_of_the_3d_feature() -> None:
    """The paper's shapes for 512²: 2c/h channels of size (h/2)×h×h."""
    for channels, height, shape in (
        (320, 64, (10, 32, 64, 64)),
        (640, 32, (40, 16, 32, 32)),
        (1280, 16, (160, 8, 16, 16)),
        (1280, 8, (320, 4, 8, 8)),
    ):
        tokens = torch.empty(2, height * height, channels, device="meta")
        assert as_volume(tokens, height, height).shape == (2, *shape)


def test_a_volume_holds_each_token_at_its_place() -> None:
    tokens = torch.randn(1, 4 * 6, 8)
    volume = as_volume(tokens, 4, 6)
    assert volume.shape == (1, 4, 2, 4, 6)
    assert torch.equal(volume[0, :, :, 3, 5].flatten(), tokens[0, 3 * 6 + 5])


def test_size_of_a_block_follows_the_unets_halvings() -> None:
    of = BlockConditions((12, 20), 1, False, None).feature_size
    assert [of(n) for n in (240, 60, 15, 6)] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    with pytest.raises(AssertionError, match="no halving"):
        of(61)


@torch.no_grad()
def test_the_warped_reference_moves_with_the_head(block: DenoisingBlock) -> None:
    """A driver one cell to the right shifts the feature by one cell; what comes from outside is zero."""
    torch.nn.init.dirac_(block.warped_out.weight)
    feature = torch.randn(1, SIZE * SIZE, 32)
    shifted = identity_pose(1).clone()
    shifted[:, 0, 3] = 2 / SIZE
    told = conditions(feature, identity_pose(1), shifted)
    moved = block.warped_reference(told, told.told).unflatten(1, (SIZE, SIZE))
    torch.testing.assert_close(moved[:, :, 1:], feature.unflatten(1, (SIZE, SIZE))[:, :, :-1])
    assert moved[:, :, 0].abs().max() < 1e-5


@torch.no_grad()
def test_every_frame_is_warped_by_its_own_pose(block: DenoisingBlock) -> None:
    feature, source, driving = torch.randn(2, SIZE * SIZE, 32), random_poses(2), random_poses(2, 3)
    together = conditions(feature, per_frame(source, 3), driving.flatten(0, 1))
    whole = block.warped_reference(together, together.told).unflatten(0, (2, 3))
    for sample in range(2):
        for frame in range(3):
            alone = conditions(feature[sample, None], source[sample, None], driving[sample, frame, None])
            torch.testing.assert_close(whole[sample, frame, None], block.warped_reference(alone, alone.told))


@torch.no_grad()
def test_along_the_shell_a_turned_face_arrives_where_its_front_is(block: DenoisingBlock) -> None:
    """The feature notes where on the head each cell of the source looks. Turned by 30°, the head shows the same place
    elsewhere: along the shell what arrives says so, from slices through [-1, 1]³ it is off by more."""
    size, pose = 32, make_pose(torch.eye(3)[None], torch.zeros(1, 3), torch.tensor([0.9]))
    turned = make_pose(matrix_from_euler(*torch.tensor([[0.5], [0.0], [0.0]])), torch.zeros(1, 3), torch.tensor([0.9]))

    def places(pose: Tensor) -> Tensor:
        return coordinates(pose, size)[:, :3]

    # 12 channels as 4 slices of 3: every slice says the same
    tokens = places(pose).repeat_interleave(4, dim=1).flatten(2).mT
    block.warped_out = torch.nn.Identity()
    inside = (coordinates(turned, size)[0, -1] > 0.3) & (places(turned)[0, 0].abs() < 0.3)
    error = {}
    for shell in (0.0, 0.3):
        block.shell = shell
        reference = Reference((tokens,) * 16, (tokens,) * 16)
        told = FrameConditions(reference, pose, turned, keep=None, expression=None, keep_expression=None)
        arrived = block.warped_reference(BlockConditions((size, size), 1, False, told), told)
        middle = arrived.mT.unflatten(2, (size, size)).unflatten(1, (3, 4))[:, :, 1:3].mean(dim=2)
        error[shell] = (middle - places(turned))[0, :, inside].abs().mean().item()
    assert error[0.3] < 0.05
    assert error[0.0] > 2 * error[0.3]


@torch.no_grad()
def test_with_the_weight_of_to_out_reference_attention_is_attention_over_both(block: DenoisingBlock) -> None:
    """The softmax of the paper's concat(own, reference), written out."""
    attention = block.attn1
    block.reference_out.weight.copy_(attention.to_out[0].weight)
    own, reference = 3 * torch.randn(4, SIZE * SIZE, 32), 3 * torch.randn(2, SIZE * SIZE, 32)
    found = block.self_attention(own, conditions(reference, random_poses(4), random_poses(4)))
    keys = torch.cat([own, reference.repeat_interleave(2, 0)], dim=1)
    q, k, v = (
        projection(x).reshape(4, -1, attention.heads, 32 // attention.heads)
        for projection, x in ((attention.to_q, own), (attention.to_k, keys), (attention.to_v, keys))
    )
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / (32 / attention.heads) ** 0.5).softmax(-1)
    expected = attention.to_out[0](torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    torch.testing.assert_close(found, expected)
    without = block.self_attention(own, BlockConditions((2 * SIZE, 2 * SIZE), 2, False, None))
    torch.testing.assert_close(without, attention(own))
    assert (found - without).abs().max() > 0.01


@torch.no_grad()
def test_expression_tokens_can_be_told_apart(block: DenoisingBlock, moved: AnimatorUNet) -> None:
    """Attention sees a set of keys: the same code in another order of its parts must look different to it."""
    e = torch.randn(1, 1, moved.config.expression_dim)
    turned = e.unflatten(2, (moved.config.expression_tokens, -1)).roll(1, dims=2).flatten(2)
    hidden = torch.randn(1, SIZE * SIZE, 32)
    seen = [block.attend_expression(hidden, moved.expression_tokens(code)) for code in (e, turned)]
    assert (seen[0] - seen[1]).abs().max() > 1e-3 * seen[0].abs().max()
