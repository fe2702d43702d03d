"""Pose algebra against independent mathematics: NumPy float64, SciPy's rotations, finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.autograd import gradcheck

from dex import pose
from tests.poses import identity_pose

DEGREE = math.pi / 180


def angles(n: int, limit: float = 1.4) -> tuple[Tensor, Tensor, Tensor]:
    """(yaw, pitch, roll): yaw within ±limit, away from the gimbal; the other two all the way round."""
    unit = torch.rand(3, n, dtype=torch.float64) * 2 - 1
    return unit[0] * limit, unit[1] * 3.1, unit[2] * 3.1


def rotations(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(Rotation.random(n, rng=seed).as_matrix())


def poses(n: int, seed: int = 0, reach: float = 0.5) -> Tensor:
    """Random similarities: any rotation, t in ±reach in all three coordinates, s in [0.5, 2]."""
    rng = np.random.default_rng(seed)
    translation = torch.from_numpy(rng.uniform(-reach, reach, (n, 3)))
    scale = torch.from_numpy(2 ** rng.uniform(-1, 1, n))
    return pose.make_pose(rotations(n, seed), translation, scale)


def head(yaw: float = 0, pitch: float = 0, roll: float = 0, tx: float = 0, ty: float = 0, s: float = 1) -> Tensor:
    """One float32 pose, angles in degrees."""
    radians = torch.tensor([yaw, pitch, roll], dtype=torch.float32) * DEGREE
    return pose.make_pose(pose.matrix_from_euler(*radians), torch.tensor([tx, ty, 0.0]), torch.tensor(float(s)))[None]


def homogeneous(p: Tensor) -> np.ndarray:
    """4×4 matrices, the way a textbook writes a pose."""
    bottom = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*p.shape[:-2], 1, 4))
    return np.concatenate([p.double().numpy(), bottom], axis=-2)


# ---- algebra ---------------------------------------------------------------------------------------------------------


def test_compose_and_invert_are_the_4x4_product_and_inverse() -> None:
    a, b = poses(64, seed=1), poses(64, seed=2)
    np.testing.assert_allclose(homogeneous(pose.compose(a, b)), homogeneous(a) @ homogeneous(b), atol=1e-12)
    np.testing.assert_allclose(homogeneous(pose.invert(a)), np.linalg.inv(homogeneous(a)), atol=1e-12)


def test_inverse_cancels_in_float32() -> None:
    p = poses(64).float()
    for product in (pose.compose(p, pose.invert(p)), pose.compose(pose.invert(p), p)):
        torch.testing.assert_close(product, identity_pose(64), atol=1e-5, rtol=0)


def test_relative_pose_is_the_4x4_formula_and_carries_the_source_to_the_driver() -> None:
    source, driving = poses(64, seed=1), poses(64, seed=2)
    relative = pose.relative_pose(source, driving)
    np.testing.assert_allclose(
        homogeneous(relative), homogeneous(driving) @ np.linalg.inv(homogeneous(source)), atol=1e-11
    )
    torch.testing.assert_close(pose.compose(relative, source), driving)


def test_relative_pose_does_not_depend_on_the_canonical_frame() -> None:
    source, driving, frame = poses(64, seed=1), poses(64, seed=2), poses(64, seed=3)
    moved = pose.relative_pose(pose.compose(source, frame), pose.compose(driving, frame))
    torch.testing.assert_close(moved, pose.relative_pose(source, driving), atol=1e-11, rtol=0)
    # A frame on the image's side is no such freedom: a test that cannot tell the sides apart would pass this as well.
    wrong = pose.relative_pose(pose.compose(frame, source), pose.compose(frame, driving))
    assert (wrong - pose.relative_pose(source, driving)).abs().max() > 0.1


def test_split_pose_undoes_make_pose() -> None:
    rotation, translation = rotations(64), torch.rand(64, 3, dtype=torch.float64)
    scale = 0.1 + 3 * torch.rand(64, dtype=torch.float64)
    for found, expected in zip(
        pose.split_pose(pose.make_pose(rotation, translation, scale)), (rotation, translation, scale), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_functions_broadcast_over_leading_dimensions() -> None:
    source, driving = poses(6, seed=1), poses(6, seed=2)
    grid = pose.relative_pose(source.view(2, 1, 3, 3, 4)[:, :, :1], driving.view(2, 1, 3, 3, 4))
    assert grid.shape == (2, 1, 3, 3, 4)
    expected = pose.relative_pose(source[3:4].expand(3, 3, 4), driving[3:])
    torch.testing.assert_close(grid[1, 0], expected)


# ---- rotations -------------------------------------------------------------------------------------------------------


def test_euler_angles_are_those_of_scipy() -> None:
    yaw, pitch, roll = angles(256)
    # R_z(roll) R_y(yaw) R_x(pitch): intrinsic rotations about z, then y, then x
    expected = Rotation.from_euler("ZYX", torch.stack([roll, yaw, pitch], -1).numpy())
    matrix = pose.matrix_from_euler(yaw, pitch, roll)
    np.testing.assert_allclose(matrix, expected.as_matrix(), atol=1e-12)
    found = pose.euler_from_matrix(matrix)
    np.testing.assert_allclose(torch.stack([found[2], found[0], found[1]], -1), expected.as_euler("ZYX"), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("yaw", [90.0, -90.0])
def test_euler_at_the_gimbal_gives_the_same_matrix(yaw: float, dtype: torch.dtype) -> None:
    _, pitch, roll = (a.to(dtype) for a in angles(32))
    matrix = pose.matrix_from_euler(torch.full_like(pitch, yaw * DEGREE), pitch, roll)
    found = pose.euler_from_matrix(matrix)
    assert (found[1] == 0).all()
    torch.testing.assert_close(pose.matrix_from_euler(*found), matrix, atol=2e-6, rtol=0)


def test_6d_round_trip_and_gram_schmidt() -> None:
    matrix = rotations(64)
    torch.testing.assert_close(pose.rotation_from_6d(torch.cat([matrix[..., 0], matrix[..., 1]], dim=-1)), matrix)
    six = torch.randn(64, 6, dtype=torch.float64)
    found = pose.rotation_from_6d(six).numpy()
    np.testing.assert_allclose(found.transpose(0, 2, 1) @ found, np.broadcast_to(np.eye(3), (64, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-12)
    # QR of the two given columns is Gram-Schmidt up to signs, which the positive diagonal of its R fixes
    for a, column in zip(found, six.view(64, 2, 3).mT.numpy(), strict=True):
        q, r = np.linalg.qr(column)
        np.testing.assert_allclose(a[:, :2], q * np.sign(np.diag(r)), atol=1e-9)


def test_geodesic_is_the_angle_of_scipy() -> None:
    a, b = rotations(256, seed=1), rotations(256, seed=2)
    expected = (Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())).magnitude()
    np.testing.assert_allclose(pose.geodesic(a, b), expected, atol=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 0.1, 90.0, 179.0, 179.9, 180.0])
def test_geodesic_from_no_turn_to_half_a_turn_in_float32(degrees: float) -> None:
    axis = np.array([1.0, 2.0, -2.0]) / 3
    a = rotations(1)
    b = a @ torch.from_numpy(Rotation.from_rotvec(axis * degrees * DEGREE).as_matrix())
    found = pose.geodesic(a.float(), b.float()).item() / DEGREE
    # 1 + trace cancels at half a turn: half of float32's digits are left there, all of them near zero
    assert found == pytest.approx(degrees, abs=0.05 if degrees > 170 else 2e-5, rel=1e-4)


def test_geodesic_of_equal_rotations_has_a_finite_gradient() -> None:
    matrix = rotations(4).requires_grad_()
    pose.geodesic(matrix, matrix.detach()).sum().backward()
    assert matrix.grad is not None
    assert matrix.grad.isfinite().all()


# ---- warping ---------------------------------------------------------------------------------------------------------


def affine_in_numpy(volume: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`volume` (D, H, W) seen through a 4×4 matrix from output to input points of [-1, 1]³; float64, trilinear."""
    depth, height, width = volume.shape
    result = np.zeros_like(volume)
    for index in np.ndindex(depth, height, width):
        z, y, x = ((2 * i + 1) / n - 1 for i, n in zip(index, volume.shape, strict=True))
        point = matrix @ np.array([x, y, z, 1.0])
        pixels = [((p + 1) * n - 1) / 2 for p, n in zip(point[2::-1], volume.shape, strict=True)]
        low = [math.floor(p) for p in pixels]
        for corner in np.ndindex(2, 2, 2):
            at = [a + c for a, c in zip(low, corner, strict=True)]
            if all(0 <= i < n for i, n in zip(at, volume.shape, strict=True)):
                result[index] += volume[tuple(at)] * math.prod(1 - abs(p - i) for p, i in zip(pixels, at, strict=True))
    return result


