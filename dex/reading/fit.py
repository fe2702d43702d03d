"""Pose and expression of a picture of a synthetic head, read by drawing that head until it looks the same.

An estimator by analysis and synthesis. It knows whose head it is and in which poses to begin looking, needs no weights
and no training, and is exact where the picture is exact. What blur and error leave unsaid is answered by the mean of
all expressions, so that noise reads as no movement and not as some movement: least squares on pixels, with a prior on
the expression (a maximum a posteriori estimate), by damped Gauss-Newton steps from coarse to fine. The blur of the
picture is fitted too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dex.batch import EYES
from dex.data.synthetic.controls import BLINK, GAZE, LOWEST, NAMES, sample_controls, to_blendshapes
from dex.data.synthetic.head import Head
from dex.data.synthetic.motion import pose_matrix
from dex.data.synthetic.render import Rendered, render
from dex.data.synthetic.surface import Array
from dex.pose import pose_components

SIZE = 64  # pictures are read at this size
POSE = 6  # yaw, pitch, roll in radians, t_x, t_y, log s
PARAMETERS = POSE + len(NAMES)
_LOW = np.concatenate([(-1.2, -1.2, -1.2, -0.6, -0.6, -1.2), LOWEST])
_HIGH = np.concatenate([(1.2, 1.2, 1.2, 0.6, 0.6, 0.4), np.ones(len(NAMES))])
# Of the finite differences: far more than an 8-bit picture's rounding, less than a feature's width
_STEP = np.concatenate([np.full(3, 0.05), np.full(3, 0.03), np.full(len(NAMES), 0.2)])
_ROUNDING = 0.008  # deviation of what a drawn picture and its target differ by where nothing is wrong
_FEATURES = 4.0  # weight of eyes, brows and mouth over the rest of the head
_CONVERGED = 0.003  # a level ends when a step lowers its objective by less than this share
_SOFTNESS = (0.0, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)  # how blurred a model's picture may be, pixels
# One error of a model covers many pixels, which therefore do not speak for themselves.
_REPEATED = 16.0
# An open eye has no slope that leads to a shut one, nor a smile one to a frown: such leaps are tried as they are.
_LEAP = 0.35
_GAZES = (-0.8, 0.0, 0.8)  # an eye that looks far aside is darker, like a shut one


@dataclass(frozen=True)
class _Level:
    blur: float  # of picture and drawing, pixels
    linearisations: int  # at most; each draws as many pictures as there are parameters
    steps: int  # with the slopes of one, at most
    pose_only: bool = False
    nearness: float = 1.0  # of the neighbours whose differences are the slopes
    leaps: int = 0  # at most, before the first steps
    softest: float = math.inf  # skipped where the picture was found more blurred than this: it says no more there


_LEVELS = (
    _Level(4.0, 1, 1, pose_only=True),
    _Level(2.5, 2, 2, pose_only=True),
    _Level(1.5, 1, 2),
    _Level(0.7, 4, 3, leaps=4),
    _Level(0.5, 6, 3, nearness=0.5, leaps=4, softest=1.0),
)


@dataclass(frozen=True)
class Fit:
    """What N pictures show."""

    pose: Float[Tensor, "N 3 4"]
    controls: Float[Tensor, "N C"]
    residual: Float[Tensor, "N"]  # RMS difference to the drawing, over the head, slightly blurred; pixels in [0, 1]


def read(
    heads: Sequence[Head],
    pictures: Float[Tensor, "N 3 H W"],
    starts: Float[Tensor, "N K 3 4"],
    threads: int = 1,
) -> Fit:
    """Reads N square pictures in [0, 1], each of a known head.

    Args:
        heads: whose head each picture shows.
        pictures: outputs of a model, or renders.
        starts: poses that it may be in; the one whose drawing is nearest begins. The result does not depend on which
            one it was as long as it is the same valley: some 20°.
        threads: pictures at a time.

    Raises:
        ValueError: sizes or numbers that do not fit, or values outside [0, 1].
    """
    check(heads, pictures, starts)
    size = drawn_at(pictures)
    first = parameters(starts.detach().float().cpu().flatten(0, 1)).reshape(len(heads), -1, POSE)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(_read_one, heads, small(pictures.detach().float().cpu()), first, repeat(size)))
    settings = np.stack([setting for setting, _ in found])
    return Fit(
        torch.from_numpy(poses(settings)),
        torch.from_numpy(settings[:, POSE:].astype(np.float32)),
        torch.tensor([residual for _, residual in found]),
    )


def check(heads: Sequence[Head], pictures: Tensor, starts: Tensor) -> None:
    """Raises `ValueError` for what `read` cannot read."""
    number, _, height, width = pictures.shape
    if height != width:
        raise ValueError(f"pictures are {height}×{width}, need squares")
    if len(heads) != number or len(starts) != number:
        raise ValueError(f"{number} pictures, {len(heads)} heads, {len(starts)} starts: need as many of each")
    if not (pictures.min() >= 0 and pictures.max() <= 1):
        raise ValueError(
            f"pictures span [{pictures.min():g}, {pictures.max():g}], need [0, 1]: dex.batch.to_unit makes them so"
        )


def parameters(pose: Float[Tensor, "N 3 4"]) -> Array:
    """(N, 6): `pose_components`."""
    return pose_components(pose).double().numpy()


def poses(settings: Array) -> Array:
    """(N, 3, 4) of settings (N, ≥ 6)."""
    return pose_matrix(settings[:, 0], settings[:, 1], settings[:, 2], settings[:, 3:5], np.exp(settings[:, 5]))


@lru_cache(maxsize=1)
def prior() -> tuple[Array, Array]:
    """Mean and deviation (C,) of the expressions that there are."""
    drawn = sample_controls(np.random.default_rng(0), 20_000).astype(np.float64)
    return drawn.mean(0), drawn.std(0)


def draw(head: Head, settings: Array, size: int = SIZE) -> tuple[Float[Tensor, "N 3 S S"], Float[Tensor, "S S"]]:
    """The head at settings (N, P), in [0, 1], drawn at size² pixels and made small as pictures are; and what any of
    them covers: 0, 1, more for eyes and mouth."""
    drawn = render(head, to_blendshapes(settings[:, POSE:]), poses(settings), size)
    label = F.adaptive_max_pool2d(torch.from_numpy(drawn.mask).amax(0)[None].float(), SIZE)
    # An edge is half of a feature, and a misplaced head is seen beside itself.
    weight = F.max_pool2d((label > 0).float(), 5, 1, 2) + (_FEATURES - 1) * F.max_pool2d(
        (label >= EYES).float(), 3, 1, 1
    )
    return picture_of(drawn), weight[0]


def picture_of(drawn: Rendered) -> Float[Tensor, "N 3 S S"]:
    """In [0, 1], at the size at which pictures are compared."""
    return small(torch.from_numpy(drawn.image).movedim(-1, 1).float() / 255)


def neutral(heads: Sequence[Head], pose: Float[Tensor, "N 3 4"], size: int = SIZE) -> Float[Tensor, "N 3 S S"]:
    """Each head without expression, in its pose."""
    settings = np.concatenate([parameters(pose), np.zeros((len(heads), len(NAMES)))], 1)
    return torch.cat([draw(head, setting[None], size)[0] for head, setting in zip(heads, settings, strict=True)])


def drawn_at(pictures: Float[Tensor, "N 3 H W"]) -> int:
    """A renderer's own aliasing is part of a picture: large pictures are compared with large drawings."""
    return SIZE if pictures.shape[-1] <= SIZE else 2 * SIZE


