"""Poses and expressions to draw: independent samples, and smooth tracks of a talking head.

Pose never depends on expression.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dex.data.shards import CropContract
from dex.data.synthetic.blendshapes import BLENDSHAPES, INDEX
from dex.data.synthetic.surface import Array

FramingName = Literal["wide", "close"]


@dataclass(frozen=True)
class Framing:
    """Where heads sit in their pictures, and how far they turn."""

    degrees: tuple[float, float, float]  # largest yaw, pitch, roll
    scale: tuple[float, float]  # of the pose, smallest and largest
    middle_scale: float
    shift: float  # largest, from `centre`
    centre: tuple[float, float]  # of the head's frame
    margin: float  # of the crop that cuts such pictures, on the average
    shift_up: float


# wide: hair and shoulders stay inside, a face has a third of the width. close: the face fills the picture, as crops of
# faces do, and looks into the camera more or less; at 64² only these have enough pixels for an eye.
FRAMINGS: dict[FramingName, Framing] = {
    "wide": Framing((45.0, 25.0, 20.0), (0.60, 0.82), 0.72, 0.16, (0.0, 0.08), margin=1.65, shift_up=0.07),
    "close": Framing((30.0, 15.0, 15.0), (0.85, 1.05), 0.95, 0.06, (0.0, -0.02), margin=1.2, shift_up=0.0),
}
_WIDE = FRAMINGS["wide"]


def crop_contract(size: int, framing: FramingName = "wide") -> CropContract:
    """Of pictures of these poses: there is no rule, the heads move inside their frame; the margin is the mean."""
    chosen = FRAMINGS[framing]
    return CropContract("synthetic.v1", size, margin=chosen.margin, shift_up=chosen.shift_up)


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


def sample_pose(rng: np.random.Generator, n: int, framing: FramingName = "wide") -> Array:
    """n independent poses (n, 3, 4), uniform, in one of `FRAMINGS`; wide: yaw ±45°, pitch ±25°, roll ±20°."""
    chosen = FRAMINGS[framing]
    yaw, pitch, roll = (np.radians(rng.uniform(-limit, limit, n)) for limit in chosen.degrees)
    low, high = np.log(chosen.scale)
    shift = rng.uniform(-chosen.shift, chosen.shift, (n, 2)) + chosen.centre
    return pose_matrix(yaw, pitch, roll, shift, np.exp(rng.uniform(low, high, n)))


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


def band_limited(rng: np.random.Generator, frames: int, fps: float, low: float, high: float) -> Array:
    """Smooth noise (frames,) of unit deviation between two frequencies in Hz: a sum of 24 seeded sinusoids."""
    frequency = np.exp(rng.uniform(np.log(low), np.log(high), 24))
    phase, gain = rng.uniform(0, 2 * np.pi, 24), rng.standard_normal(24)
    seconds = np.arange(frames) / fps
    wave = gain @ np.sin(2 * np.pi * frequency[:, None] * seconds + phase[:, None])
    return wave / np.sqrt((gain**2).sum() / 2)


def bounded(wave: Array, limit: float, share: float) -> Array:
    """Squash a wave of unit deviation into ±limit; a deviation of 1 reaches `share` of it."""
    return limit * np.tanh(share * wave)


def motion_track(
    rng: np.random.Generator, frames: int, fps: float = 25.0, framing: FramingName = "wide"
) -> tuple[Array, Array]:
    """A talking head: poses (frames, 3, 4) and expressions (frames, E), smooth but for blinks and saccades.

    The head turns below 0.8 Hz within `sample_pose`'s range; the mouth talks in phrases at 2–5 Hz; blinks last
    about 0.3 s and come every 2–5 s; the eyes jump every 0.4–2.5 s.
    """
    if frames < 1 or fps <= 0:
        raise ValueError(f"frames {frames}, fps {fps}: need at least one frame and a positive rate.")
    return pose_track(rng, frames, fps, FRAMINGS[framing]), expression_track(rng, frames, fps)


def pose_track(rng: np.random.Generator, frames: int, fps: float, framing: Framing) -> Array:
    """Smooth poses (frames, 3, 4) about a resting pose that may look aside."""

    def sway(limit: float, share: float) -> Array:
        slow, fast = band_limited(rng, frames, fps, 0.04, 0.25), band_limited(rng, frames, fps, 0.25, 0.8)
        return bounded(rng.normal(0, 0.5) + slow + 0.3 * fast, limit, share)

    yaw, pitch, roll = (np.radians(sway(limit, 0.6)) for limit in framing.degrees)
    shift = np.stack([sway(framing.shift, 0.4), sway(framing.shift, 0.4)], 1) + framing.centre
    low, high = np.log(framing.scale)
    middle, half = (low + high) / 2, (high - low) / 2
    return pose_matrix(yaw, pitch, roll, shift, np.exp(middle + sway(half, 0.4)))


def expression_track(rng: np.random.Generator, frames: int, fps: float) -> Array:
    """Talking, moods, blinks and saccades, (frames, E) in [0, 1]."""
    out = np.zeros((frames, len(BLENDSHAPES)), np.float32)

    def wave(low: float, high: float) -> Array:
        return band_limited(rng, frames, fps, low, high)

    def mood(names: str, peak: float, threshold: float = 0.3) -> None:
        value = peak * np.clip(wave(0.08, 0.35) - threshold, 0, 1)
        for name in names.split():
            out[:, INDEX[name]] = np.clip(value * rng.uniform(0.8, 1.2), 0, 1)

    phrase = np.clip(0.8 + 1.2 * wave(0.1, 0.5), 0, 1)
    out[:, INDEX["jawOpen"]] = np.clip(phrase * (0.34 + 0.34 * wave(2.0, 5.0)), 0, 1)
    for name, peak in (("mouthFunnel", 0.7), ("mouthPucker", 0.8)):
        out[:, INDEX[name]] = np.clip(phrase * peak * np.clip(wave(0.8, 2.5) - 0.4, 0, 1), 0, 1)
    mood("mouthSmileLeft mouthSmileRight", 1.0)
    mood("mouthFrownLeft mouthFrownRight", 0.8, 0.8)
    mood("browInnerUp", 1.0, 0.5)
    mood("browDownLeft browDownRight", 1.0, 0.5)
    mood("browOuterUpLeft browOuterUpRight", 0.9, 0.5)
    mood("jawLeft", 0.5, 1.0)
    mood("jawRight", 0.5, 1.0)
    mood("cheekPuff", 0.8, 1.2)
    out[:, INDEX["eyeBlinkLeft"]] = out[:, INDEX["eyeBlinkRight"]] = blinks(rng, frames, fps)
    set_gaze(out, saccades(rng, frames, fps), 0.8 * saccades(rng, frames, fps))
    return out


def blinks(rng: np.random.Generator, frames: int, fps: float) -> Array:
    """Eyelid closure (frames,): 0.1 s down, 0.2 s up, every 2–5 s."""
    seconds, out = np.arange(frames) / fps, np.zeros(frames, np.float32)
    at = rng.uniform(0.2, 2.5)
    while at < seconds[-1] + 1:
        t = seconds - at
        out = np.maximum(out, np.clip(np.where(t < 0, 1 + t / 0.10, 1 - (t - 0.04) / 0.18), 0, 1))
        at += rng.uniform(2, 5)
    return out


def saccades(rng: np.random.Generator, frames: int, fps: float) -> Array:
    """Gaze in −1…1 (frames,): held still, then a jump within about 0.06 s."""
    out, held, at = np.zeros(frames, np.float32), 0.0, 0
    while at < frames:
        target = held if rng.random() < 0.3 else float(np.clip(rng.normal(0, 0.5), -1, 1))
        end = min(at + max(int(rng.uniform(0.4, 2.5) * fps), 1), frames)
        ramp = np.clip((np.arange(end - at) + 1) / max(0.06 * fps, 1), 0, 1)
        out[at:end] = held + (target - held) * ramp
        held, at = target, end
    return out


def view_of(rng: np.random.Generator, track: Array) -> Array:
    """The same head motion (T, 3, 4) seen by another camera: turned by up to 35° sideways, framed anew."""
    yaw, pitch = np.radians((rng.choice((-1, 1)) * rng.uniform(12, 35), rng.uniform(-8, 8)))
    camera = pose_matrix(np.array([yaw]), np.array([pitch]), np.zeros(1), np.zeros((1, 2)), np.ones(1))[0, :, :3]
    zoom = np.exp(rng.uniform(-0.06, 0.06))
    out = np.zeros_like(track)
    out[:, :, :3] = zoom * camera @ track[:, :, :3]
    out[:, :2, 3] = zoom * (track[:, :2, 3] - _WIDE.centre) + _WIDE.centre + rng.uniform(-0.04, 0.04, 2)
    return out
