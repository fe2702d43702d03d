"""Where the head is to go: a driver's motion laid on the source's pose, and poses by hand.

Poses are P = [sR | t] as in dex.pose. The algebra is in float64 and rounded once, so that a motion file fed back gives
the very poses it was made with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dex.pose import euler_from_matrix, make_pose, matrix_from_euler, split_pose

ANGLES = ("yaw", "pitch", "roll")
COMPONENTS = (*ANGLES, "tx", "ty", "scale")


def relative_motion(
    source: Float[Tensor, "*b 3 4"], first: Float[Tensor, "*b 3 4"], driving: Float[Tensor, "*b 3 4"]
) -> Float[Tensor, "*b 3 4"]:
    """The driver's change since its first frame, laid on the source's pose **(ours)**.

        P = N_s ∘ N_0⁻¹ ∘ D_i ∘ R_0⁻¹ R_s        N = [sI | t] of a pose [sR | t]

    that is, R = R_i R_0⁻¹ R_s, s = s_s s_i / s_0, t = t_s + (t_i − t_0) s_s / s_0: the head turns as the driver's does,
    about its own middle, and moves by the same share of its own size. The first frame gives P_s, and a driver that
    begins in the source's pose gives its own poses. A driver that was itself such a P for another source moves this one
    as the first driver would.
    """
    s, d0, d = (pose.double() for pose in (source, first, driving))
    linear = d[..., :3] @ torch.linalg.solve(d0[..., :3], s[..., :3])
    ratio = (torch.linalg.det(s[..., :3]) / torch.linalg.det(d0[..., :3])) ** (1 / 3)
    translation = s[..., 3] + (d[..., 3] - d0[..., 3]) * ratio[..., None]
    return torch.cat([linear, translation[..., None]], dim=-1).to(source.dtype)


@dataclass(frozen=True)
class PoseEdit:
    """What `--pose` says: for each named component (seconds, value) keyframes. Angles in degrees, tx and ty in
    normalised image coordinates (2 is the crop's side), scale as a factor."""

    keyframes: dict[str, list[tuple[float, float]]]

    @classmethod
    def parse(cls, text: str) -> PoseEdit:
        """ "yaw=20,pitch=-5,scale=1.1", or keyframes "0:yaw=0;1.5:yaw=20,roll=5" with rising seconds.

        Raises ValueError that quotes the part which is wrong.
        """
        keyframes: dict[str, list[tuple[float, float]]] = {}
        moments = [moment.strip() for moment in text.split(";") if moment.strip()]
        timed = [":" in moment for moment in moments]
        if not moments or (len(moments) > 1 and not all(timed)):
            raise ValueError(f"--pose {text!r}: need NAME=VALUE,… or SECONDS:NAME=VALUE,…;SECONDS:NAME=VALUE,…")
        last = -math.inf
        for moment in moments:
            time, _, values = moment.rpartition(":")
            seconds = _number(time, "seconds") if time else 0.0
            if seconds <= last or seconds < 0:
                raise ValueError(f"--pose {moment!r}: {seconds:g} s, need seconds from 0 on that rise")
            last = seconds
            for name, value in _components(values):
                keyframes.setdefault(name, []).append((seconds, value))
        return cls(keyframes)

    @property
    def seconds(self) -> float:
        """Time of the last keyframe; 0 for a constant."""
        return max(frames[-1][0] for frames in self.keyframes.values())

    def at(self, seconds: float) -> dict[str, float]:
        """The named components: linear between keyframes, held before the first and after the last."""
        return {
            name: float(np.interp(seconds, [time for time, _ in frames], [value for _, value in frames]))
            for name, frames in self.keyframes.items()
        }

    def pose(self, source: Float[Tensor, "3 4"], seconds: float, absolute: bool) -> Float[Tensor, "3 4"]:
        """Relative: the source's head turned by R_z(roll) R_y(yaw) R_x(pitch) about the picture's axes through its own
        middle, moved by (tx, ty), scaled by `scale`. Absolute: the named components have these values, the others
        are the source's."""
        given = self.at(seconds)
        rotation, translation, scale = split_pose(source.double())
        if absolute:
            angles = dict(zip(ANGLES, (a.item() for a in euler_from_matrix(rotation)), strict=True))
            angles |= {name: math.radians(given[name]) for name in ANGLES if name in given}
            x, y = given.get("tx", translation[0].item()), given.get("ty", translation[1].item())
            pose = make_pose(
                _rotation(angles),
                source.new_tensor([x, y, 0]).double(),
                scale.new_tensor(given.get("scale", scale.item())),
            )
            return pose.to(source.dtype)
        turn = _rotation({name: math.radians(given.get(name, 0.0)) for name in ANGLES})
        shift = translation.new_tensor([given.get("tx", 0.0), given.get("ty", 0.0), 0.0])
        return make_pose(turn @ rotation, translation + shift, scale * given.get("scale", 1.0)).to(source.dtype)


def _rotation(radians: dict[str, float]) -> Float[Tensor, "3 3"]:
    return matrix_from_euler(*(torch.tensor(radians[name], dtype=torch.float64) for name in ANGLES))


def _components(text: str) -> list[tuple[str, float]]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in COMPONENTS or name in found:
            why = "is there twice" if name in found else f"need NAME=VALUE with a name of {', '.join(COMPONENTS)}"
            raise ValueError(f"--pose {part.strip()!r}: {why}")
        found[name] = _number(value, name)
        if name == "scale" and found[name] <= 0:
            raise ValueError(f"--pose {part.strip()!r}: scale must be above 0")
    return list(found.items())


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--pose: {name} is {text!r}, need a number")
    return value
