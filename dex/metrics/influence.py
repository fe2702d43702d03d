"""Disentanglement: which of the two controls moves what in the output.

g(s, P, E) is the output for source s, pose from P and expression from E. Four outputs of each tuple are read: at the
pose and expression of a, with the pose alone, with the expression alone taken from b, compared with what a and b
themselves show. Always print gains with leaks: an output that never changes leaks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dex.metrics import MetricError
from dex.pose import geodesic, split_pose

FACTORS = ("p", "e")  # pose, expression
# An estimator counts where it reads renders of the truth at least so well, in every figure (docs/monitor.md).
LEAST_R2, MOST_CROSS_TALK = 0.9, 0.15


@dataclass(frozen=True)
class Reading:
    """What an extractor read from N pictures, or the truth about them."""

    pose: Float[Tensor, "N 3 4"]
    expression: Float[Tensor, "N E"]

    def squared_distance(self, other: Reading) -> Float[Tensor, "2 N"]:
        """d_p², in degrees² of the rotation between them, and d_e², the mean square of the coefficients' difference."""
        angle = geodesic(split_pose(self.pose.double())[0], split_pose(other.pose.double())[0]) * (180 / math.pi)
        return torch.stack([angle.square(), (self.expression.double() - other.expression.double()).square().mean(-1)])


def distances_of(
    at_a: Reading, pose_from_b: Reading, expression_from_b: Reading, a: Reading, b: Reading
) -> Float[Tensor, "6 N"]:
    """Squared distances of each tuple, of three outputs and the two drivers: how far pose moved under the edit of pose,
    of expression; how far expression did; and how far the drivers are apart in pose, in expression. What influence is
    made of, row sums in `influence_of`."""
    moved = [at_a.squared_distance(pose_from_b), at_a.squared_distance(expression_from_b)]
    return torch.cat([torch.stack(moved, dim=1).flatten(0, 1), a.squared_distance(b)])


def influence_of(sums: Float[Tensor, "*b 6"]) -> dict[str, Any]:
    """I_ij² = E d_i²(g | factor j: a → b, g | a) / E d_i²(a, b), i what is measured, j what is edited: `I_pp`, `I_pe`,
    `I_ep`, `I_ee`, numbers or arrays (*b,).

    I_pp and I_ee are gains, 1 where the output moves as far as its drivers; I_pe is pose drift under an expression-only
    edit, I_ep expression drift under a pose-only edit, both 0 where the controls are apart. Raises `MetricError` where
    the drivers do not differ.
    """
    moved, drivers = sums[..., :4].unflatten(-1, (2, 2)), sums[..., 4:]
    if not (drivers > 0).all():
        raise MetricError("influence: the drivers a and b do not differ in pose and in expression, nothing to measure")
    matrix = (moved / drivers[..., None]).sqrt().cpu().numpy()
    cells = {f"I_{i}{j}": matrix[..., x, y] for x, i in enumerate(FACTORS) for y, j in enumerate(FACTORS)}
    return {name: cell if cell.ndim else float(cell) for name, cell in cells.items()}


def leak(influence: Any, cross_talk: float = 0.0) -> Any:
    """√max(0, (I² − φ²) / (1 − φ²)): what of I_ij, i ≠ j, is the model's and not the estimator's own cross-talk φ, the
    same influence on renders of the truth. Of a number or an array. Raises `MetricError` for φ outside [0, 1)."""
    if not 0 <= cross_talk < 1:
        raise MetricError(
            f"cross-talk is {cross_talk:g}, need 0 ≤ φ < 1: this estimator cannot tell pose from expression"
        )
    return np.sqrt(np.maximum(0.0, (np.asarray(influence) ** 2 - cross_talk**2) / (1 - cross_talk**2)))


def selectivity(matrix: Mapping[str, Any], cross_talk: Mapping[str, Any] | None = None) -> Any:
    """min over both factors of max(0, min(I_ii, 1) − L_ij): the weaker of the two controls, in [0, 1].

    `matrix` and `cross_talk` are what `influence_of` gives of outputs and of renders of the truth; the matrix may be
    one of arrays.
    """
    own = []
    for i, j in (FACTORS, FACTORS[::-1]):
        leaked = leak(matrix[f"I_{i}{j}"], float((cross_talk or {}).get(f"I_{i}{j}", 0.0)))
        own.append(np.maximum(0.0, np.minimum(np.asarray(matrix[f"I_{i}{i}"]), 1.0) - leaked))
    return np.minimum(*own)


def swap_distances(
    output: Float[Tensor, "N E"], a: Float[Tensor, "N E"], b: Float[Tensor, "N E"]
) -> Float[Tensor, "2 N"]:
    """Of each tuple, with the pose from a and the expression from b: the mean square by which the output's coefficients
    miss b's, and by which a's and b's differ. What the swap error is made of, row sums in `swap_error`."""
    return torch.stack([(x.double() - b.double()).square().mean(dim=1) for x in (output, a)])


def swap_error(sums: Float[Tensor, "*b 2"]) -> Any:
    """X = d(E(g(s, a, b)), E(b)) / d(E(a), E(b)), d the RMS of coefficients over the set: 0 where the expression is
    b's, 1 where it followed the pose's driver. A number, or an array (*b,).

    Raises `MetricError` where the expressions of a and b do not differ.
    """
    missed, apart = sums.unbind(-1)
    if not (apart > 0).all():
        raise MetricError("swap error: the expressions of a and b do not differ, nothing to measure")
    found = (missed / apart).sqrt().cpu().numpy()
    return found if found.ndim else float(found)
