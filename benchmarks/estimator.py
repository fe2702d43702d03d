"""Whether the reader of poses and expressions may judge disentanglement: its own errors on renders of the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dex.data.synthetic.blendshapes import BLENDSHAPES
from dex.metrics.influence import LEAST_R2, MOST_CROSS_TALK
from dex.pose import pose_components

_COMPONENTS = ("yaw", "pitch", "roll", "t_x", "t_y", "log s")


@dataclass(frozen=True)
class Estimator:
    r2: dict[str, float]  # of each pose component, and of "expression" as a whole
    cross_talk: dict[str, float]  # I_pe and I_ep of the truth

    @property
    def words(self) -> str:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in self.r2.items())
        return f"estimator on the truth: R² {figures}; cross-talk " + ", ".join(
            f"{name} {value:.2f}" for name, value in self.cross_talk.items()
        )

    @property
    def why_not(self) -> str | None:
        """None: it counts (R² ≥ 0.9 in everything, cross-talk ≤ 0.15; what is NaN was never judged)."""
        good = all(value >= LEAST_R2 for value in self.r2.values())
        good &= all(value <= MOST_CROSS_TALK for value in self.cross_talk.values())
        return None if good else self.words


def worth(
    read: Sequence[tuple[Float[Tensor, "F 3 4"], Float[Tensor, "F E"]]],
    exact: Sequence[tuple[Shaped[np.ndarray, "F 3 4"], Shaped[np.ndarray, "F B"]]],
    names: Sequence[str],
    matrix: Mapping[str, float] | None,
) -> Estimator | None:
    """`read`: pose and coefficients `names` of each clip; `exact`: the truth, coefficients of BLENDSHAPES; `matrix`:
    the influence matrix of renders of the truth. None where nothing was read."""
    if matrix is None or not read:
        return None
    pose, coefficients = (torch.cat(part).double() for part in zip(*read, strict=True))
    true_pose, true_coefficients = (
        torch.from_numpy(np.concatenate(part)).double() for part in zip(*exact, strict=True)
    )
    shared = [name for name in BLENDSHAPES if name in names]
    found = coefficients[:, [list(names).index(name) for name in shared]]
    wanted = true_coefficients[:, [list(BLENDSHAPES).index(name) for name in shared]]
    r2 = dict(zip(_COMPONENTS, _r2(pose_components(pose), pose_components(true_pose)).tolist(), strict=True))
    r2["expression"] = float(1 - (found - wanted).square().sum() / (wanted - wanted.mean(dim=0)).square().sum())
    return Estimator(r2, {name: matrix[name] for name in ("I_pe", "I_ep")})


def _r2(found: Float[Tensor, "N n"], wanted: Float[Tensor, "N n"]) -> Float[Tensor, "n"]:
    """1 − the squared error over the variance, after the mean difference: an estimator may have another zero."""
    error = (found - wanted) - (found - wanted).mean(dim=0)
    return 1 - error.square().sum(dim=0) / (wanted - wanted.mean(dim=0)).square().sum(dim=0)
