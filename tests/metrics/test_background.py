"""Background drift: known drifts, the margin around the heads, and what must not be measured."""

import math

import pytest
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from dex.metrics import MetricError
from dex.metrics.background import BackgroundDrift, dilated

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


def pairs(background: float = 0.0, face: float = 0.2, count: int = 4) -> Pairs:
    """Pictures whose background and face change by so much; the head moves two pixels to the right."""
    unedited = 0.3 + 0.1 * torch.rand(count, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    heads = torch.zeros(count, 2, 64, 48, dtype=torch.bool)
    heads[:, 0, 20:44, 14:32], heads[:, 1, 20:44, 16:34] = True, True
    faces = torch.zeros(count, 64, 48, dtype=torch.bool)
    faces[:, 26:40, 18:30] = True
    head = heads.any(dim=1, keepdim=True)
    return unedited + torch.where(head, face * faces[:, None], background), unedited, heads, faces


def drift(given: Pairs, dilation: float = 0.03) -> float:
    metric = BackgroundDrift(dilation)
    metric.update(*given)
    return metric.compute().item()


def test_known_drifts() -> None:
    assert drift(pairs()) == 0
    assert drift(pairs(background=0.05)) == pytest.approx(0.25, rel=1e-5)
    assert drift(pairs(background=-0.05, face=0.1)) == pytest.approx(0.5, rel=1e-5)


def test_heads_of_both_pictures_and_a_margin_are_not_background() -> None:
    """Change in the columns just beside the union of heads counts only when the margin does not hold them."""
    edited, unedited, heads, faces = pairs()
    edited[:, :, 20:44, 32:34] += 0.3  # the head of one of them only
    edited[:, :, 20:44, 35] += 0.3
    assert drift((edited, unedited, heads, faces), dilation=2 / 48) == 0
    alone = drift((edited, unedited, heads, faces), dilation=0)
    assert alone == pytest.approx((0.3 * 24 / (64 * 48 - 24 * 20)) / 0.2, rel=1e-5)
    mask = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.98
    for radius in (0, 1, 3):
        square = torch.ones(2 * radius + 1, 2 * radius + 1).numpy()
        wanted = [torch.from_numpy(binary_dilation(m.numpy(), square)) for m in mask]
        assert dilated(mask, radius).equal(torch.stack(wanted))


def test_halves_add_up_to_the_whole() -> None:
    """Pictures weigh by their pixels, however they are split: states are sums."""
    edited, unedited, heads, faces = pairs(background=0.05)
    edited[0] = (edited[0] + 0.1).clamp(0, 1)
    faces[1, 30:] = False
    whole, halves = BackgroundDrift(), (BackgroundDrift(), BackgroundDrift())
    whole.update(edited, unedited, heads, faces)
    for metric, rows in zip(halves, (slice(0, 1), slice(1, 4)), strict=True):
        metric.update(edited[rows], unedited[rows], heads[rows], faces[rows])
    halves[0].merge_state(halves[1])
    assert halves[0].compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)
    assert whole.compute().item() != pytest.approx(drift(pairs(background=0.05)), rel=0.01)


def test_what_is_refused() -> None:
    edited, unedited, heads, faces = pairs()
    for given, said in (
        ((edited, unedited, torch.ones_like(heads), faces), "no pixel outside the heads"),
        ((edited, unedited, heads, torch.zeros_like(faces)), "no pixel inside the faces"),
        ((unedited, unedited, heads, faces), "changes nothing inside the faces"),
        ((edited * 255, unedited, heads, faces), "edited: pictures in"),
        ((edited, unedited * math.nan, heads, faces), "unedited: NaN"),
        ((edited, unedited[:2], heads, faces), r"unedited: \(2, 3, 64, 48\), need \(4, 3"),
        ((edited, unedited, heads[:, :1], faces), r"heads: \(4, 1, 64, 48\), need \(4, 2"),
        ((edited, unedited, heads, faces.float()), r"faces: masks are torch\.float32, need bool"),
    ):
        with pytest.raises(MetricError, match=said):
            drift(given)
    with pytest.raises(MetricError, match="no pixel"):
        BackgroundDrift().compute()
