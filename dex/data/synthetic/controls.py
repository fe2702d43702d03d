"""Expressions of a controlled experiment: ten controls that both sides of a face follow alike.

What an estimator must read off a picture should be there to be seen. The far half of a turned face is not, nor is the
gaze behind a closed lid, nor at small sizes whether an eye looks down or closes a little. So both sides move together,
opposite blendshapes are the two ends of one control, eyes look sideways only, and straight ahead where they are shut.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dex.data.synthetic.blendshapes import BLENDSHAPES, INDEX
from dex.data.synthetic.motion import sample_expression
from dex.data.synthetic.surface import Array

# Control → blendshapes of its positive end, and of its negative end where it has one.
CONTROLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "jaw_open": (("jawOpen",), ()),
    "jaw_side": (("jawLeft",), ("jawRight",)),
    "smile_frown": (("mouthSmileLeft", "mouthSmileRight"), ("mouthFrownLeft", "mouthFrownRight")),
    "funnel": (("mouthFunnel",), ()),
    "pucker": (("mouthPucker",), ()),
    "cheek_puff": (("cheekPuff",), ()),
    "blink": (("eyeBlinkLeft", "eyeBlinkRight"), ()),
    "brow_inner_up": (("browInnerUp",), ()),
    "brow_up_down": (("browOuterUpLeft", "browOuterUpRight"), ("browDownLeft", "browDownRight")),
    "gaze_side": (("eyeLookOutLeft", "eyeLookInRight"), ("eyeLookInLeft", "eyeLookOutRight")),
}
NAMES = tuple(CONTROLS)
ExpressionsName = Literal["all", "symmetric"]
BLINK, GAZE = NAMES.index("blink"), NAMES.index("gaze_side")
LOWEST = np.array([-1.0 if negative else 0.0 for _, negative in CONTROLS.values()], np.float32)  # the highest is 1
SHUT = 0.4  # lids closed further than this hide where the eye looks


def _ends() -> tuple[Array, Array]:
    """(C, E) each: 1 where a blendshape belongs to a control's positive, or negative, end."""
    ends = np.zeros((2, len(NAMES), len(BLENDSHAPES)), np.float32)
    for row, sides in enumerate(CONTROLS.values()):
        for end, names in zip(ends, sides, strict=True):
            end[row, [INDEX[name] for name in names]] = 1
    return ends[0], ends[1]


_POSITIVE, _NEGATIVE = _ends()


def to_blendshapes(controls: Array) -> Array:
    """Coefficients (N, E) in [0, 1] of controls (N, C); what lies outside a control's range is cut."""
    return np.clip(controls, 0, 1) @ _POSITIVE + np.clip(-controls, 0, 1) @ _NEGATIVE


def to_controls(expression: Array) -> Array:
    """Controls (N, C) of coefficients (N, E): the mean of both sides; what no control moves is dropped, and the gaze of
    shut eyes."""
    signed = expression @ (_POSITIVE - _NEGATIVE).T / _POSITIVE.sum(1)
    signed[:, GAZE] *= signed[:, BLINK] <= SHUT
    return np.clip(signed, LOWEST, 1).astype(np.float32)


def sample_controls(rng: np.random.Generator, n: int) -> Array:
    """n independent settings (n, C), distributed as the expressions that training sees."""
    return to_controls(sample_expression(rng, n))


def sample_some(rng: np.random.Generator, n: int, which: ExpressionsName) -> Array:
    """n independent expressions (n, E): any, or such as the controls make."""
    return sample_expression(rng, n) if which == "all" else to_blendshapes(sample_controls(rng, n))