def test_warp_is_the_affine_transform_of_numpy_float64() -> None:
    rng = np.random.default_rng(0)
    volumes = rng.normal(size=(3, 2, 4, 6, 5))
    source, driving = poses(3, seed=1), poses(3, seed=2)
    found = pose.warp_volume(torch.from_numpy(volumes).float(), source.float(), driving.float())
    matrices = homogeneous(source) @ np.linalg.inv(homogeneous(driving))
    expected = [[affine_in_numpy(v, m) for v in volume] for volume, m in zip(volumes, matrices, strict=True)]
    np.testing.assert_allclose(found, np.array(expected), atol=2e-5)


def test_warp_matches_scipy_inside_the_volume() -> None:
    volume = np.random.default_rng(0).normal(size=(8, 10, 12))
    source, driving = head(10, -5, 15, 0.1, -0.05, 0.9), head(-8, 4, 0, 0, 0.1, 1.1)
    found = pose.warp_volume(torch.from_numpy(volume).float()[None, None], source, driving)[0, 0].numpy()
    matrix = (homogeneous(source) @ np.linalg.inv(homogeneous(driving)))[0]
    size = np.array(volume.shape)[::-1]  # x, y, z
    centres = [(2 * np.arange(n) + 1) / n - 1 for n in volume.shape]
    z, y, x = np.meshgrid(*centres, indexing="ij")
    points = np.stack([x, y, z], -1) @ matrix[:3, :3].T + matrix[:3, 3]
    pixels = ((points + 1) * size - 1) / 2
    expected = map_coordinates(volume, pixels[..., ::-1].transpose(3, 0, 1, 2), order=1, mode="grid-constant", cval=0)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_warp_to_the_same_pose_changes_nothing() -> None:
    volume, p = torch.randn(4, 2, 4, 6, 6), poses(4).float()
    torch.testing.assert_close(pose.warp_volume(volume, p, p), volume, atol=1e-4, rtol=0)


