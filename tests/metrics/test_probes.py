"""Probe leakage: codes with known content, ridge and kernel ridge by brute force, folds that keep groups apart."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dex.metrics import MetricError
from dex.metrics.probes import (
    ALPHAS,
    group_folds,
    identity_accuracy,
    kernel_r2,
    pose_leakage,
    pose_targets,
    ridge_r2,
)
from dex.pose import make_pose


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poses(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Poses of independent components, and these: rotation vector (by the matrix exponential), t_x, t_y, log s."""
    parts = noise(seed, count, 6) * torch.tensor([0.2, 0.4, 0.1, 0.1, 0.1, 0.15])
    (x, y, z), zero = parts[:, :3].T, torch.zeros(count)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).unflatten(1, (3, 3))
    shift = torch.nn.functional.pad(parts[:, 3:5], (0, 1))
    return make_pose(torch.linalg.matrix_exp(cross), shift, parts[:, 5].exp()), parts


def groups(count: int, number: int = 20) -> list[int]:
    return [i % number for i in range(count)]


def test_targets_are_the_parts_and_their_absolute_values() -> None:
    pose, parts = poses(0, 50)
    wanted = ((parts - parts.mean(0)) / parts.std(0, correction=0)).numpy()
    np.testing.assert_allclose(pose_targets(pose), np.hstack([wanted, abs(wanted)]), atol=1e-9)
    pose[:, :, 3] = torch.tensor([0.1, 0.2, 0.0])  # held fixed, but for the rounding of float32
    held = pose_targets(pose.float())
    assert (held[:, [3, 4, 9, 10]] == 0).all()
    assert ridge_r2(noise(0, 50, 3), held, groups(50)).isnan().nonzero().flatten().tolist() == [3, 4, 9, 10]


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_keep_groups_whole_and_balanced(folds: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 40)
    names = np.random.default_rng(1).permutation(np.repeat([f"id{i}" for i in range(40)], sizes)).tolist()
    fold = group_folds(names, folds)
    for name in set(names):
        assert len({int(f) for f, n in zip(fold, names, strict=True) if n == name}) == 1
    filled = fold.bincount()
    assert len(filled) == folds
    assert filled.max() - filled.min() <= 2
    assert fold.equal(group_folds(names, folds))
    assert not fold.equal(group_folds(names, folds, seed=1))
    with pytest.raises(MetricError, match="3 groups for 5 folds"):
        group_folds(["a", "b", "c", "a"])


