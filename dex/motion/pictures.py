"""What TensorBoard shows of a motion trainer: reenactments, and the pose × expression swap grid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import make_grid

from dex.batch import Batch, to_unit
from dex.motion.generator import Generated, MotionGenerator
from dex.pose import full_precision


@torch.no_grad()
def reenactment_grid(generator: MotionGenerator, batch: Batch, made: Generated, samples: int) -> Float[Tensor, "3 H W"]:
    """Rows of source | pose driver | expression driver | output | truth | warped feature; values in [0, 1]."""
    feature = generator.appearance_encoder(batch.source, made.source_pose)
    warped = feature_picture(generator.warp(feature, made.source_pose, made.driving_pose[:, 0]), batch.source.shape[-1])
    columns = [
        batch.source,
        batch.posed[:, 0],
        batch.expression_view[:, 0],
        made.fake[:, 0],
        batch.driving[:, 0],
        warped,
    ]
    rows = torch.stack(columns, dim=1)[:samples].flatten(0, 1)
    return make_grid(to_unit(rows), nrow=len(columns))


@torch.no_grad()
def swap_grid(generator: MotionGenerator, batch: Batch) -> Float[Tensor, "3 H W"]:
    """One source; row i takes the pose of frame i (left column), column j the expression of frame j (top row)."""
    source, pose_frames, expression_frames = batch.source[:1], batch.driving[0], batch.expression_view[0]
    source_pose = generator.pose_encoder(source)
    poses, (_, codes) = generator.pose_encoder(pose_frames), generator.read_motion(expression_frames)
    n, m = len(poses), len(codes)
    driving_pose = poses.repeat_interleave(m, dim=0)[None]
    expression = codes.repeat(n, 1)[None]
    fake = generator(source, source_pose, driving_pose, expression)[0].unflatten(0, (n, m))
    return crossed(*map(to_unit, (source[0], pose_frames, expression_frames, fake)))


def crossed(
    corner: Float[Tensor, "3 H W"],
    left: Float[Tensor, "n 3 H W"],
    top: Float[Tensor, "m 3 H W"],
    body: Float[Tensor, "n m 3 H W"],
) -> Float[Tensor, "3 H2 W2"]:
    """A table of pictures in [0, 1]: a row for each of `left`, a column for each of `top`."""
    header = torch.cat([corner[None], top])[None]
    rows = torch.cat([header, torch.cat([left[:, None], body], dim=1)])
    return make_grid(rows.flatten(0, 1), nrow=len(top) + 1)


def feature_picture(volume: Float[Tensor, "B C D H W"], size: int) -> Float[Tensor, "B 3 H W"]:
    """A feature volume as colours: its mean over depth on the three principal directions of its channels, [-1, 1]."""
    flat = volume.float().mean(dim=2)
    pixels = flat.movedim(1, -1).flatten(0, 2)
    centred = pixels - pixels.mean(dim=0)
    with full_precision(volume):  # on a GPU eigh knows no bf16
        _, directions = torch.linalg.eigh(centred.T @ centred)
        colours = (centred @ directions[:, -3:]).unflatten(0, (flat.shape[0], *flat.shape[2:])).movedim(-1, 1)
    spread = colours.flatten(2).std(dim=-1).amax(dim=0)[:, None, None].clamp_min(1e-6)
    return torch.nn.functional.interpolate((colours / (2 * spread)).clamp(-1, 1), size=(size, size))
