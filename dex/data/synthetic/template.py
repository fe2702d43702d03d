"""The one topology that all synthetic heads share: skin, lids, lips, eyeballs, teeth, ears, hair, shoulders.

Skin vertices are directions on the egg of `surface.py`; other parts are small grids in their own frame that `head.py`
puts in place for each identity. Built once a process (about 50 ms), then cached.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from dex.data.synthetic import surface
from dex.data.synthetic.shapes import (
    EYE_ANGLES,
    EYE_SPOKES,
    Index,
    almond,
    almond_disk,
    body,
    bridge,
    ear,
    ellipsoid,
    eyeball,
    grid_faces,
    hexagons,
    outward,
    spectacle_faces,
    spectacles,
    tooth_row,
)
from dex.data.synthetic.surface import EYE_X, EYE_Y, MOUTH_Y, Array

LID_POINTS, LIP_POINTS = 20, 28
# half width, height above, height below the centre of each ring around the eye (margin first) and around the mouth
LID_RINGS = ((0.185, 0.080, 0.064), (0.205, 0.104, 0.086), (0.232, 0.135, 0.118), (0.275, 0.172, 0.165))
LIP_RINGS = (
    (0.245, 0.028, 0.032),
    (0.265, 0.058, 0.068),
    (0.290, 0.088, 0.105),
    (0.345, 0.14, 0.17),
    (0.42, 0.20, 0.25),
)
HAIR_COLUMNS, HAIR_ROWS, CURTAIN_ROWS = 36, 11, 6

# label of a triangle, as in the mask
OTHER, FACE, EYES, MOUTH = 1, 2, 3, 4
# material of a triangle: PLAIN is drawn in vertex colours; the others multiply them by their texture layer
PLAIN, SKIN, HAIR, CLOTH = -1, 0, 1, 2


@dataclass
class Part:
    """A slice of the vertices that is put in place as one piece, with its rest shape in its own frame."""

    start: int
    shape: Array

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + len(self.shape))


@dataclass
class Template:
    """Topology shared by all heads. V vertices, F triangles, S skin vertices (the first S of V)."""

    directions: Array
    uv: Array
    lids: Index  # (2, rings, LID_POINTS): subject's left (x > 0) first; point 0 is the corner at larger x
    lips: Index  # (rings, LIP_POINTS): point 0 is the corner at x > 0, then along the lower lip
    anchors: Index  # (45,) skin landmarks, see `anchor_points`
    parts: dict[str, Part] = field(default_factory=dict)
    parent: Index = field(default_factory=lambda: np.empty(0, np.int32))
    faces: Index = field(default_factory=lambda: np.empty((0, 3), np.int32))
    label: Index = field(default_factory=lambda: np.empty(0, np.int32))
    material: Index = field(default_factory=lambda: np.empty(0, np.int32))
    two_sided: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    face_part: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, "U16"))
    layout: Array = field(default_factory=lambda: np.empty((0, 2), np.float32))
    front: Array = field(default_factory=lambda: np.empty(0, np.float32))

    @property
    def size(self) -> int:
        return len(self.parent)

    def add(
        self, name: str, shape: Array, faces: Index, label: int, material: int = PLAIN, two_sided: bool = False
    ) -> None:
        """Append a part; faces index into the part."""
        part = Part(self.size, shape.astype(np.float32))
        self.parts[name] = part
        own = np.arange(part.start, part.start + len(shape), dtype=np.int32)
        self.parent = np.concatenate([self.parent, own])
        self.add_faces(name, faces + part.start, label, material, two_sided)

    def add_faces(self, name: str, faces: Index, label: int, material: int, two_sided: bool) -> None:
        n = len(faces)
        self.faces = np.concatenate([self.faces, faces.astype(np.int32)])
        self.label = np.concatenate([self.label, np.full(n, label, np.int32)])
        self.material = np.concatenate([self.material, np.full(n, material, np.int32)])
        self.two_sided = np.concatenate([self.two_sided, np.full(n, two_sided)])
        self.face_part = np.concatenate([self.face_part, np.full(n, name, "U16")])


def lambert(u: Array) -> Array:
    """Equal-area map of directions (n, 3) to the unit disk (n, 2), face in the middle: the texture's coordinates."""
    scale = np.sqrt(1 / np.maximum(2 * (1 - u[:, 2]), 1e-6))
    return (u[:, :2] * scale[:, None]).astype(np.float32)


def inverse_lambert(p: Array) -> Array:
    """Directions (n, 3) of points (n, 2) in the unit disk (clipped to it)."""
    r2 = np.minimum((p**2).sum(1), 1)
    planar = p * (2 * np.sqrt(np.maximum(1 - r2, 0)))[:, None]
    return np.concatenate([planar, (2 * r2 - 1)[:, None]], 1).astype(np.float32)


