"""Rigid head pose as a similarity transform, P = [sR | t]: algebra, warp grids and the ray map.

Conventions: right-handed; x right, y down, z away from the camera; normalised image coordinates in [-1, 1] whose
pixel centres are (2i + 1) / W - 1 (`align_corners=False`). R = R_z(roll) R_y(yaw) R_x(pitch) in radians. A pose maps
canonical head coordinates to image coordinates, x_img = s R x_can + t, with t = (t_x, t_y, 0): depth is redundant with
scale.
Every function is pure, differentiable, and broadcasts over leading dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Below this squared sine of the gimbal, yaw is ±90° and roll and pitch cannot be told apart.
_GIMBAL = 1e-12


def make_pose(
    rotation: Float[Tensor, "*b 3 3"], translation: Float[Tensor, "*b 3"], scale: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 4"]:
    """P = [sR | t] from its parts (6 degrees of freedom: t_z is 0 by convention, but any t is accepted)."""
    return torch.cat([scale[..., None, None] * rotation, translation[..., None]], dim=-1)


def split_pose(
    pose: Float[Tensor, "*b 3 4"],
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"], Float[Tensor, "*b"]]:
    """R, t, s of P = [sR | t]; s is the cube root of det(sR), hence s > 0 for a proper similarity."""
    scaled = pose[..., :3]
    scale = torch.linalg.det(scaled).clamp_min(1e-12) ** (1 / 3)
    return scaled / scale[..., None, None], pose[..., 3], scale


def compose(a: Float[Tensor, "*b 3 4"], b: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 3 4"]:
    """a ∘ b: first b, then a, as 4×4 matrices."""
    linear = a[..., :3] @ b[..., :3]
    translation = (a[..., :3] @ b[..., 3:]) + a[..., 3:]
    return torch.cat([linear, translation], dim=-1)


def invert(pose: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 3 4"]:
    """P⁻¹ in closed form: (sR)⁻¹ = (sR)ᵀ / s²."""
    scaled = pose[..., :3]
    squared_scale = (scaled * scaled).sum(dim=(-2, -1), keepdim=True) / 3
    inverse = scaled.mT / squared_scale
    return torch.cat([inverse, -inverse @ pose[..., 3:]], dim=-1)


def relative_pose(source: Float[Tensor, "*b 3 4"], driving: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 3 4"]:
    """Transform that carries the source head to the driver's pose, P_d ∘ P_s⁻¹ (DeX-Portrait, sec. 3.2).

    It does not depend on the canonical frame: replacing both poses P by P ∘ Q leaves it as it is.
    """
    return compose(driving, invert(source))


def matrix_from_euler(
    yaw: Float[Tensor, "*b"], pitch: Float[Tensor, "*b"], roll: Float[Tensor, "*b"]
) -> Float[Tensor, "*b 3 3"]:
    """R = R_z(roll) R_y(yaw) R_x(pitch), angles in radians."""
    (cy, sy), (cp, sp), (cr, sr) = ((a.cos(), a.sin()) for a in (yaw, pitch, roll))
    rows = [
        torch.stack([cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp], dim=-1),
        torch.stack([sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp], dim=-1),
        torch.stack([-sy, cy * sp, cy * cp], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def euler_from_matrix(
    rotation: Float[Tensor, "*b 3 3"],
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """(yaw, pitch, roll) in radians; yaw in [-π/2, π/2], the others in (-π, π].

    At yaw = ±90° only roll ∓ pitch is defined; pitch is then returned as 0.
    """
    cos_yaw_squared = rotation[..., 0, 0] ** 2 + rotation[..., 1, 0] ** 2
    locked = cos_yaw_squared < _GIMBAL
    yaw = torch.atan2(-rotation[..., 2, 0], cos_yaw_squared.clamp_min(_GIMBAL).sqrt())
    pitch = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    roll = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    locked_roll = torch.atan2(-rotation[..., 0, 1], rotation[..., 1, 1])
    return yaw, torch.where(locked, 0.0, pitch), torch.where(locked, locked_roll, roll)


def rotation_from_6d(six: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Gram-Schmidt of two 3-vectors, the first two *columns* of R (Zhou et al. 2019, eq. 15)."""
    first = F.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    second = F.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def geodesic(a: Float[Tensor, "*b 3 3"], b: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b"]:
    """Angle of the rotation aᵀb in radians, in [0, π].

    From the chord |a - b|_F = 2√2 sin(θ/2) for small angles and the trace for large ones: arccos of the trace alone has
    an infinite gradient at 0 and loses half of its digits there.
    """
    chord = (a - b).flatten(-2).norm(dim=-1) / 8**0.5
    trace = (a * b).sum(dim=(-2, -1))
    return 2 * torch.atan2(chord, ((1 + trace).clamp_min(1e-12) / 4).sqrt())


def full_precision(like: Tensor) -> torch.autocast:
    """Context without autocast on the device of `like`: bf16 has 0.4 % of resolution, too little for geometry."""
    # The meta device, on which shapes are checked, knows no autocast.
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


def base_grid(*size: int, device: torch.device | None = None) -> Float[Tensor, "*size n"]:
    """Normalised coordinates of pixel or voxel centres; `size` is (H, W) or (D, H, W), the result (x, y[, z])."""
    axes = [(2 * torch.arange(n, device=device, dtype=torch.float32) + 1) / n - 1 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)


def warp_grid(inverse: Float[Tensor, "B 3 4"], depth: int, height: int, width: int) -> Float[Tensor, "B D H W 3"]:
    """Where each output voxel looks in the source volume: `inverse` applied to the voxel centres of [-1, 1]³."""
    grid = base_grid(depth, height, width, device=inverse.device).to(inverse.dtype)
    return torch.einsum("bij,dhwj->bdhwi", inverse[..., :3], grid) + inverse[:, None, None, None, :, 3]


def warp_volume(
    volume: Float[Tensor, "B C D H W"], source: Float[Tensor, "B 3 4"], driving: Float[Tensor, "B 3 4"]
) -> Float[Tensor, "B C D H W"]:
    """f_w(x) = f(P_s P_d⁻¹ x): the source's volume seen at the driver's pose (DeX-Portrait, sec. 3.1).

    Trilinear, zero outside the volume. Sampled in float32 whatever the precision of the volume: bf16 coordinates would
    move voxels by up to half a cell.
    """
    with full_precision(volume):
        grid = warp_grid(relative_pose(driving.float(), source.float()), *volume.shape[-3:])
        warped = F.grid_sample(volume.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.to(volume.dtype)


POSE_COMPONENTS = ("yaw", "pitch", "roll", "tx", "ty", "log_scale")


def pose_components(pose: Float[Tensor, "N 3 4"]) -> Float[Tensor, "N 6"]:
    """Yaw, pitch, roll in radians, t_x, t_y, log s."""
    rotation, translation, scale = split_pose(pose)
    angles = torch.stack(euler_from_matrix(rotation), dim=-1)
    return torch.cat([angles, translation[:, :2], scale.log()[:, None]], dim=-1)


# Middle of the face's front in canonical units, and half of the side of a square that holds brows, eyes and mouth.
FACE_CENTRE = (0.0, 0.15, -0.45)
FACE_HALF_SIDE = 0.8


def face_view(picture: Float[Tensor, "N 3 H W"], pose: Float[Tensor, "N 3 4"]) -> Float[Tensor, "N 3 H W"]:
    """The face upright, in the middle and at one size: what a pose does in the picture's plane is undone **(ours)**.

    Yaw and pitch remain. No gradient reaches the pose. Beyond the picture its edge is repeated.
    """
    with full_precision(picture), torch.no_grad():
        pose = pose.float()
        rotation, _, scale = split_pose(pose)
        _, _, roll = euler_from_matrix(rotation)
        side = FACE_HALF_SIDE * scale
        cos, sin = side * roll.cos(), side * roll.sin()
        x, y, _ = (pose[:, :, :3] @ pose.new_tensor(FACE_CENTRE) + pose[:, :, 3]).unbind(-1)
        affine = torch.stack([cos, -sin, x, sin, cos, y], dim=-1).unflatten(-1, (2, 3))
        grid = F.affine_grid(affine, list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid.to(picture.dtype), padding_mode="border", align_corners=False)


def ray_map(
    source: Float[Tensor, "B 3 4"], driving: Float[Tensor, "B 3 4"], height: int, width: int
) -> Float[Tensor, "B 3 H W"]:
    """RayMap(u, v) = P [u, v, 0, 1]ᵀ - [u, v, 0]ᵀ with P = P_d ∘ P_s⁻¹: how far each point of the head plane moves.

    Zero for the identity. (u, v) are latent pixel centres in [-1, 1]² (DeX-Portrait, sec. 3.2).
    """
    relative = relative_pose(source, driving)
    plane = F.pad(base_grid(height, width, device=source.device).to(source.dtype), (0, 1))
    moved = torch.einsum("bij,hwj->bihw", relative[..., :3], plane) + relative[:, :, 3, None, None]
    return moved - plane.permute(2, 0, 1)
