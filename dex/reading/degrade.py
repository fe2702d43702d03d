"""Renders of synthetic heads as a model in training would draw them: somebody else's features, wrong hair, blurred,
displaced, in wrong colours. What `dex.reading.regressor` is taught on, with the truth that is known of the render."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from dex.batch import FACE
from dex.data.synthetic.controls import NAMES, sample_controls, to_blendshapes
from dex.data.synthetic.head import Head
from dex.data.synthetic.motion import FRAMINGS, sample_pose
from dex.data.synthetic.render import render
from dex.data.synthetic.surface import Array
from dex.reading.fit import POSE, SIZE, parameters, picture_of, poses

EACH = 4  # expressions and poses of a head
# Deviations by which a fit misses the pose of a bad picture: radians, normalised units, nats
_MISSED = np.array([0.05, 0.05, 0.03, 0.015, 0.015, 0.03])


@dataclass(frozen=True)
class Degraded:
    """N pictures, what was drawn, and the neutral drawing of the head they are of, in a pose near the true one."""

    heads: list[Head]
    pictures: Float[Tensor, "N 3 S S"]
    neutral: Float[Tensor, "N 3 S S"]
    pose: Float[Tensor, "N 3 4"]  # of the neutral drawing
    controls: Float[Tensor, "N C"]


def make(rng: np.random.Generator, heads: list[Head], number: int, exact: bool = False) -> Degraded:
    """`EACH` pictures of each of `number` heads, half of them in each framing, a quarter drawn at twice the size.

    `exact`: nothing is degraded. Deterministic in the generator's state.
    """
    drawn: list[Degraded] = []
    masks: list[Tensor] = []
    for _ in range(number):
        head, other = (heads[chosen] for chosen in rng.choice(len(heads), 2, replace=False))
        share = 0.0 if exact or rng.random() < 0.3 else rng.uniform(0, 0.7)
        framing, size = rng.choice(sorted(FRAMINGS)), SIZE * (1 + (rng.random() < 0.25))
        controls, pose = sample_controls(rng, EACH), sample_pose(rng, EACH, framing)
        shown = render(blend(head, other, share) if share else head, to_blendshapes(controls), pose, size)
        missed = rng.normal(size=(EACH, POSE)) * _MISSED * rng.uniform(0, 1.5, (EACH, 1)) * (not exact)
        near = poses(parameters(torch.from_numpy(pose)) + missed)
        neutral = render(head, to_blendshapes(np.zeros((EACH, len(NAMES)), np.float32)), near, size)
        drawn.append(
            Degraded(
                [head] * EACH, picture_of(shown), picture_of(neutral), torch.from_numpy(near), torch.tensor(controls)
            )
        )
        masks.append(F.adaptive_max_pool2d(torch.from_numpy(shown.mask)[:, None].float(), SIZE))
    together = {name: torch.cat([getattr(one, name) for one in drawn]) for name in ("neutral", "pose", "controls")}
    pictures = torch.cat([one.pictures for one in drawn])
    if not exact:
        generator = Generator().manual_seed(int(rng.integers(2**31)))
        pictures = degraded(pictures, torch.cat(masks), generator)
    return Degraded([head for one in drawn for head in one.heads], pictures, **together)


def blend(head: Head, other: Head, share: float) -> Head:
    """The head with a share of another's features and colours."""

    def between(one: Array, two: Array) -> Array:
        return ((1 - share) * one + share * two).astype(one.dtype)

    return dataclasses.replace(
        head,
        vertices=between(head.vertices, other.vertices),
        eyes=between(head.eyes, other.eyes),
        albedo=between(head.albedo, other.albedo),
        textures=between(head.textures, other.textures),
        light=between(head.light, other.light),
    )


def degraded(
    pictures: Float[Tensor, "N 3 S S"], mask: Float[Tensor, "N 1 S S"], generator: Generator
) -> Float[Tensor, "N 3 S S"]:
    """Each picture by itself, and many only in part. `mask`: labels of the renderer."""
    count = len(pictures)

    def sometimes(share: float, low: float, high: float) -> Float[Tensor, "N 1 1 1"]:
        """Uniform between `low` and `high` for a share of the pictures, 0 for the others."""
        drawn, chosen = torch.rand(2, count, 1, 1, 1, generator=generator)
        return (low + (high - low) * drawn) * (chosen < share)

    def field(channels: int, cells: int) -> Float[Tensor, "N c S S"]:
        """Smooth noise of deviation near 1."""
        coarse = torch.randn(count, channels, cells, cells, generator=generator)
        return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)

    # Hair and background are another's in part, and more blurred than the face.
    face = soft((mask >= FACE).float(), torch.full((count, 1, 1, 1), 1.5))
    around = torch.lerp(pictures, pictures[torch.randperm(count, generator=generator)], sometimes(0.5, 0, 0.8))
    softness = sometimes(0.7, 0, 2.5) + sometimes(0.3, 0, 1.5)
    found = torch.lerp(soft(around, softness + sometimes(0.6, 0, 4)), soft(pictures, softness), face)
    # Features are displaced.
    grid = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 3, SIZE, SIZE], align_corners=False)
    for cells, most in ((4, 0.05), (10, 0.02)):
        grid = grid + (field(2, cells) * sometimes(0.6, 0, most)).movedim(1, -1)
    found = F.grid_sample(found, grid, padding_mode="border", align_corners=False)
    # Colours are off, more in brightness than in hue; contrast too.
    for cells, most in ((2, 0.1), (5, 0.08), (12, 0.05)):
        found = found + (0.4 * field(3, cells) + 0.8 * field(1, cells)) * sometimes(0.6, 0, most)
    mean = found.mean(dim=(1, 2, 3), keepdim=True)
    found = torch.lerp(found, mean, sometimes(0.6, -0.25, 0.35))
    noise = torch.randn(found.shape, generator=generator)
    return (found + noise * sometimes(0.3, 0, 0.02)).clamp(0, 1)


def soft(pictures: Float[Tensor, "N c S S"], deviation: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N c S S"]:
    """Gaussian blur, of each picture by its own deviation in pixels; of 0.15 and less none."""
    at = torch.arange(pictures.shape[-1])
    distance = (at[:, None] - at).square()
    kernel = torch.exp(-distance / (2 * deviation.clamp_min(0.15) ** 2))
    kernel = kernel / kernel.sum(dim=-1, keepdim=True)
    return kernel @ pictures @ kernel.mT