def anchor_points() -> Array:
    """Layout places (45, 2) of skin landmarks: jaw (17), brows (5, 5), nose (4, 5), forehead (9); x < 0 first."""
    jaw, forehead = np.radians(np.linspace(176, 4, 17)), np.radians(np.linspace(-20, -160, 9))
    across = np.linspace(1.0, 0.0, 5)
    brow = np.stack([0.14 + 0.40 * across, brow_line(0.14 + 0.40 * across)], 1)
    bridge = np.stack([np.zeros(4), (-0.24, -0.13, -0.02, 0.08)], 1)
    base = np.stack([(-0.11, -0.055, 0, 0.055, 0.11), (0.14, 0.165, 0.17, 0.165, 0.14)], 1)
    outline = np.stack([0.66 * np.cos(jaw), -0.12 + 1.04 * np.sin(jaw)], 1)
    high = np.stack([0.62 * np.cos(forehead), -0.12 - 0.68 * np.abs(np.sin(forehead)) ** 0.5], 1)
    return np.concatenate([outline, brow * (-1, 1), brow[::-1], bridge, base, high]).astype(np.float32)


def brow_line(x: Array) -> Array:
    """Height of the brows' middle line at |x| in the layout."""
    return -0.475 - 0.062 * np.sin(np.pi * np.clip(0.12 + 0.74 * (x - 0.115) / 0.46, 0, 1))


def skin_points() -> tuple[Array, Index, Index, Index]:
    """Directions (S, 3) of all skin vertices, and the indices of lid rings, lip rings and anchors in them."""
    rings = []
    for side in (1, -1):
        for half_width, up, down in LID_RINGS:
            rings.append(almond(LID_POINTS, half_width, up, down, 1.15) + (side * EYE_X, EYE_Y))
    for k, (half_width, up, down) in enumerate(LIP_RINGS):
        ring = almond(LIP_POINTS, half_width, up, down)
        if k == 2:  # Cupid's bow
            ring[:, 1] += np.where(ring[:, 1] < 0, 0.018 * np.exp(-((ring[:, 0] / 0.045) ** 2)), 0)
        rings.append(ring + (0, MOUTH_Y))
    rings.append(anchor_points())
    layout = np.concatenate(rings).astype(np.float32)
    lids = np.arange(2 * len(LID_RINGS) * LID_POINTS, dtype=np.int32).reshape(2, len(LID_RINGS), LID_POINTS)
    lips = np.arange(len(LIP_RINGS) * LIP_POINTS, dtype=np.int32).reshape(len(LIP_RINGS), LIP_POINTS) + lids.size
    anchors = np.arange(len(layout) - len(rings[-1]), len(layout), dtype=np.int32)
    kept = lambert(surface.direction(layout))
    fillers = (
        (lambert(surface.direction(hexagons(0.22, -0.36, 0.27, 0.045))), 0.022),
        (hexagons(0.66, -0.66, 0.66, 0.062), 0.036),
        (hexagons(1.0, -0.985, 0.985, 0.11), 0.075),
    )
    for points, gap in fillers:
        inside = (points**2).sum(1) < 0.975**2
        near = np.linalg.norm(points[:, None] - kept[None], axis=2).min(1)
        kept = np.concatenate([kept, points[inside & (near > gap) & ~in_openings(points)]])
    return inverse_lambert(kept), lids, lips, anchors


def in_openings(points: Array) -> NDArray[np.bool_]:
    """Which points (n, 2) of the disk lie inside an eye or mouth ring, where only ring vertices may be."""
    p, _ = surface.layout_of(inverse_lambert(points))
    eye = np.hypot((np.abs(p[:, 0]) - EYE_X) / 0.28, (p[:, 1] - EYE_Y) / 0.17) < 1
    return eye | (np.hypot(p[:, 0] / 0.40, (p[:, 1] - MOUTH_Y) / 0.22) < 1)


def skin_labels(layout: Array, front: Array) -> NDArray[np.int32]:
    """Label 1–4 of places (n, 2) of the layout with their front weight (n,)."""
    x, y = np.abs(layout[:, 0]), layout[:, 1]
    label = np.where((front > 0.5) & (np.hypot(x / 0.68, (y - 0.08) / 0.95) < 1), FACE, OTHER)
    brow = (np.abs(x - 0.345) < 0.27) & (np.abs(y - brow_line(x)) < 0.085)
    eye = np.hypot((x - EYE_X) / 0.270, (y - EYE_Y) / 0.168) < 1
    mouth = np.hypot(x / 0.305, (y - MOUTH_Y) / np.where(y < MOUTH_Y, 0.095, 0.112)) < 1
    return np.select([front < 0.5, eye | brow, mouth], [label, EYES, MOUTH], label).astype(np.int32)


