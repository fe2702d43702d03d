"""Textures of a head: the skin in Lambert coordinates (lips, brows, lashes, beard, shadow), hair strands, cloth.

Masks over the shared layout are painted once a process; an identity mixes its colours through them.
"""

from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from dex.data.synthetic.hair import Style, hairline
from dex.data.synthetic.surface import EYE_X, EYE_Y, MOUTH_Y, Array, layout_of, smoothstep
from dex.data.synthetic.template import brow_line, inverse_lambert, skin_labels

SIZE = 256
MASKS = (
    "blush", "socket", "hollow", "crease", "lashes", "lips", "lip_line", "brow_thin", "brow_wide", "nostril",
    "beard", "moustache", "goatee", "fold",
)  # fmt: skip


def blob(p: Array, x: float, y: float, sx: float, sy: float) -> Array:
    """Soft spot at (±x, y), both sides."""
    return np.exp(-(((np.abs(p[:, 0]) - x) / sx) ** 2) - ((p[:, 1] - y) / sy) ** 2).astype(np.float32)


@lru_cache(maxsize=1)
def places() -> tuple[Array, Array, Array]:
    """Layout (n, 2), front weight (n,) and direction (n, 3) of each texel, row by row."""
    axis = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    disk = np.stack(np.meshgrid(axis, axis), 2).reshape(-1, 2).astype(np.float32)
    u = inverse_lambert(disk)
    return *layout_of(u), u


def eye_masks(p: Array) -> dict[str, Array]:
    x, y = np.abs(p[:, 0]) - EYE_X, p[:, 1] - EYE_Y
    rim = np.sqrt((x / 0.185) ** 2 + np.abs(y / np.where(y < 0, 0.080, 0.064)) ** 1.74)  # the margin's own outline
    upper = 1 - smoothstep(-0.03, 0.02, y)
    fold = np.hypot(x / 0.215, y / 0.130)
    return {
        "socket": blob(p, EYE_X, EYE_Y - 0.08, 0.20, 0.12) + 0.8 * blob(p, 0.17, EYE_Y, 0.07, 0.13),
        "hollow": blob(p, EYE_X - 0.03, EYE_Y + 0.13, 0.15, 0.04),
        "crease": np.exp(-(((fold - 1) / 0.07) ** 2)) * (1 - smoothstep(-0.06, 0.0, y)),
        "lashes": (1 - smoothstep(1.10, 1.24, rim)) * (0.30 + 0.70 * upper),
    }


def mouth_masks(p: Array) -> dict[str, Array]:
    x, y = p[:, 0], p[:, 1] - MOUTH_Y
    bow = 0.018 * np.exp(-((x / 0.045) ** 2))
    outline = np.hypot(x / 0.272, y / np.where(y < 0, 0.088 - bow, 0.105))
    inner = np.hypot(x / 0.250, y / np.where(y < 0, 0.028, 0.032))
    return {
        "lips": 1 - smoothstep(0.90, 1.06, outline),
        "lip_line": 1 - smoothstep(1.0, 1.45, inner),
        "nostril": np.clip(1.6 * blob(p, 0.060, 0.158, 0.034, 0.020), 0, 1),
        "fold": np.exp(-(((np.abs(x) - 0.20 - 0.32 * (p[:, 1] - 0.12)) / 0.022) ** 2))
        * smoothstep(0.08, 0.16, p[:, 1]) * (1 - smoothstep(0.30, 0.42, p[:, 1])),
    }  # fmt: skip


def brow_mask(p: Array, half: float, noise: Array) -> Array:
    t = (np.abs(p[:, 0]) - 0.115) / 0.46
    middle = brow_line(np.abs(p[:, 0]))
    width = half * (1 - 0.62 * np.clip(t, 0, 1) ** 1.5) * (1 + 0.35 * noise)
    ends = smoothstep(-0.03, 0.05, t) * (1 - smoothstep(0.90, 1.03, t))
    return (1 - smoothstep(0.65, 1.10, np.abs(p[:, 1] - middle) / width)) * ends


def beard_masks(p: Array, noise: Array) -> dict[str, Array]:
    x, y = np.abs(p[:, 0]), p[:, 1]
    around_mouth = np.hypot(x / 0.30, (y - MOUTH_Y) / 0.115)
    clear = smoothstep(0.98, 1.12, around_mouth + 0.05 * noise)
    edge = 0.33 - 0.50 * smoothstep(0.40, 0.66, x) + 0.16 * (1 - smoothstep(0.0, 0.30, x)) + 0.02 * noise
    jaw = smoothstep(-0.06, 0.08, y - edge) * (1 - 0.8 * smoothstep(0.93, 1.02, y)) * clear
    lip = (1 - smoothstep(0.85, 1.05, np.hypot(x / 0.33, (y - 0.305 - 0.25 * x**2) / 0.062) + 0.1 * noise)) * clear
    chin = (1 - smoothstep(0.85, 1.1, np.hypot(x / 0.24, (y - 0.76) / 0.20) + 0.1 * noise)) * clear
    return {"beard": np.maximum(jaw, lip), "moustache": lip, "goatee": np.maximum(chin, lip)}


@lru_cache(maxsize=1)
def masks() -> NDArray[np.uint8]:
    """All masks (K, SIZE, SIZE), 0–255, in the order of MASKS."""
    p, front, _ = places()
    noise = value_noise(np.random.default_rng(1), 1.0).reshape(-1)
    found = eye_masks(p) | mouth_masks(p) | beard_masks(p, noise)
    found["brow_thin"], found["brow_wide"] = brow_mask(p, 0.030, noise), brow_mask(p, 0.050, noise)
    found["blush"] = (
        blob(p, 0.42, 0.12, 0.17, 0.15) + 0.6 * blob(p, 0, 0.08, 0.10, 0.09) + 0.4 * blob(p, 0, 0.8, 0.2, 0.1)
    )
    stack = np.stack([np.clip(found[name] * front, 0, 1) for name in MASKS])
    return (stack * 255).astype(np.uint8).reshape(len(MASKS), SIZE, SIZE)


