"""Which heads, poses and expressions belong to which experiment: disjoint identities, factorial grids, yaw strata."""

import numpy as np

from dex.data.synthetic.blendshapes import BLENDSHAPES, INDEX
from dex.data.synthetic.motion import FRAMINGS, FramingName, pose_matrix
from dex.data.synthetic.surface import Array

# Identity seeds: training below, validation and test above; no seed is in two of them.
SPLITS = {"train": (0, 2**30), "val": (2**30, 2**30 + 2**29), "test": (2**30 + 2**29, 2**31)}
YAW_STRATA = ((0.0, 15.0), (15.0, 30.0), (30.0, 60.0))  # degrees of |yaw|


def identity_seed(split: str, number: int) -> int:
    """Seed for `make_head` of identity `number` of a split ('train', 'val', 'test'); splits never share one."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: need one of {', '.join(SPLITS)}.")
    low, high = SPLITS[split]
    if not 0 <= number < high - low:
        raise ValueError(f"identity {number} of {split}: need 0 to {high - low - 1}.")
    return low + number


def factorial(poses: Array, expressions: Array) -> tuple[Array, Array]:
    """Every pose (A, 3, 4) with every expression (B, E): (A·B, 3, 4) and (A·B, E), expression running fastest."""
    return np.repeat(poses, len(expressions), 0), np.tile(expressions, (len(poses), 1))


def yaw_stratum(rng: np.random.Generator, n: int, stratum: tuple[float, float], framing: FramingName = "wide") -> Array:
    """n poses (n, 3, 4) with |yaw| uniform in a stratum (degrees), either side, pitch and roll within ±10°."""
    low, high = stratum
    chosen = FRAMINGS[framing]
    yaw = np.radians(rng.uniform(low, high, n)) * rng.choice((-1, 1), n)
    pitch, roll = np.radians(rng.uniform(-10, 10, (2, n)))
    return pose_matrix(yaw, pitch, roll, np.tile(chosen.centre, (n, 1)), np.full(n, chosen.middle_scale))


def single(name: str, value: float = 1.0) -> Array:
    """Expression (E,) with one coefficient set. Raises ValueError for an unknown name."""
    if name not in INDEX:
        raise ValueError(f"blendshape {name!r} is unknown: need one of {', '.join(BLENDSHAPES)}.")
    out = np.zeros(len(BLENDSHAPES), np.float32)
    out[INDEX[name]] = value
    return out
