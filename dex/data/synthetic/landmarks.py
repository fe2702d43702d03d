"""Named vertices of a synthetic head, projected: the 68 points of the iBUG scheme, the forehead's outline, the pupils.

iBUG's order runs over the picture from left to right, so 'right' points (the subject's right) come first.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from dex.data.synthetic.head import Head
from dex.data.synthetic.render import check, deformed
from dex.data.synthetic.surface import Array
from dex.data.synthetic.template import Index, template

_COUNTS = (
    ("jaw", 17), ("right_brow", 5), ("left_brow", 5), ("nose_bridge", 4), ("nose_base", 5), ("right_eye", 6),
    ("left_eye", 6), ("lips_outer", 12), ("lips_inner", 8), ("forehead", 9), ("right_pupil", 1), ("left_pupil", 1),
)  # fmt: skip
LANDMARK_NAMES: tuple[str, ...] = tuple(f"{name}_{i}" for name, count in _COUNTS for i in range(count))


def _indices(name: str) -> tuple[int, ...]:
    return tuple(i for i, n in enumerate(LANDMARK_NAMES) if n.rpartition("_")[0] == name)


# Closed outlines in drawing order, indices into LANDMARK_NAMES.
LANDMARK_GROUPS: dict[str, Any] = {
    "face": _indices("jaw") + _indices("forehead"),
    "eyes": (_indices("right_eye"), _indices("left_eye")),
    "mouth": _indices("lips_outer"),
}


@lru_cache(maxsize=1)
def landmark_vertices() -> Index:
    """Vertex of each landmark, (L,)."""
    t = template()
    skin = t.anchors
    left, right = t.lids[0, 0], t.lids[1, 0]
    outer, inner = t.lips[2], t.lips[0]
    rings = np.concatenate(
        [
            right[[10, 13, 17, 0, 3, 7]],
            left[[10, 13, 17, 0, 3, 7]],
            outer[[14, 16, 19, 21, 23, 26, 0, 2, 5, 7, 9, 12]],
            inner[[14, 18, 21, 24, 0, 4, 7, 10]],
        ]
    )
    pupils = [t.parts["eye_right"].start, t.parts["eye_left"].start]
    return np.concatenate([skin[:36], rings, skin[36:], pupils]).astype(np.int32)


def landmarks(head: Head, expression: Array, pose: Array) -> Array:
    """Landmarks (N, L, 2) in normalised image coordinates of a head under expressions (N, E) and poses (N, 3, 4).

    Hidden points are given like visible ones. Raises ValueError as `render` does.
    """
    expression, pose = check(expression, pose)
    points = deformed(head, expression)[:, landmark_vertices()]
    return np.einsum("nrc,nlc->nlr", pose[:, :2, :3], points) + pose[:, None, :2, 3]
