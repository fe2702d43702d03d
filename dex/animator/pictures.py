"""What TensorBoard shows of an animator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import make_grid

from dex.batch import Batch, to_unit


def reenactment_grid(batch: Batch, made: Float[Tensor, "n K 3 H W"]) -> Float[Tensor, "3 H W"]:
    """For each of n sources a row of source | its driving frames and below it a gap | what was drawn; in [0, 1]."""
    rows = []
    for source, driving, outputs in zip(batch.source, batch.driving, made, strict=False):
        rows += [source[None], driving, torch.ones_like(source)[None], outputs]
    return make_grid(to_unit(torch.cat(rows)), nrow=1 + made.shape[1])