def blob(x: float, y: float, z: float, depth: int = 32, side: int = 48, sigma: float = 0.2) -> Tensor:
    """A Gaussian spot in the volume: smooth, so that trilinear sampling moves its centre exactly."""
    grid = pose.base_grid(depth, side, side)
    return torch.exp(-((grid - torch.tensor([x, y, z])) ** 2).sum(-1) / (2 * sigma**2))[None, None]


def centre(volume: Tensor) -> Tensor:
    """The (x, y, z) of the mass of a (1, 1, D, H, W) volume."""
    grid = pose.base_grid(*volume.shape[-3:])
    return (grid * volume[0, 0, ..., None]).sum((0, 1, 2)) / volume.sum()


def test_inverse_warps_cancel() -> None:
    volume = blob(0.1, -0.1, 0.05, sigma=0.3)
    source, driving = head(10, 5, -20, 0.05, 0, 1.1), head(-15, 8, 12, 0, -0.1, 0.9)
    there = pose.warp_volume(volume, source, driving)
    back = pose.warp_volume(there, driving, source)
    assert (there - volume).abs().max() > 0.2  # it did move
    assert (back - volume).abs().max() < 0.03  # two trilinear samplings blur a little


def test_grid_of_the_inverse_undoes_the_grid() -> None:
    p = poses(4).float()
    there = pose.warp_grid(p, 3, 5, 7)
    back = torch.einsum("bij,bdhwj->bdhwi", pose.invert(p)[..., :3], there) + pose.invert(p)[:, None, None, None, :, 3]
    torch.testing.assert_close(back, pose.base_grid(3, 5, 7).expand_as(back), atol=1e-5, rtol=0)


