"""AED, APD, influence and swap error: known answers, unreadable frames, processes that share a set unevenly."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.spatial.transform import Rotation
from torch import Tensor

from dex.metrics import MetricError
from dex.metrics.influence import Reading, distances_of, influence_of, leak, selectivity, swap_distances, swap_error
from dex.metrics.motion import ExpressionDistance, PoseDistance
from dex.pose import make_pose


def poses(seed: int, count: int) -> tuple[Tensor, Rotation]:
    random = np.random.default_rng(seed)
    rotation = Rotation.from_rotvec(random.normal(0, 0.4, (count, 3)))
    shift, scale = (
        torch.from_numpy(random.normal(0, 0.2, (count, 3))),
        torch.from_numpy(random.uniform(0.7, 1.4, count)),
    )
    return make_pose(torch.from_numpy(rotation.as_matrix()), shift, scale), rotation


def motion(seed: int, count: int = 50) -> Reading:
    return Reading(
        poses(seed, count)[0], torch.from_numpy(np.random.default_rng(seed + 1000).uniform(0, 1, (count, 5)))
    )


def test_angle_is_scipys() -> None:
    (a, first), (b, second) = poses(0, 30), poses(1, 30)
    metric = PoseDistance()
    metric.update(a, b)
    found = metric.compute()
    assert found["apd"].item() == pytest.approx(np.degrees((first.inv() * second).magnitude()).mean(), rel=1e-6)
    assert found["translation"].item() == pytest.approx((a[..., 3] - b[..., 3]).norm(dim=-1).mean().item(), rel=1e-6)
    scales = [np.cbrt(np.linalg.det(p[:, :, :3].numpy())) for p in (a, b)]
    assert found["log_scale"].item() == pytest.approx(np.abs(np.log(scales[0] / scales[1])).mean(), rel=1e-6)


def test_frames_without_a_face_are_left_out_and_counted() -> None:
    metric = ExpressionDistance()
    output, driver = torch.rand(2, 8, 5, generator=torch.Generator().manual_seed(0))
    output[2], driver[5, 1] = math.nan, math.nan
    metric.update(output, driver)
    metric.update(torch.full((4, 5), math.nan), driver[:4])
    found = metric.compute()
    kept = [0, 1, 3, 4, 6, 7]
    assert found["aed"].item() == pytest.approx((output[kept] - driver[kept]).abs().mean().item(), rel=1e-6)
    assert found["fail_rate"].item() == pytest.approx(6 / 12)
    nothing = ExpressionDistance()
    with pytest.raises(MetricError, match="no clip"):
        nothing.compute()
    nothing.update(torch.full((2, 5), math.nan), driver[:2])
    assert math.isnan(nothing.compute()["aed"])
    with pytest.raises(MetricError, match="need the same frames"):
        metric.update(output[:3], driver)


@pytest.mark.parametrize(
    ("model", "row", "apart"),
    [
        ("oracle", {"I_pp": 1, "I_ee": 1, "I_pe": 0, "I_ep": 0}, 1),
        ("joint code", {"I_pp": 1, "I_ee": 1, "I_pe": 1, "I_ep": 1}, 0),
        ("constant", {"I_pp": 0, "I_ee": 0, "I_pe": 0, "I_ep": 0}, 0),
    ],
)
def test_reference_models_give_the_rows_that_they_must(model: str, row: dict[str, float], apart: float) -> None:
    a, b = motion(0), motion(1)
    outputs = {
        "oracle": (a, Reading(b.pose, a.expression), Reading(a.pose, b.expression)),
        "joint code": (a, b, b),  # whichever is edited, both move
        "constant": (a, a, a),
    }
    found = influence_of(distances_of(*outputs[model], a, b).sum(dim=1))
    assert found == pytest.approx(row, abs=1e-5)
    assert selectivity(found) == pytest.approx(apart, abs=1e-5)


def test_cross_talk_is_the_estimators_and_the_weaker_control_counts() -> None:
    assert leak(0.5) == 0.5
    assert leak(0.1, 0.15) == 0
    assert leak(0.5, 0.3) == pytest.approx(math.sqrt((0.25 - 0.09) / 0.91))
    with pytest.raises(MetricError, match="cannot tell pose from expression"):
        leak(0.5, 1.0)
    dead = {"I_pp": 1.0, "I_pe": 0.0, "I_ep": 0.0, "I_ee": 0.05}  # a mean would call this half a success
    assert selectivity(dead) == pytest.approx(0.05)
    leaky = {"I_pp": 1.3, "I_pe": 0.4, "I_ep": 0.2, "I_ee": 0.9}
    assert selectivity(leaky) == pytest.approx(0.6)
    assert selectivity(leaky, {"I_pe": 0.4, "I_ep": 0.0}) == pytest.approx(0.7)


def test_drivers_that_do_not_differ_measure_nothing() -> None:
    a = motion(0)
    with pytest.raises(MetricError, match="do not differ"):
        influence_of(distances_of(a, a, a, a, a).sum(dim=1))
    with pytest.raises(MetricError, match="do not differ"):
        swap_error(swap_distances(a.expression, a.expression, a.expression).sum(dim=1))


def test_swap_error_between_right_and_followed_the_pose() -> None:
    a, b = motion(0).expression, motion(1).expression
    for output, want in ((b, 0.0), (a, 1.0), ((a + b) / 2, 0.5)):
        sums = swap_distances(output, a, b).sum(dim=1)
        assert swap_error(sums) == pytest.approx(want, abs=1e-9)
        # Of resampled sets at once, as intervals are computed.
        assert swap_error(torch.stack([sums, 2 * sums])) == pytest.approx([want, want], abs=1e-9)


def _share(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_measured([slice(0, 5)] if rank == 0 else [slice(5, 8), slice(8, 50)]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _measured(parts: list[slice]) -> dict[str, float]:
    """Every kind of state: sums of tensors, counts, matrices, and features that are gathered."""
    from dex.metrics.distributions import FrechetDistance, KernelDistance

    aed, frechet, kernel = ExpressionDistance(), FrechetDistance(5), KernelDistance(5)
    a, b = motion(0), motion(1)
    for part in parts:
        x, y = (m.expression[part] for m in (a, b))
        for i in range(len(x)):
            aed.update(x[i : i + 1], y[i : i + 1])
        for metric in (frechet, kernel):
            metric.update(x, real=True)
            metric.update(y, real=False)
    found = {**aed.compute(), "frechet": frechet.compute(), "kernel": kernel.compute()}
    return {name: float(value) for name, value in found.items()}


def test_two_processes_with_uneven_shares_measure_what_one_does(tmp_path: Path) -> None:
    mp.spawn(_share, args=(str(tmp_path),), nprocs=2)
    want = _measured([slice(0, 50)])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(want, rel=1e-9)
