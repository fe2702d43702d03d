"""Draw synthetic heads: expression first, then the pose x_img = sR x_can + t, orthographic (`dex.pose`)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dex.data.synthetic import raster
from dex.data.synthetic.blendshapes import BLENDSHAPES, GAZE_DEGREES, INDEX
from dex.data.synthetic.head import LID_GAP, Head
from dex.data.synthetic.surface import Array
from dex.data.synthetic.template import Index, template
from dex.data.synthetic.texture import label_map

SUPERSAMPLE = 2


@dataclass(frozen=True)
class Rendered:
    """Frames of one head."""

    image: NDArray[np.uint8]  # (N, size, size, 3) RGB
    mask: NDArray[np.uint8]  # (N, size, size): 0 background, 1 head other, 2 face skin, 3 eyes, lids, brows, 4 mouth


def render(head: Head, expression: Array, pose: Array, size: int) -> Rendered:
    """Draw N frames of a head at size × size pixels.

    Args:
        head: identity from `make_head`.
        expression: (N, E) coefficients in [0, 1], in the order of BLENDSHAPES.
        pose: (N, 3, 4) canonical → normalised image coordinates, [sR | t].
        size: side of the square picture in pixels.

    Raises:
        ValueError: wrong shape, a coefficient outside [0, 1], a value that is not finite, size < 1.
    """
    expression, pose = check(expression, pose)
    if size < 1:
        raise ValueError(f"size {size}: need at least 1 pixel.")
    n = len(pose)
    image, mask = np.empty((n, size, size, 3), np.uint8), np.empty((n, size, size), np.uint8)
    lids, starts, count = eye_tables()
    raster.draw_frames(
        head.vertices, head.delta_start, head.delta_index, head.delta_value, lids, np.float32(LID_GAP), starts, count,
        head.eyes, head.follow, head.faces, head.label, head.material, head.two_sided, turned_in(), head.albedo,
        head.gloss, head.light, head.uv, head.textures, label_map(), head.background, expression,
        gaze_angles(expression), pose, SUPERSAMPLE, image, mask,
    )  # fmt: skip
    return Rendered(image, mask)


def check(expression: Array, pose: Array) -> tuple[Array, Array]:
    """Contiguous float32 copies of render's arguments where they are right; ValueError where not."""
    expression = np.ascontiguousarray(expression, np.float32)
    pose = np.ascontiguousarray(pose, np.float32)
    if pose.ndim != 3 or pose.shape[1:] != (3, 4):
        raise ValueError(f"pose has shape {pose.shape}: need (N, 3, 4).")
    if expression.shape != (len(pose), len(BLENDSHAPES)):
        raise ValueError(f"expression has shape {expression.shape}: need {(len(pose), len(BLENDSHAPES))}.")
    if not (np.isfinite(pose).all() and np.isfinite(expression).all()):
        raise ValueError("pose and expression must be finite: found NaN or Inf.")
    if expression.size and (expression.min() < 0 or expression.max() > 1):
        raise ValueError(f"expression spans [{expression.min():g}, {expression.max():g}]: need [0, 1]. Clip it first.")
    return expression, pose


@lru_cache(maxsize=1)
def eye_tables() -> tuple[Index, Index, int]:
    """Lid vertices to keep out of the eyeballs (2, n), first vertex of each eyeball (2,), vertices of one."""
    t = template()
    starts = np.array([t.parts["eye_left"].start, t.parts["eye_right"].start], np.int32)
    return np.ascontiguousarray(t.lids.reshape(2, -1)), starts, len(t.parts["eye_left"].shape)


@lru_cache(maxsize=1)
def turned_in() -> NDArray[np.bool_]:
    """Vertices of two-sided parts, lit on whichever side faces the camera, (V,)."""
    t = template()
    flags = np.zeros(t.size, np.bool_)
    flags[t.faces[t.two_sided].ravel()] = True
    flags[: len(t.directions)] = False
    return flags


def gaze_angles(expression: Array) -> Array:
    """Eyeball rotations (N, 2, 2) in radians: eye (subject's left first), (towards +x, down)."""
    side, height = np.radians(GAZE_DEGREES)
    out = np.empty((len(expression), 2, 2), np.float32)
    for k, (name, outwards) in enumerate((("Left", 1.0), ("Right", -1.0))):
        out_, in_, up, down = (expression[:, INDEX[f"eyeLook{d}{name}"]] for d in ("Out", "In", "Up", "Down"))
        out[:, k, 0] = outwards * side * (out_ - in_)
        out[:, k, 1] = height * (down - up)
    return out


def deformed(head: Head, expression: Array) -> Array:
    """Canonical vertices (N, V, 3) of a head under expressions (N, E)."""
    lids, starts, count = eye_tables()
    expression = np.ascontiguousarray(expression, np.float32)
    gaze, out = gaze_angles(expression), np.empty((len(expression), *head.vertices.shape), np.float32)
    for k in range(len(expression)):
        raster.deform(head.vertices, head.delta_start, head.delta_index, head.delta_value, expression[k], out[k])
        raster.keep_lids_out(out[k], lids, head.eyes, np.float32(LID_GAP))
        raster.turn_eyes(out[k], starts, count, head.eyes, gaze[k])
    return out
