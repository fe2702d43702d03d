"""The shell of a head: its geometry against the equation of an ellipsoid, its warp against exact coordinates."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from dex.motion import head_surface
from dex.motion.head_surface import CHANNELS, coordinates, front_points, warp_shell
from dex.pose import base_grid, invert, make_pose, matrix_from_euler

REACH, SIZE, DEPTH = 0.3, 64, 6


def head(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, scale: float = 0.9, x: float = 0.0) -> Tensor:
    angles = (torch.tensor([math.radians(angle)]) for angle in (yaw, pitch, roll))
    return make_pose(matrix_from_euler(*angles), torch.tensor([[x, 0.05, 0.0]]), torch.tensor([scale]))


def canonical(pose: Tensor, points: Float[Tensor, "1 P 3"]) -> Tensor:
    inverse = invert(pose)
    return points @ inverse[0, :, :3].T + inverse[0, :, 3]


def shell(pose: Tensor) -> Float[Tensor, "1 3 D H W"]:
    """Canonical coordinates of every cell."""
    points, _ = front_points(pose, SIZE)
    cells = points[:, None].repeat(1, DEPTH, 1, 1)
    cells[..., 2] += REACH * base_grid(DEPTH)
    return canonical(pose, cells.flatten(1, 2)).unflatten(1, (DEPTH, SIZE, SIZE)).movedim(-1, 1)


def test_front_lies_on_the_ellipsoid_and_before_its_other_side() -> None:
    pose = head(30, -20, 15, 0.8, 0.1)
    points, inside = front_points(pose, 32)
    on_head = inside[0] > 0.02
    assert 200 < on_head.sum() < 32**2
    scaled = (canonical(pose, points) - torch.tensor(head_surface.CENTRE)) / torch.tensor(head_surface.RADII)
    assert (scaled[0, on_head].square().sum(-1) - 1).abs().max() < 0.02
    behind = points.clone()
    behind[..., 2] += 0.05  # a step away from the camera is a step into the head
    inwards = (canonical(pose, behind) - torch.tensor(head_surface.CENTRE)) / torch.tensor(head_surface.RADII)
    assert (inwards[0, on_head].square().sum(-1) < 1).all()


def test_warp_to_the_same_pose_changes_nothing() -> None:
    pose, volume = head(25, 10, -10), torch.randn(1, 4, DEPTH, SIZE, SIZE)
    torch.testing.assert_close(warp_shell(volume, pose, pose, REACH), volume, atol=1e-3, rtol=0)


@pytest.mark.parametrize("driving", [head(20), head(-15, 10), head(0, 0, 30), head(5, -5, 10, 0.7, 0.15)])
def test_warp_brings_every_visible_point_where_the_head_has_it(driving: Tensor) -> None:
    source = head(-5, 5)
    asked = shell(driving)
    found = warp_shell(torch.cat([shell(source), torch.ones(1, 1, DEPTH, SIZE, SIZE)], 1), source, driving, REACH)
    _, inside = front_points(driving, SIZE)
    # whole cells only, and of the face: towards the silhouette the front falls away faster than cells can follow
    seen = (found[:, 3] > 0.999) & (inside.view(1, 1, SIZE, SIZE) > 0.15)
    assert seen.float().mean() > 0.08
    error = (found[:, :3] - asked).norm(dim=1)[seen]
    assert error.mean() < 0.01  # canonical units; a pixel is 0.035
    assert error.quantile(0.99) < 0.05


def test_what_the_sources_front_hides_is_empty() -> None:
    full = torch.ones(1, 1, DEPTH, SIZE, SIZE)
    turned = warp_shell(full, head(-45), head(45), REACH)[0, 0]
    # turning to the left brings the head's left side, on the picture's right, to the front
    _, inside = front_points(head(45), SIZE)
    on_head = inside.view(SIZE, SIZE) > 0.05
    middle, columns = DEPTH // 2, torch.arange(SIZE).expand(SIZE, SIZE)
    halves = [turned[middle][on_head & (columns < 28)].mean(), turned[middle][on_head & (columns > 36)].mean()]
    assert max(halves) > 0.9
    assert min(halves) < 0.4


def test_coordinates_say_where_on_the_head_a_pixel_is() -> None:
    pose = head(20, 0, 10)
    found = coordinates(pose, SIZE)
    assert found.shape == (1, CHANNELS, SIZE, SIZE)
    points, inside = front_points(pose, SIZE)
    torch.testing.assert_close(found[:, :3].flatten(2).mT, canonical(pose, points))
    torch.testing.assert_close(found[0, 3:6], torch.sin(2 * found[0, :3]))
    torch.testing.assert_close(found[0, -1].flatten(), inside[0].clamp(-1, 1))


def test_poses_get_a_gradient_that_is_finite() -> None:
    source, driving = (head(angle).requires_grad_() for angle in (-20, 30))
    volume = torch.randn(1, 2, DEPTH, 16, 16, requires_grad=True)
    warp_shell(volume, source, driving, REACH).square().sum().backward()
    for tensor in (source, driving, volume):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
