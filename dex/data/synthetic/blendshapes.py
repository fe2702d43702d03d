"""ARKit-named blendshapes with compact support. 'Left' is the subject's left: x > 0, the right side of the picture.

A blendshape is a displacement of the neutral vertices, added before the head turns; gaze turns the eyeballs instead
(and takes the upper lid along). Mouth shapes leave every vertex of the eye region where it is, and the reverse.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dex.data.synthetic.surface import MOUTH_Y, Array, Bump, smoothstep, weight
from dex.data.synthetic.template import LID_POINTS, LIP_POINTS, Index, Template, template

BLENDSHAPES: tuple[str, ...] = (
    "jawOpen",
    "jawLeft",
    "jawRight",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthPucker",
    "cheekPuff",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
    "eyeLookInLeft",
    "eyeLookOutLeft",
    "eyeLookUpLeft",
    "eyeLookDownLeft",
    "eyeLookInRight",
    "eyeLookOutRight",
    "eyeLookUpRight",
    "eyeLookDownRight",
)
INDEX = {name: i for i, name in enumerate(BLENDSHAPES)}
GAZE_DEGREES = (30.0, 24.0)  # eyeball rotation at coefficient 1: sideways, up and down
JAW = {"jawOpen": (0.0, 0.36, 0.07), "jawLeft": (0.13, 0.01, 0.0), "jawRight": (-0.13, 0.01, 0.0)}
LID_SHAPES = {"eyeBlink": 1.0, "eyeLookDown": 0.36, "eyeLookUp": -0.20}  # share of a blink
LID_FOLLOW = (1.0, 0.72, 0.34, 0.0)  # share of a blink, ring by ring from the margin


def mouth_polar(layout: Array) -> tuple[Array, Array]:
    """Radius (1 on the lips' outline) and the sine of the angle (+1 below, -1 above) about the mouth."""
    x, y = layout[:, 0] / 0.29, layout[:, 1] - MOUTH_Y
    y = y / np.where(y < 0, 0.088, 0.105)
    radius = np.hypot(x, y)
    return radius, y / np.maximum(radius, 1e-6)


def ring_sines(t: Template, radius: Array, sine: Array) -> Array:
    """Angles of the innermost lip rings by their order, since they are flat in the layout."""
    out = sine.copy()
    for k in (0, 1):
        out[t.lips[k]] = np.sin(2 * np.pi * np.arange(LIP_POINTS) / LIP_POINTS)
    return out


def jaw_weight(t: Template) -> Array:
    """How far each skin vertex follows the jaw, in [0,1]."""
    layout, (radius, sine) = t.layout, mouth_polar(t.layout)
    sine = ring_sines(t, radius, sine)
    near = np.where(sine > 0, 0.34 + 0.66 * np.sqrt(np.clip(1.25 * sine, 0, 1)), 0.34 * np.clip(1 + 2.2 * sine, 0, 1))
    x, y = np.abs(layout[:, 0]), layout[:, 1]
    far = smoothstep(MOUTH_Y - 0.20, MOUTH_Y + 0.32, y) * (1 - smoothstep(0.34, 0.72, x))
    mix = smoothstep(1.1, 2.6, radius)
    return (near * (1 - mix) + far * mix) * t.front * smoothstep(0.10, 0.24, y)


def lip_shapes(t: Template) -> dict[str, Array]:
    """mouthFunnel and mouthPucker: lips forward and together; the funnel also opens them; (S, 3) each."""
    radius, sine = mouth_polar(t.layout)
    sine = ring_sines(t, radius, sine)
    near = (1 - smoothstep(0.9, 2.3, radius)) * t.front
    x = t.layout[:, 0]
    open_up, open_down = np.clip(-sine, 0, 1) ** 0.7, np.clip(sine, 0, 1) ** 0.7
    narrow = np.stack([-0.50 * x, 0 * x, -0.09 - 0.05 * (1 - smoothstep(0, 0.25, np.abs(x)))], 1) * near[:, None]
    funnel = narrow * (0.75, 1, 1)
    funnel[:, 1] += near * (-0.065 * open_up + 0.105 * open_down)
    pucker = narrow * (1.15, 1, 1.1)
    pucker[:, 1] += near * 0.02 * (open_up - open_down) * smoothstep(0.3, 0.8, radius)
    return {"mouthFunnel": funnel, "mouthPucker": pucker}


def patch(t: Template, bump: Bump, shift: tuple[float, float, float], side: float = 1.0) -> Array:
    """Displacement (S, 3) of one bell-shaped patch on one side of the face."""
    return weight(t.layout, bump, side)[:, None] * t.front[:, None] * (np.array(shift, np.float32) * (side, 1, 1))


def side_shapes(t: Template, suffix: str, side: float) -> dict[str, Array]:
    """Smile, frown and brows of one side; (S, 3) each."""
    corner, brow = Bump(0.27, MOUTH_Y, 0.085, 0.11, 0.10), Bump(0.27, -0.52, 0.10, 0.07, 0.065)
    cheek, outer = Bump(0.44, 0.14, 0.08, 0.065, 0.09), Bump(0.46, -0.52, 0.09, 0.08, 0.065)
    smile = patch(t, corner, (0.105, -0.115, 0.05), side) + patch(t, cheek, (0.01, -0.02, -0.045), side)
    return {
        f"mouthSmile{suffix}": smile,
        f"mouthFrown{suffix}": patch(t, corner, (0.01, 0.115, 0.02), side),
        f"browDown{suffix}": patch(t, brow, (-0.035, 0.085, -0.015), side),
        f"browOuterUp{suffix}": patch(t, outer, (0.0, -0.115, 0.0), side),
    }


@lru_cache(maxsize=1)
def skin_deltas() -> Array:
    """All displacements of the skin that do not depend on identity, (E, S, 3)."""
    t = template()
    shapes = {name: jaw_weight(t)[:, None] * np.array(shift, np.float32) for name, shift in JAW.items()}
    shapes |= lip_shapes(t)
    puff = Bump(0.42, 0.42, 0.075, 0.10, 0.10)
    shapes["cheekPuff"] = patch(t, puff, (0.09, 0.0, -0.11)) + patch(t, puff, (0.09, 0.0, -0.11), -1.0)
    inner = Bump(0.15, -0.52, 0.075, 0.09, 0.065)
    shapes["browInnerUp"] = patch(t, inner, (0.01, -0.115, -0.01)) + patch(t, inner, (0.01, -0.115, -0.01), -1.0)
    shapes |= side_shapes(t, "Left", 1.0) | side_shapes(t, "Right", -1.0)
    out = np.zeros((len(BLENDSHAPES), len(t.directions), 3), np.float32)
    for name, delta in shapes.items():
        out[INDEX[name]] = delta
    return out


def lid_drop(lids: Array) -> Array:
    """Displacement that closes neutral lid rings (2, rings, LID_POINTS, 3), of the same shape."""
    out = np.zeros_like(lids)
    below = np.arange(1, LID_POINTS // 2)
    above = LID_POINTS - below
    for eye in range(2):
        drop = lids[eye, 0, below] - lids[eye, 0, above]
        for ring, share in enumerate(LID_FOLLOW):
            out[eye, ring, above] = share * (drop * 0.97 + (0, 0.012, 0))
            out[eye, ring, below] = share * -0.06 * drop
    return out


@dataclass(frozen=True)
class Sparse:
    """Displacements of all blendshapes, those of shape e at rows start[e] … start[e+1] - 1; N rows in all."""

    start: Index  # (E+1,)
    index: Index  # (N,) vertex
    value: Array  # (N, 3)


@lru_cache(maxsize=1)
def shared() -> Sparse:
    """What all identities have in common: which vertices move, and how far except for the lids."""
    t, skin = template(), skin_deltas()
    dense = np.zeros((len(BLENDSHAPES), t.size, 3), np.float32)
    dense[:, : skin.shape[1]] = skin
    hanging = np.flatnonzero(t.parent != np.arange(t.size))
    dense[:, hanging] = dense[:, t.parent[hanging]]
    dense[:, t.parts["throat"].slice] *= 0.8
    for name, shift in JAW.items():
        for part, share in (("teeth_lower", 0.90), ("tongue", 0.74)):
            dense[INDEX[name], t.parts[part].slice] = share * np.array(shift, np.float32)
    moved = [np.flatnonzero(np.abs(d).max(1) > 1e-6).astype(np.int32) for d in dense]
    for stem in LID_SHAPES:
        for eye, suffix in enumerate(("Left", "Right")):
            rim = t.parts[f"rim_{suffix.lower()}"].slice
            moved[INDEX[stem + suffix]] = np.r_[t.lids[eye].ravel(), rim].astype(np.int32)
    value = np.concatenate([d[m] for d, m in zip(dense, moved, strict=True)])
    return Sparse(np.cumsum([0, *map(len, moved)]).astype(np.int32), np.concatenate(moved), value)


def head_deltas(lids: Array) -> Sparse:
    """Displacements of one identity, given its neutral lid rings (2, rings, LID_POINTS, 3)."""
    common = shared()
    value, blink = common.value.copy(), lid_drop(lids)
    for stem, share in LID_SHAPES.items():
        for eye, suffix in enumerate(("Left", "Right")):
            e = INDEX[stem + suffix]
            rows = np.concatenate([blink[eye].reshape(-1, 3), blink[eye, 0]])  # the rim goes with the margin
            value[common.start[e] : common.start[e + 1]] = share * rows
    return Sparse(common.start, common.index, value)
