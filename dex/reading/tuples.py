"""The fixed questions that a model is asked: whose head, in which of two poses, with which of two expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dex.batch import FACE
from dex.data.synthetic.controls import sample_controls, to_blendshapes
from dex.data.synthetic.head import Head, make_head
from dex.data.synthetic.motion import FramingName, motion_track, sample_pose
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import YAW_STRATA, factorial, identity_seed, yaw_stratum
from dex.data.synthetic.surface import Array

EDITS = ("none", "pose", "expression")  # a's pose and expression; b's pose; b's expression
STRATA = tuple(f"{low:.0f}-{high:.0f}" for low, high in YAW_STRATA)


@dataclass(frozen=True)
class Asked:
    """N tuples of a source and two drivers a and b, three people."""

    source: Shaped[Tensor, "N 3 H W"]  # uint8, like the drivers' pictures
    driver: Shaped[Tensor, "2 N 3 H W"]  # a, b

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Tuples(Asked):
    """Tuples of synthetic heads that no training knows, and the truth about them; those of one source together."""

    heads: list[Head]  # of the sources
    source_pose: Float[Tensor, "N 3 4"]
    pose: Float[Tensor, "2 N 3 4"]
    controls: Float[Tensor, "2 N C"]
    truth: Shaped[Tensor, "3 N 3 H W"]  # the source's head after each of `EDITS`, uint8
    head: Bool[Tensor, "3 N H W"]  # where it is
    face: Bool[Tensor, "3 N H W"]
    each: int = 1  # tuples of a source

    def asked_pose(self, edit: str) -> Float[Tensor, "N 3 4"]:
        return self.pose[int(edit == "pose")]

    def asked_controls(self, edit: str) -> Float[Tensor, "N C"]:
        return self.controls[int(edit == "expression")]


def make_tuples(
    count: int,
    size: int,
    seed: int = 0,
    split: str = "val",
    stratum: str | None = None,
    framing: FramingName = "wide",
    drivers: int = 2,
) -> Tuples:
    """Tuples of `count` sources at size² pixels. Poses of the drivers as training has them, or with the yaw of one of
    `STRATA`.

    Of two `drivers` a source has one tuple, from a to b. Of D more it has D (D - 1), from the pose and expression of
    each to those of each other, in all D² combinations of a pose and an expression: the full factorial grid.
    Raises ValueError for a stratum that is none, and for fewer than two drivers.
    """
    if stratum is not None and stratum not in STRATA:
        raise ValueError(f"stratum {stratum!r}: need one of {', '.join(STRATA)}")
    if drivers < 2:
        raise ValueError(f"drivers {drivers}: need at least 2, to go from one to another")
    rng = np.random.default_rng([0x7A9, seed, STRATA.index(stratum) + 1 if stratum else 0])
    people = 1 + drivers
    heads = [[make_head(identity_seed(split, people * number + i)) for i in range(people)] for number in range(count)]
    drawn = [_of_one_source(rng, whose, size, stratum, framing) for whose in heads]
    columns = {name: torch.from_numpy(np.concatenate([one[name] for one in drawn])) for name in drawn[0]}
    for name in ("driver", "pose", "controls", "truth", "head", "face"):
        columns[name] = columns[name].transpose(0, 1).contiguous()
    each = len(columns["source"]) // count
    return Tuples(heads=[whose[0] for whose in heads for _ in range(each)], each=each, **columns)


def _of_one_source(
    rng: np.random.Generator, heads: list[Head], size: int, stratum: str | None, framing: FramingName
) -> dict[str, Array]:
    """The columns of its tuples."""
    whose, *drivers = heads
    people, count = len(heads), len(drivers)
    pose, controls = sample_pose(rng, people, framing), sample_controls(rng, people)
    if stratum is not None:
        pose[1:] = yaw_stratum(rng, count, YAW_STRATA[STRATA.index(stratum)], framing)
    expression = to_blendshapes(controls)
    source = render(whose, expression[:1], pose[:1], size).image[0]
    driving = [render(head, expression[i : i + 1], pose[i : i + 1], size).image[0] for i, head in enumerate(drivers, 1)]
    pairs = [(0, 1)] if count == 2 else list(permutations(range(count), 2))
    # Of the grid, where a row has one pose and a column one expression, the cells after each of `EDITS`.
    cells = np.array([[a * count + a, b * count + a, a * count + b] for a, b in pairs])
    drawn = np.unique(cells)  # all, but of two drivers the fourth
    grid_pose, grid_expression = factorial(pose[1:], expression[1:])
    truth = render(whose, grid_expression[drawn], grid_pose[drawn], size)
    cells = np.searchsorted(drawn, cells)
    return {
        "source": np.repeat(source.transpose(2, 0, 1)[None], len(pairs), 0),
        "driver": np.stack(driving).transpose(0, 3, 1, 2)[np.array(pairs)],
        "source_pose": np.repeat(pose[:1], len(pairs), 0),
        "pose": pose[1:][np.array(pairs)],
        "controls": controls[1:][np.array(pairs)],
        "truth": truth.image.transpose(0, 3, 1, 2)[cells],
        "head": (truth.mask > 0)[cells],
        "face": (truth.mask >= FACE)[cells],
    }


@dataclass(frozen=True)
class Faces:
    """Pictures to read codes from: each identity in several poses and expressions, which are independent."""

    pictures: Shaped[Tensor, "N 3 H W"]  # uint8
    pose: Float[Tensor, "N 3 4"]
    identity: list[int]

    def first(self, identities: int) -> Faces:
        """Those of the first identities."""
        count = sum(number < identities for number in self.identity)
        return Faces(self.pictures[:count], self.pose[:count], self.identity[:count])


def make_faces(
    identities: int, each: int, size: int, seed: int = 0, split: str = "val", framing: FramingName = "wide"
) -> Faces:
    """`identities` × `each` pictures, of other identities than `make_tuples` has. Fewer are the first of more."""
    rng = np.random.default_rng([0xFACE, seed])
    poses: list[Array] = []
    pictures: list[Array] = []
    first = 2**20
    for number in range(identities):
        poses.append(sample_pose(rng, each, framing))
        head = make_head(identity_seed(split, first + number))
        pictures.append(render(head, to_blendshapes(sample_controls(rng, each)), poses[-1], size).image)
    return Faces(
        torch.from_numpy(np.concatenate(pictures)).movedim(-1, 1),
        torch.from_numpy(np.concatenate(poses)),
        [number for number in range(identities) for _ in range(each)],
    )


def make_clip(frames: int, size: int, seed: int = 0, framing: FramingName = "wide") -> Shaped[Tensor, "F 3 H W"]:
    """A talking head of another identity than the tuples' sources, uint8, 12.5 frames a second."""
    pose, expression = motion_track(np.random.default_rng([0xC11B, seed]), frames, 12.5, framing)
    drawn = render(make_head(identity_seed("val", 2**20 - 1)), expression, pose, size)
    return torch.from_numpy(drawn.image).movedim(-1, 1)


def parts(count: int, at_once: int) -> Sequence[slice]:
    """Slices of 0 … count - 1."""
    return [slice(i, min(i + at_once, count)) for i in range(0, count, at_once)]
