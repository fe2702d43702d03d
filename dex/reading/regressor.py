"""Expression of a picture of a synthetic head by a small network, for pictures that no drawing explains.

It sees the face upright, beside the same head drawn without any expression in the pose that `dex.reading.fit` found.
`python -m dex.reading.teach` taught it on renders that were degraded as models degrade them (`dex.reading.degrade`):
by least squares, so that what a picture does not tell is answered by the mean. It never saw a model's output, nor an
identity that models are measured on.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from dex.data.synthetic.controls import LOWEST, NAMES
from dex.motion.layers import ResBlock2d
from dex.reading.fit import parameters, prior

WEIGHTS = Path(__file__).with_name("regressor.safetensors")
SHA256 = "6e22668fbf8704cef3f49b0f67a4c9cb2c3e6b1c7021187ba187cfcd90f20fce"
SIDE = 48  # pixels of the upright face
_CENTRE, _HALF = (0.0, 0.15, -0.55), 0.8  # of that face, in the head's own frame: brows to chin, ear to ear
_WIDTHS = (16, 48, 96, 128)
_HIDDEN = 192


class Regressor(nn.Module):
    """Upright face and upright neutral drawing, in [0, 1], and yaw and pitch → controls."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = _WIDTHS
        self.body = nn.Sequential(
            nn.Conv2d(6, first, 5, stride=2, padding=2),
            ResBlock2d(first, first),
            ResBlock2d(first, second, 2),
            ResBlock2d(second, second),
            ResBlock2d(second, third, 2),
            ResBlock2d(third, third),
            ResBlock2d(third, last, 2),
        )
        self.hidden = nn.Linear(last * (SIDE // 16) ** 2 + 2, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, len(NAMES))

    def forward(
        self, face: Float[Tensor, "N 3 S S"], neutral: Float[Tensor, "N 3 S S"], turned: Float[Tensor, "N 2"]
    ) -> Float[Tensor, "N C"]:
        """In deviations from the mean expression, both of `prior`."""
        seen = F.silu(self.body(torch.cat([face, neutral], dim=1) * 2 - 1)).flatten(1)
        return self.out(F.silu(self.hidden(torch.cat([seen, turned], dim=1))))


def upright(pictures: Float[Tensor, "N 3 H W"], pose: Float[Tensor, "N 3 4"]) -> Float[Tensor, "N 3 S S"]:
    """The face of a head in this pose, always in the same place, as large, and not rolled."""
    centre = (pose @ pose.new_tensor([*_CENTRE, 1.0]))[:, :2]
    across = F.normalize(pose[:, :2, 0], dim=1)  # where in the picture the head's own x points
    across = across * (_HALF * pose[:, :, 0].norm(dim=1, keepdim=True))
    down = torch.stack([-across[:, 1], across[:, 0]], dim=1)
    grid = F.affine_grid(torch.stack([across, down, centre], dim=2), [len(pose), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def answer(
    network: Regressor,
    pictures: Float[Tensor, "N 3 H W"],
    neutral: Float[Tensor, "N 3 H W"],
    pose: Float[Tensor, "N 3 4"],
) -> Float[Tensor, "N C"]:
    """Controls of whole pictures, and of the same heads drawn without expression, of this pose."""
    turned = torch.from_numpy(parameters(pose)[:, :2]).float()
    mean, spread = (torch.from_numpy(number).float() for number in prior())
    return mean + spread * network(upright(pictures, pose), upright(neutral, pose), turned)


def regress(
    pictures: Float[Tensor, "N 3 H W"], neutral: Float[Tensor, "N 3 H W"], pose: Float[Tensor, "N 3 4"]
) -> Float[Tensor, "N C"]:
    """`answer` of the network on disk, within the controls' ranges."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        found = answer(taught(), pictures.float(), neutral.float(), pose.float())
    return torch.maximum(found, torch.from_numpy(LOWEST)).clamp(max=1)


@lru_cache(maxsize=1)
def taught() -> Regressor:
    """The network on disk. Raises `ValueError` where its file is not the one that the estimator's figures belong to."""
    content = WEIGHTS.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{WEIGHTS}: sha256 is {found}, need {SHA256}: put back the file that came with dex")
    with torch.device("meta"):  # a training that is being watched keeps its random numbers
        network = Regressor()
    network.load_state_dict({name: weight.float() for name, weight in load(content).items()}, assign=True)
    return network.eval().requires_grad_(False)