def small(pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 S S"]:
    """At the size at which they are compared."""
    if pictures.shape[-1] == SIZE:
        return pictures
    return F.interpolate(pictures, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


def blur(pictures: Float[Tensor, "N 3 S S"], deviation: float) -> Float[Tensor, "N 3 S S"]:
    """Gaussian of a deviation in pixels; edges are repeated."""
    reach = math.ceil(2.5 * deviation)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    rows = pictures.flatten(0, 1)[:, None]
    rows = F.conv2d(F.pad(rows, (reach, reach, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    rows = F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernel.view(1, 1, -1, 1))
    return rows.view_as(pictures)


class _Problem:
    """One picture at one blur: the linearised least squares around a setting, and its objective."""

    def __init__(self, head: Head, picture: Float[Tensor, "3 S S"], size: int, deviation: float) -> None:
        self.head, self.size = head, size
        self.deviation, self.target = deviation, blur(picture[None], deviation)
        self.mean, self.spread = prior()
        self.softness = 0.0

    def residual(self, drawn: Float[Tensor, "N 3 S S"], weight: Float[Tensor, "S S"]) -> Float[Tensor, "N"]:
        """Weighted mean of squares."""
        square = (self.target - self.soft(drawn)).square().mean(dim=1)
        return (square * weight).sum(dim=(1, 2)) / weight.sum()

    def soft(self, drawn: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N 3 S S"]:
        """As blurred as the target."""
        return blur(drawn, math.hypot(self.deviation, self.softness))

    def linearise(self, setting: Array, level: _Level) -> None:
        """Draws the setting and its neighbours, one parameter moved a step: away from 0, but inwards where it is at its
        limit."""
        count = POSE if level.pose_only else PARAMETERS
        moved = np.repeat(setting[None], count + 1, 0)
        step = np.where(setting[:count] < 0, -1, 1) * _STEP[:count] * level.nearness
        moves_out = (setting[:count] + step > _HIGH[:count]) | (setting[:count] + step < _LOW[:count])
        step = np.where(moves_out, -step, step)
        moved[np.arange(1, count + 1), np.arange(count)] += step
        drawn, weight = draw(self.head, moved, self.size)
        errors = []
        for softness in _SOFTNESS:
            self.softness = softness
            errors.append(self.residual(drawn[:1], weight).item())
        self.softness = _SOFTNESS[int(np.argmin(errors))]
        soft = self.soft(drawn)
        slope = (soft[1:] - soft[:1]) / torch.from_numpy(step).float()[:, None, None, None]
        self.heavy = (weight / weight.mean()).sqrt()
        self.slope = (slope * self.heavy).flatten(1)
        difference = ((self.target - soft[:1]) * self.heavy).flatten()
        # Blurred pixels repeat each other: as many say something as blur leaves apart.
        repeated = max(1.0, 4 * (self.deviation**2 + self.softness**2)) * _REPEATED
        self.noise = max(difference.square().mean().item(), _ROUNDING**2) * repeated
        self.normal = (self.slope @ self.slope.T / self.noise).double().numpy()
        if count > POSE:
            self.normal[POSE:, POSE:] += np.diag(1 / self.spread**2)
        self.at(setting, difference)

    def difference(self, setting: Array) -> Float[Tensor, "D"]:
        """Target minus drawing, weighted as in the last linearisation."""
        drawn, _ = draw(self.head, setting[None], self.size)
        return ((self.target - self.soft(drawn)) * self.heavy).flatten()

    def objective(self, setting: Array, difference: Float[Tensor, "D"]) -> float:
        """Of the difference, and of expressions far from the mean; poses are all alike."""
        unusual = float((((setting[POSE:] - self.mean) / self.spread) ** 2).sum())
        return difference.square().sum().item() / self.noise + unusual

    def at(self, setting: Array, difference: Float[Tensor, "D"]) -> None:
        """Goes on from here, with the slopes of the last linearisation."""
        self.setting, self.value = setting, self.objective(setting, difference)
        self.pull = (self.slope @ difference / self.noise).double().numpy()
        if len(self.pull) > POSE:
            self.pull[POSE:] -= (setting[POSE:] - self.mean) / self.spread**2

    def step(self) -> bool:
        """Goes to a setting with a lower objective; False where damping finds none that is lower by `_CONVERGED`."""
        for damping in (0.01, 0.3, 3.0, 30.0):
            moved = self.setting.copy()
            damped = self.normal + damping * np.diag(np.diag(self.normal)) + 1e-9
            moved[: len(self.pull)] += np.linalg.solve(damped, self.pull)
            if self.goes_to(np.clip(moved, _LOW, _HIGH)):
                return True
        return False

    def leap(self) -> bool:
        """Puts the one control at rest, or moves it by `_LEAP`, that lowers the objective most, or opens the eyes to a
        gaze; False where none does."""
        count = len(NAMES)
        others = np.repeat(self.setting[None], 3 * count + len(_GAZES), 0)
        own = others[: 3 * count, POSE:].reshape(3, count, count)
        for kind, value in enumerate((np.zeros(count), self.setting[POSE:] - _LEAP, self.setting[POSE:] + _LEAP)):
            np.fill_diagonal(own[kind], value)
        others[3 * count :, POSE + BLINK] = 0
        others[3 * count :, POSE + GAZE] = _GAZES
        others = np.clip(others, _LOW, _HIGH)
        drawn, _ = draw(self.head, others, self.size)
        square = ((self.target - self.soft(drawn)) * self.heavy).square().flatten(1).sum(1).double().numpy()
        unusual = (((others[:, POSE:] - self.mean) / self.spread) ** 2).sum(1)
        return self.goes_to(others[(square / self.noise + unusual).argmin()])

    def goes_to(self, setting: Array) -> bool:
        """Whether the objective is lower there by more than `_CONVERGED`; then it is the setting."""
        difference = self.difference(setting)
        if self.objective(setting, difference) < (1 - _CONVERGED) * self.value:
            self.at(setting, difference)
            return True
        return False


def _read_one(head: Head, picture: Float[Tensor, "3 S S"], starts: Array, size: int) -> tuple[Array, float]:
    """Setting (P,) and residual."""
    candidates = np.concatenate([starts, np.repeat(prior()[0][None], len(starts), 0)], 1)
    candidates = np.clip(candidates, _LOW, _HIGH)
    drawn, weight = draw(head, candidates, size)
    setting = candidates[_Problem(head, picture, size, _LEVELS[0].blur).residual(drawn, weight).argmin().item()]
    problem = None
    for level in _LEVELS:
        if problem is not None and problem.softness > level.softest:
            continue
        problem = _Problem(head, picture, size, level.blur)
        for number in range(level.linearisations):
            problem.linearise(setting, level)
            if not number:
                leaps = 0
                while leaps < level.leaps and problem.leap():
                    leaps += 1
                if leaps:
                    problem.linearise(problem.setting, level)
            moved = [problem.step()]
            while moved[-1] and len(moved) < level.steps:
                moved.append(problem.step())
            setting = problem.setting
            if not moved[0]:
                break
    assert problem is not None  # there are levels
    drawn, weight = draw(head, setting[None], size)
    return setting, problem.residual(drawn, (weight > 0).float()).sqrt().item()