def by_brute_force(codes: Tensor, target: Tensor, labels: list[int], gaussian: bool) -> float:
    """R² of one target: every leave-one-out refitted. Ridge by least squares on rows augmented with √α I, kernel ridge
    by its bordered system; both with a free intercept."""

    def features(part: np.ndarray, rows: np.ndarray) -> np.ndarray:
        x = codes.numpy()
        x = (x - x[part].mean(0)) / x[part].std(0)
        if not gaussian:
            return x[rows]
        apart = np.linalg.norm(x[part][:, None] - x[part][None], axis=-1)
        pairs = np.sort(apart[np.triu_indices(len(apart), 1)])
        width = pairs[(len(pairs) - 1) // 2]  # the lower of two medians
        return np.exp(-(np.linalg.norm(x[rows][:, None] - x[part][None], axis=-1) ** 2) / (2 * width**2))

    def fitted(x: np.ndarray, y: np.ndarray, rows: np.ndarray, alpha: float) -> np.ndarray:
        """Weights and intercept from some rows of the training part."""
        if gaussian:
            n = len(rows)
            system = np.block([[x[np.ix_(rows, rows)] + alpha * np.eye(n), np.ones((n, 1))], [np.ones(n), 0]])
            solved = np.linalg.solve(system, np.append(y[rows], 0))
            weights = np.zeros(x.shape[1] + 1)
            weights[np.append(rows, -1)] = solved
            return weights
        wide = x.shape[1]
        augmented = np.block([[x[rows], np.ones((len(rows), 1))], [alpha**0.5 * np.eye(wide), np.zeros((wide, 1))]])
        return np.linalg.lstsq(augmented, np.append(y[rows], np.zeros(wide)), rcond=None)[0]

    y, fold, predicted = target.numpy(), group_folds(labels).numpy(), np.empty(len(target))
    for number in range(5):
        part, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        x, inner = features(part, part), np.arange(len(part))
        losses = []
        for alpha in len(part) * ALPHAS.numpy():
            weights = [fitted(x, y[part], np.delete(inner, i), alpha) for i in inner]
            losses.append(sum((w[:-1] @ x[i] + w[-1] - y[part][i]) ** 2 for i, w in enumerate(weights)))
        chosen = fitted(x, y[part], inner, len(part) * ALPHAS.numpy()[np.argmin(losses)])
        predicted[test] = features(part, test) @ chosen[:-1] + chosen[-1]
    return 1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum()


@pytest.mark.parametrize("gaussian", [False, True])
def test_as_brute_force(gaussian: bool) -> None:
    codes = 3 + noise(0, 37, 3) * torch.tensor([1, 10, 0.1])
    targets = torch.stack([codes[:, 0] + noise(1, 37), (codes[:, 1] / 5).sin() + 0.3 * noise(2, 37)], dim=1)
    found = (kernel_r2 if gaussian else ridge_r2)(codes, targets, groups(37, 11))
    for value, target in zip(found.tolist(), targets.T, strict=True):
        assert value == pytest.approx(by_brute_force(codes, target, groups(37, 11), gaussian), abs=1e-6)
    assert found.max() > 0.3


def test_pose_in_the_code_is_found() -> None:
    pose, parts = poses(0, 400)
    told = parts @ noise(1, 6, 10)
    assert (ridge_r2(told, pose_targets(pose)[:, :6], groups(400)) > 0.999).all()
    half = (parts / parts.std(0) + noise(2, 400, 6)) @ noise(3, 6, 6)  # as much noise as signal
    assert ridge_r2(half, pose_targets(pose)[:, :6], groups(400)).mean().item() == pytest.approx(0.5, abs=0.06)


def test_the_angle_without_its_side_is_found() -> None:
    pose, parts = poses(0, 400)
    yaw = (parts[:, 1] - parts[:, 1].mean()).abs()[:, None]
    found = ridge_r2(torch.cat([yaw, noise(1, 400, 4)], dim=1), pose_targets(pose), groups(400))
    assert found[7] > 0.99
    assert found[[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]].max() < 0.03


def test_a_kernel_finds_what_a_line_does_not() -> None:
    """A code of yaw tells |yaw|, by no straight line."""
    pose, parts = poses(0, 400)
    yaw = parts[:, 1:2]
    found = pose_leakage(yaw, pose, groups(400))
    assert set(found) == {"ridge", "rbf"}
    line, kernel = (probe(yaw, pose_targets(pose), groups(400)) for probe in (ridge_r2, kernel_r2))
    assert found == pytest.approx({"ridge": line.mean().item(), "rbf": kernel.mean().item()})
    assert line[7] < 0.02
    assert kernel[7] > 0.85
    assert kernel[1] > 0.98


def test_nothing_is_found_in_independent_codes() -> None:
    pose, _ = poses(0, 500)
    for probe in (ridge_r2, kernel_r2):
        assert probe(noise(1, 500, 30), pose_targets(pose), groups(500)).max() < 0.02


def test_groups_do_not_tell_their_own_targets() -> None:
    """Codes that name the group, targets that are the group's: known by heart within groups, unknown across them."""
    label = torch.tensor(groups(600, 60))
    codes, targets = noise(0, 60, 20)[label] + 0.01 * noise(1, 600, 20), noise(2, 60, 3)[label]
    for probe in (ridge_r2, kernel_r2):
        assert probe(codes, targets, label.tolist()).max() < 0.1
    assert (kernel_r2(codes, targets, list(range(600))) > 0.9).all()


def test_normalised_by_what_the_pictures_tell() -> None:
    """Pictures of 1000 pixels that hold the pose beside noise of 20 dimensions; codes that tell half as much."""
    pose, parts = poses(0, 300)
    score = parts / parts.std(0)
    pictures = torch.cat([score, noise(1, 300, 20)], dim=1) @ noise(2, 26, 1000)
    told = pose_leakage(score, pose, groups(300), pictures)
    assert told["normalised"] == pytest.approx(1, abs=0.02)
    assert told["ceiling_ridge"] == pytest.approx(told["ridge"], abs=0.02)
    half = pose_leakage(score + noise(3, 300, 6), pose, groups(300), pictures)
    ratios = [half[name] / half[f"ceiling_{name}"] for name in ("ridge", "rbf")]
    assert half["normalised"] == pytest.approx(max(ratios))
    assert half["ridge"] < half["rbf"] < told["rbf"]
    with pytest.raises(MetricError, match=r"ridge reads R² 0\.0.* from pictures, need 0\.05"):
        pose_leakage(score, pose, groups(300), noise(4, 300, 50))


def test_identity_against_chance() -> None:
    """31 of 100 samples are of the first identity."""
    label = [0] * 31 + [1 + i % 6 for i in range(69)]
    centres = 3 * noise(0, 7, 16)
    assert identity_accuracy(centres[label] + noise(1, 100, 16), [f"id{i}" for i in label]) == (1.0, 0.31)
    accuracy, chance = identity_accuracy(noise(2, 100, 16), label)
    assert chance == 0.31
    assert abs(accuracy - chance) < 0.15


def test_what_is_refused() -> None:
    pose, _ = poses(0, 50)
    codes, holed = noise(0, 50, 4), noise(0, 50, 4)
    holed[3, 1] = math.nan
    with pytest.raises(MetricError, match="hold NaN"):
        pose_leakage(holed, pose, groups(50))
    with pytest.raises(MetricError, match="hold NaN"):
        pose_targets(pose * math.nan)
    with pytest.raises(MetricError, match="50 codes, 40 targets, 50 groups"):
        ridge_r2(codes, codes[:40], groups(50))