# x right, y down, z away; the face looks along -z. What each component does to a point of the head:
@pytest.mark.parametrize(
    ("driving", "point", "moves"),
    [
        (head(tx=0.2), (0, 0, 0), (+1, 0, 0)),  # to the right of the picture
        (head(ty=0.2), (0, 0, 0), (0, +1, 0)),  # down
        (head(s=1.3), (0.4, -0.4, 0), (+1, -1, 0)),  # away from the centre
        (head(roll=20), (0.4, 0, 0), (0, +1, 0)),  # the right side goes down: clockwise as seen
        (head(yaw=20), (0, 0, -0.4), (-1, 0, 0)),  # the nose goes to the left of the picture
        (head(pitch=20), (0, 0, -0.4), (0, +1, 0)),  # the nose goes down
    ],
    ids=["tx", "ty", "s", "roll", "yaw", "pitch"],
)
def test_each_component_moves_a_blob_its_way(
    driving: Tensor, point: tuple[float, float, float], moves: tuple[int, int, int]
) -> None:
    moved = centre(pose.warp_volume(blob(*point), head(), driving))
    expected = (homogeneous(driving) @ np.array([*point, 1.0]))[0, :3]
    np.testing.assert_allclose(moved, expected, atol=0.02)
    for axis, sign in enumerate(moves):
        change = (moved[axis] - point[axis]).item()
        assert change * sign > 0.05 if sign else axis == 2 or abs(change) < 0.05


def test_warp_of_a_half_precision_volume_keeps_its_coordinates() -> None:
    volume, source, driving = blob(0.1, 0, 0), head(), head(7, 3, 11, 0.03, -0.02, 1.05)
    exact = pose.warp_volume(volume, source, driving)
    half = pose.warp_volume(volume.bfloat16(), source, driving)
    assert half.dtype == torch.bfloat16
    # rounding values to bf16 costs 0.4 % of the peak; rounding the coordinates too would cost 2 %
    assert (half.float() - exact).abs().max() < 0.01
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pose.warp_volume(volume, source, driving), exact)


def test_warp_runs_on_the_meta_device() -> None:
    p = head().to("meta")
    assert pose.warp_volume(torch.empty(1, 32, 16, 64, 64, device="meta"), p, p).shape == (1, 32, 16, 64, 64)


# ---- ray map ---------------------------------------------------------------------------------------------------------


def test_ray_map_is_the_displacement_of_each_point_of_the_plane() -> None:
    source, driving = poses(2, seed=1), poses(2, seed=2)
    found = pose.ray_map(source, driving, 4, 6)
    matrices = homogeneous(driving) @ np.linalg.inv(homogeneous(source))
    for b, i, j in np.ndindex(2, 4, 6):
        u, v = (2 * j + 1) / 6 - 1, (2 * i + 1) / 4 - 1
        expected = (matrices[b] @ [u, v, 0, 1])[:3] - [u, v, 0]
        np.testing.assert_allclose(found[b, :, i, j], expected, atol=1e-6)


