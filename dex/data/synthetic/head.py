"""A synthetic head: everything that an identity's seed decides. Deterministic; about 4 ms after the first call."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dex.data.synthetic import hair as hairdo
from dex.data.synthetic import surface, texture
from dex.data.synthetic.blendshapes import head_deltas
from dex.data.synthetic.palette import Palette, light, palette
from dex.data.synthetic.surface import MODE_NAMES, Array, smoothstep
from dex.data.synthetic.template import EYE_ANGLES, EYE_SPOKES, LIP_POINTS, Index, Template, template

IDENTITY_MODES = len(MODE_NAMES)
GENERATOR = "synthetic-heads.v1"  # changes whenever a seed gives another picture
LID_GAP = 1.13  # radius of the lids' inner surface over the eyeball's
GLINT = np.array((-0.26, -0.22, -1.0))  # where the window is mirrored in an eye, in eyeball radii
BEARDS = ((), (), (), (), ("beard",), ("moustache",), ("goatee",), ("stubble",))


@dataclass(frozen=True)
class Head:
    """One identity. V vertices, F triangles, E blendshapes, N non-zero displacements. Units: 1 = 10 cm."""

    seed: int
    identity: Array  # (M,) shape modes in standard deviations
    style: str  # hair style
    vertices: Array  # (V, 3) neutral, canonical
    faces: Index  # (F, 3)
    label: Index  # (F,) 1 other, 2 face skin, 3 eyes, 4 mouth
    material: Index  # (F,) texture layer, -1 none
    two_sided: NDArray[np.bool_]  # (F,)
    albedo: Array  # (V, 3) vertex colours (times the texture where there is one)
    gloss: Array  # (V,) strength of the highlight
    follow: Array  # (V,) 1 follows the head's pose, 0 the shoulders'
    uv: Array  # (V, 2) texture coordinates in [0,1]
    textures: NDArray[np.uint8]  # (3, S, S, 3) skin, hair, cloth
    delta_start: Index  # (E+1,) slices of the next two, by blendshape
    delta_index: Index  # (N,)
    delta_value: Array  # (N, 3)
    eyes: Array  # (2, 4) centre and radius of the eyeballs, subject's left first
    light: Array  # (3, 3) ambient colour, key colour, direction towards the key light
    background: Array  # (B, 9) see `scenery`


def make_head(seed: int) -> Head:
    """The identity of a seed. Equal seeds give equal heads on every machine; different seeds never share a stream."""
    if seed < 0:
        raise ValueError(f"seed {seed}: need a whole number ≥ 0.")
    t, rng = template(), np.random.default_rng((0x4EAD, seed))
    identity = np.clip(rng.standard_normal(IDENTITY_MODES), -2.2, 2.2).astype(np.float32)
    colours, style = palette(rng), hairdo.STYLES[rng.integers(len(hairdo.STYLES))]
    beard = BEARDS[rng.integers(len(BEARDS))] if style.name in ("bald", "cropped", "short", "quiff", "parted") else ()
    recede = float(rng.uniform(-0.3, 1.0))
    vertices, eyes = neutral(t, identity, style, recede, rng)
    deltas = head_deltas(vertices[t.lids])
    shown = visible_faces(t, style, bool(rng.random() < 0.15))
    albedo, gloss = paint(t, colours)
    return Head(
        seed=seed,
        identity=identity,
        style=style.name,
        vertices=vertices,
        faces=t.faces[shown],
        label=t.label[shown],
        material=t.material[shown],
        two_sided=t.two_sided[shown],
        albedo=albedo,
        gloss=gloss,
        follow=fixed_tables().follow,
        uv=fixed_tables().uv,
        textures=textures(colours, style, recede, beard, rng),
        delta_start=deltas.start,
        delta_index=deltas.index,
        delta_value=deltas.value,
        eyes=eyes,
        light=light(rng),
        background=scenery(rng),
    )


def neutral(
    t: Template, identity: Array, style: hairdo.Style, recede: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Neutral vertices (V, 3) and eyeballs (2, 4) of an identity."""
    v = np.zeros((t.size, 3), np.float32)
    mean, basis = skin_model()
    skin = surface.proportions(mean + np.tensordot(identity, basis, 1), identity)
    close_mouth(skin, t)
    eyes = np.stack([set_lids(skin, t.lids[k]) for k in (0, 1)])
    v[: len(skin)] = skin
    v[t.parts["roll"].slice] = skin[t.lips[0]] * (0.97, 1, 1) + (0, 0, 0.05)
    v[t.parts["throat"].slice] = skin[t.lips[0]] * (0.75, 1, 1) + (0, 0.02, 0.42)
    for k, side in enumerate(("left", "right")):
        centre, radius = eyes[k, :3], eyes[k, 3]
        v[t.parts[f"rim_{side}"].slice] = skin[t.lids[k, 0]] + (0, 0, 0.05)
        v[t.parts[f"eye_{side}"].slice] = centre + radius * t.parts[f"eye_{side}"].shape
        glint = GLINT + 0.14 * t.parts[f"glint_{side}"].shape
        glint *= 1.015 / np.linalg.norm(glint, axis=1, keepdims=True)  # just over the eyeball, well under the lids
        v[t.parts[f"glint_{side}"].slice] = centre + radius * glint
    middle = skin[t.lips[0, 3 * LIP_POINTS // 4]]
    for part, offset in (
        ("teeth_upper", (0, -0.068, 0.075)),
        ("teeth_lower", (0, 0.065, 0.105)),
        ("tongue", (0, 0.07, 0.35)),
    ):
        v[t.parts[part].slice] = t.parts[part].shape + middle * (0, 1, 1) + offset
    place_free(v, t, skin, eyes, identity, style, recede, rng)
    return v.astype(np.float32), eyes


@lru_cache(maxsize=1)
def skin_model() -> tuple[Array, Array]:
    """Mean skin (S, 3) and identity basis (M, S, 3)."""
    u = template().directions
    layout, front = surface.layout_of(u)
    return surface.egg(u) + surface.displacement(layout, front, surface.MEAN), surface.mode_basis(u)


def close_mouth(skin: Array, t: Template) -> None:
    """Bring the inner lip rings together (they are open in the layout), tucked in behind the lips; in place."""
    below = np.arange(1, LIP_POINTS // 2)
    above = LIP_POINTS - below
    for ring, keep in ((0, 0.05), (1, 0.85)):
        low, high = t.lips[ring, below], t.lips[ring, above]
        middle = (skin[low] + skin[high]) / 2
        for side in (low, high):
            skin[side, 1] = middle[:, 1] + keep * (skin[side, 1] - middle[:, 1])
    skin[t.lips[0], 2] += 0.022
    skin[t.lips[1], 2] -= 0.014


def set_lids(skin: Array, rings: Index) -> Array:
    """Lay the lid rings (K, LID_POINTS) on a sphere around an eyeball, in place; its centre and radius (4,)."""
    margin = skin[rings[0]]
    centre = (margin.min(0) + margin.max(0)) / 2
    radius = 1.03 * (margin[:, 0].max() - margin[:, 0].min()) / 2
    centre[2] = margin[:, 2].mean() + radius - 0.068
    for ring, share, gap in zip(rings, (1.0, 1.0, 0.75, 0.2), (1.0, 1.0, 1.03, 1.08), strict=True):
        r2, outer = ((skin[ring, :2] - centre[:2]) ** 2).sum(1), LID_GAP * gap * radius
        sphere = centre[2] - np.sqrt(np.maximum(outer**2 - r2, (0.35 * outer) ** 2))
        z = skin[ring, 2] + share * (sphere - skin[ring, 2])
        skin[ring, 2] = np.where(r2 < (0.98 * outer) ** 2, np.minimum(z, sphere), z)
    return np.array([*centre, radius], np.float32)


def place_free(
    v: Array, t: Template, skin: Array, eyes: Array, identity: Array, style: hairdo.Style, recede: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Put ears, body, hair, glints and spectacles in place; in place on v."""
    scale = 1 + 0.06 * rng.standard_normal(3)
    for side, flip in (("left", 1), ("right", -1)):
        root = surface.proportions(surface.egg(np.array([(flip * 0.995, 0.08, 0.06)], np.float32)), identity)[0]
        v[t.parts[f"ear_{side}"].slice] = t.parts[f"ear_{side}"].shape * scale[0] + root - (flip * 0.02, 0, 0)
    v[t.parts["body"].slice] = t.parts["body"].shape * (scale[1], 1, 1)
    u, azimuth, share = hairdo.directions(style, recede)
    layout, front = surface.layout_of(u)
    skull = surface.egg(u) + surface.displacement(layout, front, surface.MEAN)
    skull = surface.proportions(skull, identity)
    v[t.parts["hair"].slice] = hairdo.shell(skull, u, azimuth, share, style, rng)
    v[t.parts["bun"].slice] = hairdo.bun(skull[0], style, t.parts["bun"].shape)
    frame = t.parts["spectacles"].shape
    spread = eyes[0, 0] / surface.EYE_X
    z = eyes[:, 2].mean() - eyes[:, 3].mean() - 0.09 + 0.30 * frame[:, 0] ** 2 + frame[:, 2]
    v[t.parts["spectacles"].slice] = np.stack([frame[:, 0] * spread, frame[:, 1] + eyes[:, 1].mean(), z], 1)


def visible_faces(t: Template, style: hairdo.Style, spectacles: bool) -> NDArray[np.bool_]:
    """Which triangles this identity draws, (F,)."""
    shown = np.ones(len(t.faces), np.bool_)
    for part, there in (
        ("hair", style.shell),
        ("bun", style.bun > 0),
        ("spectacles", spectacles),
        ("ear_left", not style.length),
        ("ear_right", not style.length),
    ):
        if not there:
            shown &= t.face_part != part
    return shown


@dataclass(frozen=True)
class Tables:
    """Per-vertex tables that all identities share."""

    uv: Array
    follow: Array
    shade: Array  # (V,) ambient occlusion of plain parts


@lru_cache(maxsize=1)
def fixed_tables() -> Tables:
    t = template()
    uv, follow, shade = np.zeros((t.size, 2), np.float32), np.ones(t.size, np.float32), np.ones(t.size, np.float32)
    uv[: len(t.uv)] = t.uv
    uv[:] = uv[t.parent]
    hair, torso = t.parts["hair"], t.parts["body"]
    rows = len(hair.shape) // hairdo.HAIR_COLUMNS
    across = 1 - np.abs(2 * np.arange(hairdo.HAIR_COLUMNS) / hairdo.HAIR_COLUMNS - 1)
    grid = np.meshgrid(across * 0.98 + 0.01, np.linspace(0.02, 0.98, rows))
    uv[hair.slice] = np.stack(grid, 2).reshape(-1, 2)
    bun = t.parts["bun"]
    uv[bun.slice] = 0.5 + 0.3 * bun.shape[:, [0, 1]]
    uv[torso.slice] = (torso.shape[:, [0, 1]] / 4 + 0.5) % 1.0
    follow[torso.slice] = 1 - smoothstep(0.55, 1.25, torso.shape[:, 1])
    shade[torso.slice] = 0.55 + 0.45 * smoothstep(0.85, 1.25, torso.shape[:, 1])
    return Tables(uv, follow, shade)


def paint(t: Template, colours: Palette) -> tuple[Array, Array]:
    """Vertex colours (V, 3) and gloss (V,)."""
    albedo, gloss = np.ones((t.size, 3), np.float32), np.zeros(t.size, np.float32)
    gloss[: len(t.directions)] = 0.10
    flat = {
        "roll": np.array((0.50, 0.40, 0.40)), "throat": np.array((0.13, 0.09, 0.09)), 
        "tongue": np.array((0.72, 0.34, 0.34)),
        "glint_left": np.array((1.6, 1.6, 1.6)), "glint_right": np.array((1.6, 1.6, 1.6)), "bun": colours.hair,
        "hair": colours.hair, "spectacles": colours.frame, "rim_left": np.array((0.6, 0.5, 0.5)),
        "rim_right": np.array((0.6, 0.5, 0.5)),
    }  # fmt: skip
    for part, colour in flat.items():
        albedo[t.parts[part].slice] = colour
    angles = np.repeat(EYE_ANGLES, EYE_SPOKES)
    stops = np.array((0, 10.5, 12.0, 17.0, 24.0, 27.5, 30.5, 45.0, 70.0, 100.0))
    white = np.array((0.93, 0.91, 0.89))
    tones = np.stack([(0.02, 0.02, 0.02)] * 2 + [colours.iris * k for k in (0.75, 1.15, 1.0, 0.45)]
                     + [white * (0.92, 0.9, 0.9), white, white * (0.88, 0.80, 0.78), white * 0.6])  # fmt: skip
    ball = np.stack([np.interp(angles, stops, tones[:, c]) for c in range(3)], 1)
    for side in ("left", "right"):
        albedo[t.parts[f"eye_{side}"].slice] = ball
        gloss[t.parts[f"eye_{side}"].slice] = 0.25
        albedo[t.parts[f"ear_{side}"].slice] = colours.skin * np.repeat((0.55, 0.74, 0.95, 1.0, 0.75), 14)[:, None]
    gap = np.where(np.arange(19) % 2 == 0, 0.80, 1.0)[:, None] * np.array((0.95, 0.93, 0.87))
    for row, tone in (("teeth_upper", 1.0), ("teeth_lower", 0.86)):
        albedo[t.parts[row].slice] = tone * np.concatenate([np.tile((0.78, 0.42, 0.42), (19, 1)), gap, gap])
    torso = t.parts["body"]
    albedo[torso.slice] = colours.skin
    albedo[torso.start + 24 * 6 : torso.start + len(torso.shape)] = colours.cloth
    albedo[torso.slice] *= fixed_tables().shade[torso.slice, None]
    gloss[t.parts["hair"].slice] = 0.16
    return albedo.astype(np.float32), gloss


def textures(
    colours: Palette, style: hairdo.Style, recede: float, beard: tuple[str, ...], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Texture layers (3, S, S, 3) of an identity: skin, hair, cloth."""
    skin, brow = colours.skin, float(rng.uniform(0, 1))
    shadow, red = skin * (0.62, 0.50, 0.46), skin * (1.0, 0.72, 0.70)
    mix = {
        "blush": (red, rng.uniform(0.15, 0.55)), "socket": (shadow, rng.uniform(0.25, 0.5)),
        "hollow": (shadow, rng.uniform(0.1, 0.4)), "crease": (shadow * 0.8, 0.55), "lashes": (brow_dark(colours), 0.9),
        "lips": (colours.lips, 0.92), "lip_line": (colours.lips * 0.45, 0.8), "brow_thin": (colours.brow, 0.95),
        "brow_wide": (colours.brow, 0.9 * brow), "nostril": (skin * 0.22, 0.85), 
        "fold": (shadow, rng.uniform(0.1, 0.45)),
        "beard": (colours.brow * 1.1, 0.0), "moustache": (colours.brow * 1.1, 0.0), "goatee": (colours.brow * 1.1, 0.0),
    }  # fmt: skip
    for kind in beard:
        name = "beard" if kind == "stubble" else kind
        mix[name] = (mix[name][0], 0.35 if kind == "stubble" else 0.78)
    scalp = 0.0 if style.name == "bald" else 0.95
    shade = np.stack([mix[name][0] for name in texture.MASKS] + [colours.hair * 0.6]).astype(np.float32)
    alpha = np.array([mix[name][1] for name in texture.MASKS] + [scalp], np.float32)
    layers = np.concatenate([texture.masks(), texture.scalp_mask(style, recede)])
    grain = texture.grain(rng) * np.float32(rng.uniform(0.01, 0.03))
    out = np.empty((3, texture.SIZE, texture.SIZE, 3), np.uint8)
    out[0] = texture.compose(skin, layers, shade, alpha, grain)
    out[1] = texture.strands(rng)
    out[2] = texture.weave(rng)
    return out


def brow_dark(colours: Palette) -> Array:
    return colours.brow * 0.35


def scenery(rng: np.random.Generator) -> Array:
    """Background as rows (kind, x, y, half width, half height, softness, r, g, b); the first two are a gradient."""
    tone = rng.uniform(0.15, 0.85)
    rows = []
    for k in range(2):
        colour = np.clip(tone + rng.uniform(-0.18, 0.18) + rng.uniform(-0.12, 0.12, 3), 0.03, 0.97)
        rows.append((0, rng.uniform(-1, 1), 2.0 * k - 1, 1, 1, 1, *colour))
    for _ in range(rng.integers(2, 8)):
        colour = np.clip(tone + rng.uniform(-0.35, 0.35) + rng.uniform(-0.15, 0.15, 3), 0.02, 0.98)
        size = rng.uniform(0.1, 0.6, 2)
        rows.append((rng.integers(1, 3), *rng.uniform(-1.1, 1.1, 2), *size, rng.uniform(0.02, 0.25), *colour))
    return np.array(rows, np.float32)


def parameters_hash(head: Head) -> str:
    """SHA-256 of what an identity was drawn from, for the provenance of results: the same on every machine."""
    digest = hashlib.sha256(f"{GENERATOR} {head.seed} {head.style}".encode())
    for drawn in (head.identity, head.light, head.background):
        digest.update(np.round(drawn, 3).astype("<f4").tobytes())
    return digest.hexdigest()
