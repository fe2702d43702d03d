"""Pose and expression of a picture of a synthetic head: the estimator behind every figure of disentanglement.

The pose is that of the drawing that fits best (`dex.reading.fit`). So is the expression where that drawing explains the
picture; the less it does, the more the expression is what a network says that was taught on degraded renders
(`dex.reading.regressor`). A fit believes every pixel and takes a wrong lip colour, or somebody else's jaw, for an
expression; the network has seen such errors and knows what else they may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dex.data.synthetic.head import Head
from dex.reading import fit
from dex.reading.fit import Fit
from dex.reading.regressor import regress

# The residual at which both count alike. Renders of the truth have about 0.005, outputs of small models 0.06.
EXPLAINED = 0.02


def read(
    heads: Sequence[Head],
    pictures: Float[Tensor, "N 3 H W"],
    starts: Float[Tensor, "N K 3 4"],
    threads: int = 1,
) -> Fit:
    """Reads N square pictures in [0, 1], each of a known head; arguments and errors are those of `fit.read`."""
    found = fit.read(heads, pictures, starts, threads)
    neutral = fit.neutral(heads, found.pose, fit.drawn_at(pictures))
    seen = regress(fit.small(pictures.detach().float().cpu()), neutral, found.pose)
    return dataclasses.replace(found, controls=mixed(found, seen, EXPLAINED))


def mixed(found: Fit, seen: Float[Tensor, "N C"], explained: float) -> Float[Tensor, "N C"]:
    """Controls of both: the fit counts wholly where its drawing explains all, by half at a residual of `explained`."""
    share = 1 / (1 + (found.residual / explained) ** 2)
    return share[:, None] * found.controls + (1 - share)[:, None] * seen