@lru_cache(maxsize=1)
def template() -> Template:
    """The shared topology. Skin first, then the parts that hang on its rings, then free parts."""
    u, lids, lips, anchors = skin_points()
    disk = lambert(u)
    faces = Delaunay(disk).simplices.astype(np.int32)
    for opening in (lids[0, 0], lids[1, 0], lips[0]):
        faces = faces[~np.isin(faces, opening).all(1)]
    faces = outward(u, faces, np.zeros(3, np.float32))
    t = Template(u, disk * 0.5 + 0.5, lids, lips, anchors)
    t.layout, t.front = surface.layout_of(u)
    t.parent = np.arange(len(u), dtype=np.int32)
    t.add_faces("skin", faces, FACE, SKIN, False)
    t.label = skin_labels(t.layout[faces].mean(1), t.front[faces].mean(1))
    t.parts["skin"] = Part(0, u)
    add_rims(t)
    ball, ball_faces = eyeball(), grid_faces(len(EYE_ANGLES), EYE_SPOKES, True)
    for side in ("left", "right"):
        t.add(f"eye_{side}", ball, outward(ball, ball_faces, np.zeros(3, np.float32)), EYES)
    glint = np.concatenate([np.zeros((1, 3)), almond_disk(6)])
    glint_faces = np.array([(0, 1 + k, 1 + (k + 1) % 6) for k in range(6)], np.int32)
    for side in ("left", "right"):
        t.add(f"glint_{side}", glint, glint_faces, EYES, two_sided=True)
    add_mouth(t)
    add_free(t)
    return t


def add_rims(t: Template) -> None:
    """Inner faces of lids and lips: rings that follow the margin they hang on (`parent`), and the mouth's dark bag.

    They continue the skin's texture at their margin, darkened.
    """
    for k, side in enumerate(("left", "right")):
        ring = t.lids[k, 0]
        start = t.size
        t.add(f"rim_{side}", np.zeros((LID_POINTS, 3)), np.empty((0, 3), np.int32), EYES)
        t.parent[start:] = ring
        t.add_faces(f"rim_{side}", bridge(ring, np.arange(start, t.size, dtype=np.int32)), EYES, SKIN, True)
    ring = t.lips[0]
    for depth in ("roll", "throat"):
        start = t.size
        t.add(depth, np.zeros((LIP_POINTS, 3)), np.empty((0, 3), np.int32), MOUTH)
        t.parent[start:] = t.lips[0]
        t.add_faces(depth, bridge(ring, np.arange(start, t.size, dtype=np.int32)), MOUTH, SKIN, True)
        ring = np.arange(start, t.size, dtype=np.int32)
    fan = np.stack([np.full(LIP_POINTS - 2, ring[0]), ring[1:-1], ring[2:]], 1)
    t.add_faces("throat", fan, MOUTH, SKIN, True)


def add_mouth(t: Template) -> None:
    for name, row in (("teeth_upper", tooth_row(9, 0.235, 0.085)), ("teeth_lower", tooth_row(9, 0.20, -0.07))):
        t.add(name, row, grid_faces(3, 19, False), MOUTH, two_sided=True)
    tongue = ellipsoid(7, 10, (0.13, 0.06, 0.22))
    t.add("tongue", tongue, outward(tongue, grid_faces(7, 10, True)), MOUTH)


def add_free(t: Template) -> None:
    left = ear()
    for side, flip in (("left", 1), ("right", -1)):
        shape = left * (flip, 1, 1)
        t.add(f"ear_{side}", shape, grid_faces(5, 14, True), OTHER, two_sided=True)
    torso = body()
    faces = grid_faces(12, 24, True)
    t.add("body", torso, faces, OTHER, two_sided=True)
    t.material[-len(faces) :][faces.min(1) >= 24 * 6] = CLOTH
    rows = HAIR_ROWS + CURTAIN_ROWS
    t.add("hair", np.zeros((HAIR_COLUMNS * rows, 3)), grid_faces(rows, HAIR_COLUMNS, True), OTHER, HAIR, True)
    bun = ellipsoid(7, 12, (1, 1, 1))
    t.add("bun", bun, outward(bun, grid_faces(7, 12, True)), OTHER, HAIR)
    t.add("spectacles", spectacles(), spectacle_faces(), OTHER, two_sided=True)
