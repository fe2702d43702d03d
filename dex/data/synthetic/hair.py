"""Hair: a shell over the skull from the crown to a hairline, a curtain that may hang below it, and a bun."""

from dataclasses import dataclass

import numpy as np

from dex.data.synthetic.surface import Array, smoothstep
from dex.data.synthetic.template import CURTAIN_ROWS, HAIR_COLUMNS, HAIR_ROWS


@dataclass(frozen=True)
class Style:
    """Thickness over the skull (top, sides, back), at the hairline, length below it, lumps; units of 10 cm."""

    name: str
    top: float
    side: float
    back: float
    edge: float = 0.03
    fringe: float = 0.0  # how far the front hairline comes down the forehead
    length: float = 0.0  # y at which hanging hair ends; 0: none hangs
    open: float = 62.0  # degrees to either side of the face that hanging hair leaves free
    lumps: float = 0.02
    part: float = 0.0  # side parting: height difference between the sides
    bun: float = 0.0
    shell: bool = True


STYLES: tuple[Style, ...] = (
    Style("bald", 0, 0, 0, shell=False),
    Style("cropped", 0.045, 0.03, 0.03, 0.012, lumps=0.004),
    Style("short", 0.16, 0.06, 0.08, 0.035, lumps=0.02),
    Style("quiff", 0.27, 0.05, 0.07, 0.06, lumps=0.03, part=0.05),
    Style("parted", 0.17, 0.10, 0.11, 0.05, fringe=0.04, lumps=0.015, part=0.09),
    Style("curly", 0.30, 0.26, 0.26, 0.10, fringe=0.03, lumps=0.055),
    Style("bob", 0.14, 0.16, 0.18, 0.07, fringe=0.20, length=0.62, open=58, lumps=0.012),
    Style("long", 0.12, 0.12, 0.15, 0.05, fringe=0.0, length=1.55, open=62, lumps=0.02, part=0.06),
    Style("fringe", 0.13, 0.13, 0.15, 0.07, fringe=0.24, length=1.3, open=60, lumps=0.012),
    Style("bun", 0.07, 0.06, 0.07, 0.02, lumps=0.008, bun=0.30),
)

# hairline: polar angle from the crown (degrees) at azimuths from the face's middle (degrees), alike on both sides
AZIMUTH = (0.0, 25.0, 45.0, 60.0, 70.0, 80.0, 90.0, 100.0, 120.0, 180.0)
HAIRLINE = (50.0, 51.0, 57.0, 66.0, 78.0, 90.0, 91.0, 96.0, 110.0, 114.0)


def hairline(azimuth: Array, style: Style, recede: float = 0.0) -> Array:
    """Polar angle (radians) from the crown at which the hair ends, at azimuths (radians) from the face's middle."""
    a = np.degrees(np.abs(azimuth))
    front = 1 - smoothstep(40, 68, a)
    recession = 10.0 * recede * np.exp(-(((a - 30) / 14) ** 2))
    return np.radians(np.interp(a, AZIMUTH, HAIRLINE) + 100 * style.fringe * front - recession)


def directions(style: Style, recede: float) -> tuple[Array, Array, Array]:
    """Unit directions (rows·columns, 3) of the shell; azimuth and share of the way to the hairline (rows, columns)."""
    azimuth = np.linspace(-np.pi, np.pi, HAIR_COLUMNS, endpoint=False)[None].repeat(HAIR_ROWS, 0)
    share = np.linspace(0, 1, HAIR_ROWS)[:, None].repeat(HAIR_COLUMNS, 1)
    polar = share * hairline(azimuth, style, recede)
    u = np.stack([np.sin(polar) * np.sin(azimuth), -np.cos(polar), -np.sin(polar) * np.cos(azimuth)], 2)
    return u.reshape(-1, 3).astype(np.float32), azimuth, share


def shell(skull: Array, u: Array, azimuth: Array, share: Array, style: Style, rng: np.random.Generator) -> Array:
    """Hair vertices ((HAIR_ROWS + CURTAIN_ROWS)·HAIR_COLUMNS, 3) over skull points (HAIR_ROWS·HAIR_COLUMNS, 3)."""
    back = smoothstep(-0.3, 0.9, -np.cos(azimuth))
    low = smoothstep(0.3, 0.95, share)
    thick = style.top * (1 - low) + low * (style.side * (1 - back) + style.back * back)
    thick = np.maximum(thick * (1 - smoothstep(0.72, 1.0, share)), 0) + style.edge * smoothstep(0.72, 1.0, share)
    thick += style.part * np.sin(azimuth) * np.sin(np.pi * share) * (1 if rng.random() < 0.5 else -1)
    for _ in range(4):
        across, along = rng.integers(2, 9), rng.uniform(2, 9)
        phase = rng.uniform(0, 2 * np.pi, 2)
        thick += style.lumps * np.sin(across * azimuth + phase[0]) * np.sin(along * share + phase[1]) * np.sqrt(share)
    cap = skull + u * np.maximum(thick, 0.008).reshape(-1, 1)
    cap = cap.reshape(HAIR_ROWS, HAIR_COLUMNS, 3)
    return np.concatenate([cap, curtain(cap[-1], azimuth[0], style, rng)]).reshape(-1, 3).astype(np.float32)


def curtain(edge: Array, azimuth: Array, style: Style, rng: np.random.Generator) -> Array:
    """Hair that hangs from the hairline (HAIR_COLUMNS, 3); (CURTAIN_ROWS, HAIR_COLUMNS, 3), flat where none hangs."""
    out = np.repeat(edge[None], CURTAIN_ROWS, 0)
    if not style.length:
        return out
    free = np.degrees(np.abs(azimuth)) > style.open
    t = np.linspace(0, 1, CURTAIN_ROWS + 1)[1:, None]
    end = style.length + rng.uniform(-0.12, 0.12) + 0.03 * np.sin(5 * azimuth + rng.uniform(0, 6))
    radius = np.hypot(edge[:, 0], edge[:, 2] - 0.3)
    target = np.maximum(radius, 0.80) + 0.06 * np.sin(np.pi * t) - 0.10 * t**3
    wave = style.lumps * np.sin(7 * azimuth + 5 * t + rng.uniform(0, 6))
    grow = (radius + (target - radius) * np.sqrt(t) + wave) / np.maximum(radius, 1e-3)
    hung = np.stack([edge[:, 0] * grow, edge[:, 1] + (end - edge[:, 1]) * t, 0.3 + (edge[:, 2] - 0.3) * grow], 2)
    return np.where(free[None, :, None], hung, out)


def bun(skull_top: Array, style: Style, sphere: Array) -> Array:
    """The bun's vertices: a sphere behind the crown, or all in one point (nothing drawn) for styles without one."""
    return (skull_top + np.array((0, 0.02, 0.28)) + sphere * style.bun).astype(np.float32)
