"""A volume whose depth is measured from an average head's front, and where on that head each pixel looks **(ours)**.

Over [-1, 1]³ a coarse volume has its slices a quarter of a picture apart: turned by 45°, a face read from them is
blurred by as much as an eye is large, until a network has learned which slice of which cell the face is in. Here the
slices follow the front of an ellipsoid in the head's pose, so that an untrained warp already puts a face where it
belongs, and what the source's own front hides is outside of the volume. The network learns by how much a head differs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dex.pose import base_grid, full_precision, invert, relative_pose

# In canonical units (`dex.pose`). Whoever is in front of the camera differs by less than `reach` half picture sides.
CENTRE = (0.0, -0.1, 0.2)
RADII = (0.68, 1.05, 0.82)
# Sines and cosines of the canonical coordinates times these say where on the head a pixel is, to the size of an eye.
_FREQUENCIES = (2.0, 4.0, 8.0)
CHANNELS = 3 * (1 + 2 * len(_FREQUENCIES)) + 1
_SOFTENING = 1e-4  # of the silhouette, where the front's slope is infinite


def front(pose: Float[Tensor, "N 3 4"], points: Float[Tensor, "N P 2"]) -> tuple[Tensor, Tensor]:
    """(z, inside), (N, P) each, of image points (x, y): depth of the ellipsoid's front under a pose, and the squared
    half of the way through it, negative beside the silhouette; there z is where the line of sight comes closest."""
    inverse, radii = invert(pose), pose.new_tensor(RADII)
    scaled = inverse[:, :, :3] / radii[:, None]
    start = torch.einsum("nij,npj->nip", scaled[:, :, :2], points)
    start = start + ((inverse[:, :, 3] - pose.new_tensor(CENTRE)) / radii)[:, :, None]
    along = scaled[:, :, 2:]
    a, b, c = along.square().sum(1), (start * along).sum(1), start.square().sum(1) - 1
    discriminant = b.square() - a * c
    return (-b - (discriminant.clamp_min(0) + _SOFTENING).sqrt()) / a, discriminant / a.square()


def front_points(pose: Float[Tensor, "N 3 4"], size: int) -> tuple[Float[Tensor, "N P 3"], Float[Tensor, "N P"]]:
    """The front at the centres of size² pixels, row by row, in image coordinates; and `front`'s inside."""
    pixels = base_grid(size, size, device=pose.device).flatten(0, 1).expand(len(pose), -1, -1).to(pose.dtype)
    depth, inside = front(pose, pixels)
    return torch.cat([pixels, depth[..., None]], dim=-1), inside


def coordinates(pose: Float[Tensor, "N 3 4"], size: int) -> Float[Tensor, "N CHANNELS size size"]:
    """Canonical coordinates of the front at each pixel, their sines and cosines, and how far inside the silhouette.

    No gradient reaches the pose: it is to say where the head is, not to draw.
    """
    with full_precision(pose), torch.no_grad():
        pose = pose.float()
        points, inside = front_points(pose, size)
        inverse = invert(pose)
        canonical = torch.einsum("nij,npj->nip", inverse[..., :3], points) + inverse[:, :, 3:]
        places = with_waves(canonical, _FREQUENCIES, dim=1)
        return torch.cat([places, inside.clamp(-1, 1)[:, None]], dim=1).unflatten(2, (size, size))


def with_waves(values: Float[Tensor, "*b"], frequencies: Sequence[float], dim: int) -> Float[Tensor, "*c"]:
    """Coordinates and, behind them along `dim`, their sines and cosines, by which a network tells near ones apart."""
    return torch.cat([values, *(wave(k * values) for k in frequencies for wave in (torch.sin, torch.cos))], dim=dim)


def warp_shell(
    volume: Float[Tensor, "B C D H W"], source: Float[Tensor, "B 3 4"], driving: Float[Tensor, "B 3 4"], reach: float
) -> Float[Tensor, "B C D H W"]:
    """f_w(x) = f(P_s P_d⁻¹ x), as `dex.pose.warp_volume`, where the third axis of both volumes is the distance from the
    average head's front under their pose, ± `reach`. Zero where the source's volume has nothing: what its front hides.

    Poses get their gradient through the motion P_s P_d⁻¹, not through where the fronts are.
    """
    depth, size = volume.shape[2], volume.shape[-1]
    with full_precision(volume):
        source, driving = source.float(), driving.float()
        points, _ = front_points(driving.detach(), size)
        points = points[:, None].repeat(1, depth, 1, 1)
        points[..., 2] += reach * base_grid(depth, device=volume.device)
        motion = relative_pose(driving, source)
        there = torch.einsum("bij,bdpj->bdpi", motion[..., :3], points) + motion[:, None, None, :, 3]
        seen, _ = front(source.detach(), there[..., :2].flatten(1, 2).detach())
        distance = (there[..., 2] - seen.unflatten(1, there.shape[1:3])) / reach
        grid = torch.cat([there[..., :2], distance[..., None]], dim=-1).unflatten(2, (size, size))
        warped = F.grid_sample(volume.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.to(volume.dtype)
