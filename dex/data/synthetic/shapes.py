"""Rest shapes of a head's parts, each in its own frame, and the triangles between rings of vertices."""

import numpy as np
from numpy.typing import NDArray

from dex.data.synthetic.surface import EYE_X, Array

Index = NDArray[np.int32]

EYE_ANGLES = (0.0, 10.5, 12.0, 17.0, 24.0, 27.5, 30.5, 45.0, 70.0, 100.0)  # degrees from the gaze axis, ring by ring
EYE_SPOKES = 16


def almond(points: int, half_width: float, up: float, down: float, sharp: float = 1.0) -> Array:
    """Ring (points, 2) of an eye or mouth outline about the origin; point 0 at (half_width, 0), then below."""
    a = 2 * np.pi * np.arange(points) / points
    y = np.sin(a)
    return np.stack([half_width * np.cos(a), np.where(y > 0, down, up) * np.sign(y) * np.abs(y) ** sharp], 1)


def hexagons(half_x: float, low_y: float, high_y: float, step: float) -> Array:
    """Hexagonal grid (n, 2), mirror-symmetric in x."""
    rows = np.arange(low_y, high_y, step * 0.866)
    half = np.arange(0, half_x, step)
    points = []
    for i, y in enumerate(rows):
        x = half + (step / 2 if i % 2 else 0.0)
        points += [(s * v, y) for v in x for s in (1, -1) if not (v == 0 and s < 0)]
    return np.array(points, np.float32)


def grid_faces(rows: int, columns: int, wrap: bool) -> Index:
    """Triangles of a rows × columns grid of vertices, closed around the columns if `wrap`."""
    faces = []
    for r in range(rows - 1):
        for c in range(columns if wrap else columns - 1):
            a, b = r * columns + c, r * columns + (c + 1) % columns
            faces += [(a, b, a + columns), (b, b + columns, a + columns)]
    return np.array(faces, np.int32)


def outward(shape: Array, faces: Index, centre: Array | None = None) -> Index:
    """Faces turned so that their normals point away from the centre (default: the shape's mean)."""
    middle = shape.mean(0) if centre is None else centre
    a, b, c = (shape[faces[:, k]] for k in range(3))
    inside = (np.cross(b - a, c - a) * ((a + b + c) / 3 - middle)).sum(1) < 0
    return np.where(inside[:, None], faces[:, ::-1], faces)


def eyeball() -> Array:
    """Unit sphere cap around the gaze axis -z, rings at EYE_ANGLES (ring 0 is the pole, repeated)."""
    a = np.radians(EYE_ANGLES)[:, None]
    s = 2 * np.pi * np.arange(EYE_SPOKES)[None] / EYE_SPOKES
    return np.stack([np.sin(a) * np.cos(s), np.sin(a) * np.sin(s), -np.cos(a) + 0 * s], 2).reshape(-1, 3)


def ellipsoid(rows: int, columns: int, radii: tuple[float, float, float]) -> Array:
    """Closed ellipsoid grid (rows·columns, 3), poles on the y axis."""
    a = np.linspace(0, np.pi, rows)[:, None]
    s = 2 * np.pi * np.arange(columns)[None] / columns
    return (np.stack([np.sin(a) * np.cos(s), -np.cos(a) + 0 * s, np.sin(a) * np.sin(s)], 2) * radii).reshape(-1, 3)


def tooth_row(teeth: int, half_width: float, height: float) -> Array:
    """Curved band (3·(2·teeth + 1), 3): gum line, middle, edge; every second column is a gap."""
    x = np.linspace(-half_width, half_width, 2 * teeth + 1)
    gap = np.arange(len(x)) % 2 == 0
    rows = [np.stack([x, np.full_like(x, y), 2.2 * x**2 + 0.008 * gap], 1) for y in (0.0, height * 0.45)]
    rows.append(np.stack([x, np.full_like(x, height) * (1 - 0.05 * gap), 2.2 * x**2 + 0.008 * gap], 1))
    return np.concatenate(rows)


def ear() -> Array:
    """Left ear about its root: rings from the hollow to the rim and back to the skull; (5·14, 3)."""
    a = 2 * np.pi * np.arange(14) / 14
    back, up = np.cos(a), -np.sin(a)
    narrow = np.where(up > 0, 1 - 0.30 * up, 1.0)  # towards the lobe below
    rings = ((0.02, 0.055), (0.60, 0.050), (0.82, 0.085), (1.0, 0.075), (0.92, -0.03))
    rows = []
    for radius, out in rings:
        flare = out + 0.03 * (back + 1) / 2 * radius
        rows.append(np.stack([flare, 0.22 * radius * up, 0.125 * radius * back * narrow + 0.05], 1))
    return np.concatenate(rows)


def body() -> Array:
    """Neck and shoulders: 12 rings of 24 vertices, the first 6 bare, in head coordinates."""
    rings = (  # y, half width, half depth, centre z
        (0.30, 0.36, 0.28, 0.36),
        (0.70, 0.385, 0.35, 0.38),
        (0.95, 0.39, 0.37, 0.40),
        (1.10, 0.40, 0.38, 0.42),
        (1.22, 0.44, 0.41, 0.44),
        (1.30, 0.50, 0.44, 0.46),
        (1.235, 0.53, 0.47, 0.46),
        (1.29, 0.66, 0.52, 0.47),
        (1.38, 0.92, 0.56, 0.48),
        (1.50, 1.22, 0.60, 0.50),
        (1.75, 1.42, 0.64, 0.50),
        (3.20, 1.50, 0.68, 0.50),
    )
    s = 2 * np.pi * np.arange(24) / 24
    dip = 0.10 * np.maximum(-np.sin(s), 0)  # the collar is lower in front
    return np.concatenate(
        [
            np.stack([w * np.cos(s), y + (dip if 4 < k < 9 else 0 * s), z + d * np.sin(s)], 1)
            for k, (y, w, d, z) in enumerate(rings)
        ]
    )


def spectacles() -> Array:
    """Frame about the bridge of the nose: two rims (2·16·2), then strips for bridge and temples; (82, 3)."""
    rim = []
    for side in (1, -1):
        for grow in (1.0, 1.14):
            ring = almond(16, 0.245 * grow, 0.175 * grow, 0.185 * grow, 0.8)
            rim.append(np.concatenate([ring + (side * EYE_X, 0.02), np.zeros((16, 1))], 1))
    bridge = np.array([(x, y, -0.11 + 4 * x * x) for x in (-0.11, 0, 0.11) for y in (-0.03, 0.01)])
    arms = [
        (s * x, y, z) for s in (1, -1) for x, z in ((0.60, 0.02), (0.73, 0.20), (0.76, 0.75)) for y in (-0.05, -0.01)
    ]
    return np.concatenate([*rim, bridge, np.array(arms)])


def spectacle_faces() -> Index:
    rims = [grid_faces(2, 16, True) + 32 * side for side in (0, 1)]
    strips = [grid_faces(3, 2, False) + start for start in (64, 70, 76)]
    return np.concatenate(rims + strips)


def almond_disk(points: int) -> Array:
    return np.concatenate([almond(points, 1, 1, 1), np.zeros((points, 1))], 1)


def bridge(first: Index, second: Index) -> Index:
    """Triangles between two rings of equally many vertices."""
    return np.concatenate([first, second])[grid_faces(2, len(first), True)].astype(np.int32)
