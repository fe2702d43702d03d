"""Muon against the singular value decomposition, and what of a network it takes."""

import pytest
import torch
from torch import nn

from dex.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (24, 24)])
def test_orthogonalised_keeps_directions_and_levels_their_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(torch.stack([torch.zeros_like(matrix), matrix]))[1]
    in_its_axes = u.T @ found @ v.T
    torch.testing.assert_close(in_its_axes, torch.diag(torch.diag(in_its_axes)), atol=1e-3, rtol=0)
    levels = torch.diag(in_its_axes)[s / s.norm() > 0.02]
    assert len(levels) > 6
    assert ((levels > 0.6) & (levels < 1.3)).all()


def test_matrices_take_steps_of_one_size_and_the_rest_is_adam() -> None:
    network, twin = (
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 3, 1), nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1))
        for _ in range(2)
    )
    twin.load_state_dict(network.state_dict())
    ours, adam = (
        Muon(network[:2].parameters(), 0.02, network[2:].parameters(), 1e-3),
        torch.optim.Adam(twin.parameters(), 1e-3),
    )
    picture = torch.randn(2, 16, 8, 8)
    for net, optimizer in ((network, ours), (twin, adam)):
        net(picture).square().sum().backward()
        optimizer.step()
    before = twin[0].weight.detach().clone()
    # vectors, a picture's three channels, and what was asked to be Adam's
    for index, name in ((0, "bias"), (1, "weight"), (1, "bias"), (2, "weight"), (3, "weight")):
        torch.testing.assert_close(getattr(network[index], name), getattr(twin[index], name))
    assert not torch.allclose(network[0].weight, before)
    moved = ours.state[network[0].weight]["momentum"]
    assert moved.shape == network[0].weight.shape
    assert network[0].weight.grad is None


def test_a_matrix_is_fitted() -> None:
    torch.manual_seed(0)
    layer, wanted = nn.Linear(32, 16, bias=False), torch.randn(16, 32)
    optimizer = Muon(layer.parameters(), 0.05, [torch.nn.Parameter(torch.zeros(1))], 1e-3)
    inputs = torch.randn(256, 32)
    losses = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        loss = (layer(inputs) - inputs @ wanted.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
