"""Poses and expressions to draw: independent samples, and smooth tracks of a talking head. Pose never depends on expression."""

import numpy as np

from dex.data.synthetic.blendshapes import BLENDSHAPES, INDEX
from dex.data.synthetic.surface import Array

POSE_DEGREES = (45.0, 25.0, 20.0)  # largest yaw, pitch, roll
SCALE = (0.60, 0.82)
SHIFT = 0.16
CENTRE = (0.0, 0.08)  # middle of the head's frame, so that the hair stays inside


def pose_matrix(yaw: Array, pitch: Array, roll: Array, shift: Array, scale: Array) -> Array:
    """Poses (n, 3, 4) = [s·R_z(roll) R_y(yaw) R_x(pitch) | t], angles in radians, shift (n, 2)."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, roll))
    rows = (
        (cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp),
        (sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp),
        (-sy, cy * sp, cy * cp),
    )
    out = np.zeros((len(yaw), 3, 4), np.float32)
    out[:, :, :3] = np.stack([np.stack(r, -1) for r in rows], 1) * scale[:, None, None]
    out[:, :2, 3] = shift
    return out


def sample_pose(rng: np.random.Generator, n: int) -> Array:
    """n independent poses (n, 3, 4): yaw ±45°, pitch ±25°, roll ±20°, uniform; heads fill the frame as face crops do."""
    yaw, pitch, roll = (np.radians(rng.uniform(-limit, limit, n)) for limit in POSE_DEGREES)
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2)) + CENTRE
    return pose_matrix(yaw, pitch, roll, shift, np.exp(rng.uniform(*np.log(SCALE), n)))


def sample_expression(rng: np.random.Generator, n: int) -> Array:
    """n independent sparse expressions (n, E) in [0, 1]: about half the mouths open, one in five blinks, gaze roams."""
    out = np.zeros((n, len(BLENDSHAPES)), np.float32)

    def sometimes(names: str, share: float, low: float = 0.15, high: float = 1.0) -> None:
        on, value = rng.random(n) < share, rng.uniform(low, high, n)
        for name in names.split():
            out[:, INDEX[name]] = np.where(on, np.clip(value + rng.normal(0, 0.03, n), 0, 1), out[:, INDEX[name]])

    sometimes("jawOpen", 0.55, 0.05)
    sometimes("jawLeft", 0.10)
    sometimes("jawRight", 0.10)
    sometimes("mouthSmileLeft mouthSmileRight", 0.30)
    sometimes("mouthFrownLeft mouthFrownRight", 0.15)
    for one in ("mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight"):
        sometimes(one, 0.05)
    sometimes("mouthFunnel", 0.18)
    sometimes("mouthPucker", 0.15)
    sometimes("cheekPuff", 0.10)
    sometimes("browInnerUp", 0.25)
    sometimes("browDownLeft browDownRight", 0.22)
    sometimes("browOuterUpLeft browOuterUpRight", 0.20)
    for one in ("browDownLeft", "browDownRight", "browOuterUpLeft", "browOuterUpRight"):
        sometimes(one, 0.05)
    sometimes("eyeBlinkLeft eyeBlinkRight", 0.28, 0.3)
    sometimes("eyeBlinkLeft", 0.06, 0.5)
    sometimes("eyeBlinkRight", 0.06, 0.5)
    set_gaze(out, rng.uniform(-1, 1, n) * (rng.random(n) < 0.75), rng.uniform(-1, 1, n) * (rng.random(n) < 0.6))
    return out


def set_gaze(expression: Array, right: Array, down: Array) -> None:
    """Write a gaze of both eyes (−1…1: towards +x, down) into the eyeLook coefficients, in place."""
    for name, outwards in (("Left", 1), ("Right", -1)):
        expression[:, INDEX[f"eyeLookOut{name}"]] = np.maximum(outwards * right, 0)
        expression[:, INDEX[f"eyeLookIn{name}"]] = np.maximum(-outwards * right, 0)
        expression[:, INDEX[f"eyeLookDown{name}"]] = np.maximum(down, 0)
        expression[:, INDEX[f"eyeLookUp{name}"]] = np.maximum(-down, 0)
