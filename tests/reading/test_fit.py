"""Pictures of synthetic heads are read back: exact ones exactly, blurred ones without imagining what blur took."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dex.batch import BLENDSHAPES as COLUMNS
from dex.data.synthetic.blendshapes import BLENDSHAPES, INDEX
from dex.data.synthetic.controls import (
    BLINK,
    CONTROLS,
    GAZE,
    LOWEST,
    NAMES,
    SHUT,
    sample_controls,
    to_blendshapes,
    to_controls,
)
from dex.data.synthetic.head import Head, make_head
from dex.data.synthetic.motion import sample_expression, sample_pose
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import identity_seed
from dex.reading.fit import Fit, blur, parameters, poses, read

COUNT = 16


def r2(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return 1 - ((found - truth) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)


@pytest.fixture(scope="module")
def asked() -> tuple[list[Head], np.ndarray, np.ndarray, Tensor]:
    """Heads, poses, controls, and the heads drawn so."""
    rng = np.random.default_rng(11)
    heads = [make_head(identity_seed("test", i)) for i in range(COUNT)]
    pose, controls = sample_pose(rng, COUNT), sample_controls(rng, COUNT)
    drawn = [
        render(head, to_blendshapes(controls[i : i + 1]), pose[i : i + 1], 64).image[0] for i, head in enumerate(heads)
    ]
    return heads, pose, controls, torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255


def read_from_nearby(heads: list[Head], pose: np.ndarray, pictures: Tensor) -> Fit:
    """From starts some 9° and a twentieth of the picture away."""
    off = np.random.default_rng(3).normal(size=(COUNT, 6)) * (0.12, 0.12, 0.08, 0.05, 0.05, 0.05)
    starts = torch.from_numpy(poses(parameters(torch.from_numpy(pose)) + off))
    return read(heads, pictures, starts[:, None], threads=2)


def test_exact_pictures_are_read_exactly(asked: tuple[list[Head], np.ndarray, np.ndarray, Tensor]) -> None:
    heads, pose, controls, pictures = asked
    found = read_from_nearby(heads, pose, pictures)
    truth = parameters(torch.from_numpy(pose))
    assert (r2(parameters(found.pose), truth) > 0.99).all()
    whole = 1 - ((found.controls.numpy() - controls) ** 2).sum() / ((controls - controls.mean(0)) ** 2).sum()
    assert whole > 0.93
    assert found.residual.max() < 0.03


def test_a_larger_picture_is_read_as_well(asked: tuple[list[Head], np.ndarray, np.ndarray, Tensor]) -> None:
    heads, pose, controls, _ = asked
    drawn = [
        render(head, to_blendshapes(controls[i : i + 1]), pose[i : i + 1], 128).image[0] for i, head in enumerate(heads)
    ]
    pictures = torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 255
    found = read(heads[:4], pictures[:4], torch.from_numpy(pose[:4])[:, None])
    assert np.abs(found.controls.numpy() - controls[:4]).mean() < 0.08


def test_blur_hides_expression_and_invents_none(asked: tuple[list[Head], np.ndarray, np.ndarray, Tensor]) -> None:
    heads, pose, controls, pictures = asked
    truth = parameters(torch.from_numpy(pose))
    sizes = []
    for deviation in (1.5, 5.0):
        found = read_from_nearby(heads, pose, blur(pictures, deviation))
        assert (r2(parameters(found.pose), truth) > 0.97).all(), deviation
        sizes.append(float(found.controls.std(dim=0).square().sum()))
    assert sizes[1] < 0.5 * sizes[0]  # what cannot be seen is the mean
    assert sizes[0] < 1.2 * float(controls.std(axis=0) @ controls.std(axis=0))


def test_the_nearest_start_begins(asked: tuple[list[Head], np.ndarray, np.ndarray, Tensor]) -> None:
    heads, pose, _, pictures = asked
    given = torch.from_numpy(pose)
    alone = read(heads[:3], pictures[:3], given[:3, None])
    among = read(heads[:3], pictures[:3], torch.stack([given[3:6], given[:3], given[6:9]], dim=1), threads=2)
    assert torch.equal(alone.pose, among.pose)
    assert torch.equal(alone.controls, among.controls)


def test_what_cannot_be_read_is_refused(asked: tuple[list[Head], np.ndarray, np.ndarray, Tensor]) -> None:
    heads, pose, _, pictures = asked
    starts = torch.from_numpy(pose)[:, None]
    with pytest.raises(ValueError, match="to_unit"):
        read(heads, pictures * 2 - 1, starts)
    with pytest.raises(ValueError, match="squares"):
        read(heads, pictures[..., :32], starts)
    with pytest.raises(ValueError, match="as many of each"):
        read(heads[1:], pictures, starts)
    with pytest.raises(ValueError, match="span"):
        read(heads, pictures * torch.nan, starts)


def test_controls_are_blendshapes_of_both_sides() -> None:
    drawn = sample_controls(np.random.default_rng(0), 2000)
    assert ((drawn >= LOWEST) & (drawn <= 1)).all()
    assert (drawn.std(0) > 0.1).all()
    assert not drawn[drawn[:, BLINK] > SHUT, GAZE].any()
    expression = to_blendshapes(drawn)
    assert expression.min() >= 0
    assert expression.max() <= 1
    np.testing.assert_allclose(to_controls(expression), drawn, atol=1e-6)
    for left in (name for name in BLENDSHAPES if name.endswith("Left") and not name.startswith(("jaw", "eyeLook"))):
        assert (expression[:, INDEX[left]] == expression[:, INDEX[left.replace("Left", "Right")]]).all()
    assert {name for ends in CONTROLS.values() for end in ends for name in end} <= set(COLUMNS) & set(BLENDSHAPES)
    assert to_controls(sample_expression(np.random.default_rng(1), 5)).shape == (5, len(NAMES))
