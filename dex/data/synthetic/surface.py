"""The skin of a synthetic head as a function of direction: an egg, plus smooth bumps in frontal coordinates.

Frontal *layout* coordinates (x, y) name a place on the face for every identity alike (mouth at y = 0.43, eyes at
(±0.34, -0.25)); identity modes and blendshapes move what lies there. Units: 1 = 10 cm; x right, y down, face
towards -z.
All kernels end at three widths or less (`bell`), so that a mode reaches no further than it says.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32 where vertices and colours are stored

EYE_X, EYE_Y, MOUTH_Y = 0.335, -0.25, 0.43
CENTRE_Y, CENTRE_Z = -0.25, 0.28
WIDTH, UPPER, LOWER, FRONT, BACK = 0.71, 0.95, 1.20, 0.80, 0.92


@dataclass(frozen=True)
class Bump:
    """One displacement: centre and widths (right/left alike; up, down) in layout units, shift, linear stretch."""

    x: float
    y: float
    sx: float
    up: float
    down: float
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stretch: tuple[float, float] = (0.0, 0.0)
    mirror: bool = True


def _b(x: float, y: float, sx: float, up: float, down: float, *shift: float) -> Bump:
    return Bump(x, y, sx, up, down, (shift[0], shift[1], shift[2]), mirror=x != 0)


def _s(x: float, y: float, sx: float, sy: float, lx: float, ly: float) -> Bump:
    return Bump(x, y, sx, sy, sy, stretch=(lx, ly), mirror=x != 0)


MEAN: tuple[Bump, ...] = (
    _b(0, -0.22, 0.085, 0.12, 0.14, 0, 0, -0.085),  # nose: bridge, ridge, tip, wings
    _b(0, -0.04, 0.09, 0.13, 0.12, 0, 0, -0.10),
    _b(0, 0.075, 0.10, 0.10, 0.06, 0, 0.025, -0.14),
    _b(0.12, 0.10, 0.055, 0.06, 0.045, 0.015, 0.01, -0.10),
    _b(EYE_X, EYE_Y + 0.01, 0.17, 0.12, 0.14, 0, 0, 0.10),  # socket
    _b(0.16, -0.20, 0.06, 0.12, 0.14, 0, 0, 0.05),  # hollow beside the bridge
    _b(0.30, -0.47, 0.20, 0.08, 0.06, 0, 0, -0.05),  # brow ridge
    _b(0.47, 0.05, 0.15, 0.13, 0.14, 0.02, 0, -0.07),  # cheekbone
    _b(0.36, 0.30, 0.15, 0.13, 0.13, 0.0, 0, -0.025),
    _b(0, 0.42, 0.25, 0.20, 0.17, 0, 0, -0.09),  # muzzle
    _b(0, 0.385, 0.17, 0.035, 0.035, 0, 0, -0.045),  # lips
    _b(0, 0.490, 0.14, 0.035, 0.035, 0, 0, -0.05),
    _b(0, 0.27, 0.035, 0.06, 0.06, 0, 0, 0.02),  # philtrum
    _b(0, 0.62, 0.17, 0.05, 0.05, 0, 0, 0.035),  # groove under the lower lip
    _b(0, 0.80, 0.18, 0.12, 0.18, 0, 0, -0.24),  # chin
    _b(0.25, 0.76, 0.17, 0.15, 0.2, 0, 0, -0.12),
    _b(0, -0.78, 0.40, 0.25, 0.22, 0, 0, -0.04),  # forehead
    _b(0.64, -0.45, 0.10, 0.2, 0.2, -0.03, 0, 0),  # temple
    _b(0.60, 0.45, 0.12, 0.2, 0.2, 0.03, 0, 0),  # corner of the jaw
)

# Identity: one entry a mode, in units of one standard deviation.
MODES: dict[str, tuple[Bump, ...]] = {
    "jaw_width": (_b(0.62, 0.50, 0.22, 0.3, 0.3, 0.035, 0, 0),),
    "chin_length": (_b(0, 0.95, 0.40, 0.25, 0.4, 0, 0.05, 0),),
    "chin_forward": (_b(0, 0.80, 0.22, 0.16, 0.2, 0, 0, -0.045),),
    "chin_width": (_s(0, 0.80, 0.25, 0.18, 0.10, 0),),
    "nose_length": (_b(0, 0.09, 0.14, 0.20, 0.09, 0, 0.028, 0),),
    "nose_width": (_b(0.11, 0.08, 0.07, 0.12, 0.07, 0.018, 0, 0),),
    "nose_forward": (_b(0, 0.05, 0.10, 0.18, 0.07, 0, 0, -0.035),),
    "nose_bridge": (_b(0, -0.20, 0.07, 0.12, 0.12, 0, 0, -0.035),),
    "nose_tip_turn": (_b(0, 0.09, 0.08, 0.07, 0.07, 0, -0.022, -0.012),),
    "nose_bulb": (_s(0, 0.08, 0.09, 0.08, 0.18, 0.10),),
    "brow_ridge": (_b(0.28, -0.45, 0.22, 0.09, 0.07, 0, 0, -0.022),),
    "brow_height": (_b(0.33, -0.49, 0.24, 0.11, 0.09, 0, -0.022, 0),),
    "eye_spacing": (_b(EYE_X, EYE_Y, 0.30, 0.22, 0.22, 0.020, 0, 0),),
    "eye_height": (_b(EYE_X, EYE_Y, 0.35, 0.22, 0.22, 0, 0.018, 0),),
    "eye_slant": (_b(0.50, EYE_Y, 0.14, 0.14, 0.14, 0, -0.018, 0),),
    "eye_depth": (_b(EYE_X, EYE_Y, 0.22, 0.16, 0.16, 0, 0, 0.018),),
    "cheekbone": (_b(0.50, 0.05, 0.18, 0.16, 0.16, 0.022, 0, -0.022),),
    "cheek_full": (_b(0.46, 0.40, 0.20, 0.20, 0.20, 0.03, 0, -0.03),),
    "mouth_width": (_s(0, MOUTH_Y, 0.40, 0.14, 0.09, 0),),
    "mouth_height": (_b(0, MOUTH_Y, 0.38, 0.18, 0.18, 0, 0.018, 0),),
    "muzzle": (_b(0, 0.42, 0.25, 0.20, 0.17, 0, 0, -0.022),),
    "lip_upper": (_b(0, 0.36, 0.20, 0.06, 0.05, 0, -0.010, -0.012),),
    "lip_lower": (_b(0, 0.51, 0.18, 0.05, 0.07, 0, 0.012, -0.014),),
    "forehead": (_b(0, -0.75, 0.45, 0.25, 0.25, 0, 0, -0.035),),
    "temple": (_b(0.64, -0.45, 0.14, 0.25, 0.25, 0.025, 0, 0),),
    "eye_size": (_s(EYE_X, EYE_Y, 0.16, 0.13, 0.07, 0.07),),
    "eye_open": (_s(EYE_X, EYE_Y, 0.13, 0.07, 0, 0.14),),
    # whole-head proportions, see `proportions`
    "width": (),
    "cranium": (),
    "depth": (),
    "face_length": (),
}
MODE_NAMES = tuple(MODES)


def bell(r: Array) -> Array:
    """Gaussian-like kernel of compact support: (1 - (r/3)²)⁴ for r < 3, else exactly 0."""
    return np.maximum(1 - (r / 3) ** 2, 0).astype(np.float32) ** 4


def weight(layout: Array, bump: Bump, side: float = 1.0) -> Array:
    """Weight in [0,1] of a bump (mirrored to negative x with side = -1) at layout points (n, 2)."""
    dx, dy = (layout[:, 0] - side * bump.x) / bump.sx, layout[:, 1] - bump.y
    return bell(np.hypot(dx, dy / np.where(dy < 0, bump.up, bump.down)).astype(np.float32))


def displacement(layout: Array, front: Array, bumps: tuple[Bump, ...]) -> Array:
    """Sum of bumps at layout points (n, 2), faded out behind the face by front (n,); (n, 3)."""
    out = np.zeros((len(layout), 3), np.float32)
    for bump in bumps:
        for side in (1.0, -1.0) if bump.mirror else (1.0,):
            w = weight(layout, bump, side) * front
            sx, sy, sz = bump.shift
            lx, ly = bump.stretch
            out[:, 0] += w * (side * sx + lx * (layout[:, 0] - side * bump.x))
            out[:, 1] += w * (sy + ly * (layout[:, 1] - bump.y))
            out[:, 2] += w * sz
    return out


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Cubic step from 0 below `low` to 1 above `high`."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def direction(layout: Array) -> Array:
    """Unit directions (n, 3) of the front half for layout points (n, 2) inside the outline (clipped to it)."""
    x, y = layout[:, 0] / WIDTH, layout[:, 1] - CENTRE_Y
    v = np.clip(y / LOWER, 0, 1)
    y = np.where(y < 0, y / UPPER, (1.6 - np.sqrt(2.56 - 2.4 * v)) / 1.2)
    z = -np.sqrt(np.maximum(1 - x * x - y * y, 0))
    u = np.stack([x, y, z], 1)
    return (u / np.linalg.norm(u, axis=1, keepdims=True)).astype(np.float32)


def layout_of(u: Array) -> tuple[Array, Array]:
    """Layout coordinates (n, 2) and front weight (n,) in [0,1] of unit directions (n, 3)."""
    down = np.maximum(u[:, 1], 0)
    y = CENTRE_Y + np.where(u[:, 1] < 0, UPPER * u[:, 1], LOWER * (1.6 * down - 0.6 * down**2))
    return np.stack([WIDTH * u[:, 0], y], 1).astype(np.float32), smoothstep(-0.12, 0.22, -u[:, 2])


def egg(u: Array) -> Array:
    """The head without features at unit directions (n, 3): cranium, tapering jaw, nape; (n, 3)."""
    layout, _ = layout_of(u)
    x, y = layout[:, 0], layout[:, 1]
    z = CENTRE_Z + np.where(u[:, 2] < 0, FRONT, BACK) * u[:, 2]
    x = x * (1 - 0.36 * smoothstep(0.05, 1.05, y)) * (1 + 0.05 * smoothstep(-0.2, 0.7, u[:, 2]))
    nape = smoothstep(-0.1, 0.85, y) * smoothstep(0.0, 0.5, z)
    return np.stack([x, y, z - 0.55 * nape * np.maximum(z - 0.1, 0)], 1).astype(np.float32)


def mode_basis(u: Array) -> Array:
    """Displacement (M, n, 3) of each bump mode at unit directions (n, 3); zero for the proportions."""
    layout, front = layout_of(u)
    return np.stack([displacement(layout, front, bumps) for bumps in MODES.values()])


def proportions(points: Array, identity: Array) -> Array:
    """Whole-head width, cranium height, depth and face length of an identity (M,), applied to points (n, 3)."""
    width, cranium, depth, length = (float(identity[MODE_NAMES.index(k)]) for k in list(MODES)[-4:])
    out = points.copy()
    out[:, 0] *= 1 + 0.035 * width
    out[:, 1] *= np.where(points[:, 1] < -0.3, 1 + 0.03 * cranium, 1) * (1 + 0.02 * length)
    out[:, 1] += np.where(points[:, 1] < -0.3, 0.3 * 0.03 * cranium, 0)
    out[:, 2] *= 1 + 0.03 * depth
    return out