@lru_cache(maxsize=1)
def label_map() -> NDArray[np.uint8]:
    """Label 1–4 of each skin texel, (SIZE, SIZE): the mask's outlines are finer than the triangles."""
    p, front, _ = places()
    return skin_labels(p, front).astype(np.uint8).reshape(SIZE, SIZE)


def value_noise(rng: np.random.Generator, fine: float) -> Array:
    """Band-limited noise (SIZE, SIZE), about ±1: octaves of 16, 32 and 64 cells, the finest weighted by `fine`."""
    total = np.zeros((SIZE, SIZE), np.float32)
    for cells, gain in ((16, 0.5), (32, 0.5), (64, 0.6 * fine)):
        total += gain * enlarge(rng.standard_normal((cells + 1, cells + 1)).astype(np.float32), SIZE)
    return total


@lru_cache(maxsize=1)
def bank() -> tuple[Array, NDArray[np.uint8], NDArray[np.uint8]]:
    """Shared noise that identities take a shifted piece of: skin grain (4, n, n), hair and cloth grey (4, n, n, 3)."""
    rng = np.random.default_rng(7)
    skin = np.stack([value_noise(rng, fine) for fine in (0.2, 0.5, 0.8, 1.2)])
    hair, cloth = np.empty((2, 4, SIZE, SIZE, 3), np.uint8)
    for k in range(4):
        lines = enlarge(rng.standard_normal((5, 65)).astype(np.float32), SIZE)
        coarse = enlarge(rng.standard_normal((5, 17)).astype(np.float32), SIZE)
        hair[k] = (np.clip(0.86 + 0.10 * lines + 0.10 * coarse, 0.45, 1.3) * 195)[:, :, None]
        stripes = np.sin(np.arange(SIZE) * 2 * np.pi * (0, 12, 20, 30)[k] / SIZE)[:, None, None]
        cloth[k] = np.clip(190 * (1 + 0.04 * skin[k, :, :, None] + 0.12 * stripes), 0, 255)
    return skin, hair, cloth


def grain(rng: np.random.Generator) -> Array:
    """Skin noise (SIZE, SIZE) about ±1."""
    return np.roll(bank()[0][rng.integers(4)], rng.integers(0, SIZE, 2), (0, 1))


def strands(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Hair texture (SIZE, SIZE, 3): grey streaks along the strands."""
    return np.roll(bank()[1][rng.integers(4)], rng.integers(SIZE), 1)


def weave(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cloth texture (SIZE, SIZE, 3): plain or striped."""
    return bank()[2][rng.integers(4)]


@numba.njit(cache=True, nogil=True)
def enlarge(grid: Array, size: int) -> Array:
    """Bilinear enlargement of a lattice (n+1, m+1) to (size, size)."""
    out = np.empty((size, size), np.float32)
    n, m = grid.shape[0] - 1, grid.shape[1] - 1
    for i in range(size):
        y = (i + 0.5) / size * n
        r = int(y)
        fy = np.float32(y - r)
        for j in range(size):
            x = (j + 0.5) / size * m
            c = int(x)
            fx = np.float32(x - c)
            top = grid[r, c] * (1 - fx) + grid[r, c + 1] * fx
            out[i, j] = top * (1 - fy) + (grid[r + 1, c] * (1 - fx) + grid[r + 1, c + 1] * fx) * fy
    return out


@numba.njit(cache=True, nogil=True)
def compose(base: Array, layers: NDArray[np.uint8], colours: Array, alphas: Array, noise: Array) -> NDArray[np.uint8]:
    """Lay colours (K, 3) with opacities (K,) through masks (K, n, n) over a base colour; modulate by noise (n, n)."""
    n = layers.shape[1]
    out = np.empty((n, n, 3), np.uint8)
    for i in range(n):
        for j in range(n):
            r, g, b = base[0], base[1], base[2]
            for k in range(layers.shape[0]):
                if layers[k, i, j]:
                    a = alphas[k] * layers[k, i, j] * np.float32(1 / 255)
                    r += a * (colours[k, 0] - r)
                    g += a * (colours[k, 1] - g)
                    b += a * (colours[k, 2] - b)
            m = np.float32(255) * (1 + noise[i, j])
            out[i, j, 0] = min(max(r * m, np.float32(0)), np.float32(255))
            out[i, j, 1] = min(max(g * m, np.float32(0)), np.float32(255))
            out[i, j, 2] = min(max(b * m, np.float32(0)), np.float32(255))
    return out


@lru_cache(maxsize=1)
def scalp_places() -> tuple[Array, Array]:
    """Azimuth from the face's middle in whole degrees + 180, and polar angle from the crown, of each texel (n, n)."""
    _, _, u = places()
    azimuth = np.degrees(np.arctan2(u[:, 0], -u[:, 2])) + 180
    polar = np.arccos(np.clip(-u[:, 1], -1, 1)).astype(np.float32)
    return np.rint(azimuth).astype(np.int32).reshape(SIZE, SIZE), polar.reshape(SIZE, SIZE)


def scalp_mask(style: Style, recede: float) -> NDArray[np.uint8]:
    """Where hair grows, (1, SIZE, SIZE) 0–255, with a soft hairline."""
    azimuth, polar = scalp_places()
    edge = hairline(np.radians(np.arange(-180.0, 181.0)), style, recede).astype(np.float32)
    return np.clip((edge[azimuth] - polar + 0.02) * (255 / 0.08), 0, 255).astype(np.uint8)[None]
