"""Colours of a head: skin, hair, iris, lips, clothes, light; all drawn from seeded ranges, sRGB in [0,1]."""

from dataclasses import dataclass

import numpy as np

from dex.data.synthetic.surface import Array

SKIN = ((250, 222, 202), (240, 202, 174), (226, 180, 146), (200, 150, 112), (164, 114, 80), (122, 82, 58), (88, 58, 43))
HAIR = (
    (24, 20, 19), (44, 31, 24), (74, 48, 31), (112, 76, 46), (168, 128, 78), (206, 172, 112), (138, 62, 28),
    (150, 148, 146), (214, 212, 208),
)  # fmt: skip
HAIR_ODDS = (0.24, 0.20, 0.17, 0.12, 0.08, 0.06, 0.06, 0.05, 0.02)
IRIS = ((62, 36, 20), (92, 58, 30), (118, 92, 48), (70, 104, 62), (64, 108, 150), (98, 128, 150))


@dataclass(frozen=True)
class Palette:
    """Colours of one identity, each (3,) float32 in [0,1]."""

    skin: Array
    hair: Array
    brow: Array
    iris: Array
    lips: Array
    cloth: Array
    frame: Array


def rgb(colour: tuple[int, int, int]) -> Array:
    return np.array(colour, np.float32) / 255


def palette(rng: np.random.Generator) -> Palette:
    """Draw the colours of one identity; dark skin goes with dark hair and eyes, as it mostly does."""
    tone = rng.uniform(0, len(SKIN) - 1)
    k = min(int(tone), len(SKIN) - 2)
    skin = rgb(SKIN[k]) + (tone - k) * (rgb(SKIN[k + 1]) - rgb(SKIN[k]))
    skin = np.clip(skin * (1 + rng.normal(0, (0.02, 0.02, 0.035))), 0, 1)
    hair_index = rng.choice(len(HAIR), p=HAIR_ODDS) if tone < 3 else rng.choice((0, 0, 1, 7))
    hair = np.clip(rgb(HAIR[hair_index]) * rng.uniform(0.85, 1.2), 0, 1)
    brow = 0.75 * np.minimum(hair, 0.42) + 0.02
    iris = rgb(IRIS[rng.integers(len(IRIS)) if tone < 3 else rng.integers(2)]) * rng.uniform(0.85, 1.15)
    lips = skin * np.array((0.86, 0.56, 0.56)) + np.array((0.05, 0, 0.01))
    if rng.random() < 0.15:
        lips = np.array((rng.uniform(0.5, 0.75), 0.10, rng.uniform(0.12, 0.3)))
    hue = rng.uniform(0, 2 * np.pi) + np.array((0, 2.09, 4.19))
    cloth = rng.uniform(0.15, 0.75) * (1 + rng.uniform(0, 0.6) * np.cos(hue))
    frame = rgb((20, 18, 18)) if rng.random() < 0.6 else rng.uniform(0.1, 0.5, 3)
    return Palette(*(np.clip(c, 0, 1).astype(np.float32) for c in (skin, hair, brow, iris, lips, cloth, frame)))


def light(rng: np.random.Generator) -> Array:
    """Lights (3, 3): ambient colour; colour of the key light; unit direction towards it (up, in front, to a side)."""
    warm = rng.normal(0, 0.03)
    tint = np.array((1 + warm, 1, 1 - warm))
    side = rng.choice((-1.0, 1.0)) * rng.uniform(0.15, 0.85)
    towards = np.array((side, rng.uniform(-0.75, -0.25), -1.0))
    ambient = rng.uniform(0.42, 0.60)
    key = rng.uniform(0.92, 1.10) - ambient
    return np.stack([ambient * (2 - tint), key * tint, towards / np.linalg.norm(towards)]).astype(np.float32)
