"""Poses that tests of several packages begin with."""

import torch
from jaxtyping import Float
from torch import Tensor


def identity_pose(*batch: int) -> Float[Tensor, "*b 3 4"]:
    """R = I, t = 0, s = 1, repeated over `batch`."""
    return torch.eye(3, 4).expand(*batch, 3, 4)