def test_ray_map_is_zero_for_the_same_pose_and_constant_for_a_translation() -> None:
    p = poses(4).float()
    torch.testing.assert_close(pose.ray_map(p, p, 8, 8), torch.zeros(4, 3, 8, 8), atol=1e-5, rtol=0)
    moved = pose.ray_map(head(30, s=2), pose.compose(head(tx=0.2, ty=-0.1), head(30, s=2)), 8, 8)
    expected = torch.tensor([0.2, -0.1, 0.0])[None, :, None, None].expand(1, 3, 8, 8)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_pass_gradcheck() -> None:
    p, q = poses(2, seed=1).requires_grad_(), poses(2, seed=2).requires_grad_()
    assert gradcheck(pose.compose, (p, q))
    assert gradcheck(pose.invert, (p,))
    assert gradcheck(pose.relative_pose, (p, q))
    assert gradcheck(pose.split_pose, (p,))
    assert gradcheck(lambda a, b: pose.ray_map(a, b, 2, 3), (p, q))
    assert gradcheck(lambda a: pose.warp_grid(a, 2, 2, 3), (p,))


def test_gradients_of_rotations_pass_gradcheck() -> None:
    euler = [a.requires_grad_() for a in angles(4)]
    assert gradcheck(pose.matrix_from_euler, euler)
    assert gradcheck(lambda *a: pose.euler_from_matrix(pose.matrix_from_euler(*a)), euler)
    assert gradcheck(pose.rotation_from_6d, (torch.randn(4, 6, dtype=torch.float64, requires_grad=True),))
    a, b = rotations(4, seed=1).requires_grad_(), rotations(4, seed=2).requires_grad_()
    assert gradcheck(pose.geodesic, (a, b))


def test_gradients_of_the_warp_are_those_of_finite_differences() -> None:
    """The warp is float32 by design: central differences of a smooth volume, to one per cent."""
    volume, weight = blob(0.1, -0.1, 0.05, 16, 24, sigma=0.4), torch.randn(1, 1, 16, 24, 24)
    source = head(5, 3, -10, 0.05, 0, 1.1)
    driving = head(-12, 8, 12, 0.02, -0.1, 0.95).requires_grad_()
    smooth = torch.nn.functional.avg_pool3d(weight, 5, 1, 2)

    def loss(p: Tensor) -> Tensor:
        return (pose.warp_volume(volume, source, p) * smooth).double().sum()

    loss(driving).backward()
    assert driving.grad is not None
    step, numeric = 1e-2, torch.zeros(1, 3, 4)
    for i, j in np.ndindex(3, 4):
        change = torch.zeros(1, 3, 4)
        change[0, i, j] = step
        with torch.no_grad():
            numeric[0, i, j] = (loss(driving + change) - loss(driving - change)) / (2 * step)
    assert (driving.grad - numeric).norm() < 0.02 * numeric.norm()


def test_face_view_undoes_what_a_pose_does_in_the_plane() -> None:
    """A smooth picture moved, rolled and scaled by a pose is brought back to what the identity pose shows."""
    y, x = torch.meshgrid(*2 * [(2 * torch.arange(64) + 1) / 64 - 1], indexing="ij")

    def scene(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sin(3 * u + v), torch.cos(2 * v), u * v])

    roll, scale, shift = 0.3, 0.7, (0.1, -0.05)
    zero = torch.zeros(1)
    rolled = pose.matrix_from_euler(zero, zero, zero + roll)
    moved = pose.make_pose(rolled, torch.tensor([[*shift, 0.0]]), torch.tensor([scale]))
    cos, sin = math.cos(roll) / scale, math.sin(roll) / scale
    u, v = cos * (x - shift[0]) + sin * (y - shift[1]), -sin * (x - shift[0]) + cos * (y - shift[1])
    seen = pose.face_view(scene(u, v)[None], moved)
    expected = pose.face_view(scene(x, y)[None], identity_pose(1))
    torch.testing.assert_close(seen[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8], atol=0.02, rtol=0)
    # Yaw moves the front of the face sideways, and the view goes with it.
    turned = pose.make_pose(pose.matrix_from_euler(zero + 0.5, zero, zero), torch.zeros(1, 3), torch.ones(1))
    assert (pose.face_view(x.expand(1, 3, 64, 64), turned).mean() < -0.1).item()
