"""Muon: momentum whose every singular value is made one, for the weights that are matrices (Jordan et al. 2024).

A step of gradient descent in the spectral norm: all directions of a layer learn at one speed, where Adam follows the
few large ones. What draws, and what reads expressions, learns in fewer steps so (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOMENTUM = 0.95
# Five steps of this quintic bring singular values between 0.01 and 1 to between 0.7 and 1.2 (Jordan et al. 2024).
_QUINTIC, _STEPS = (3.4445, -4.7750, 2.0315), 5
_NARROWEST = 8  # below, as for pictures' three channels, there is little to orthogonalise


def orthogonalised(matrices: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """UVᵀ of each one's singular value decomposition USVᵀ, roughly, by Newton-Schulz iteration."""
    a, b, c = _QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Adam):
    """Muon where a weight is a matrix (a convolution's: output channels by everything else), Adam for the rest.

    Of weights that ranks share out it would orthogonalise the parts; whoever shards must not use it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float,
        others: Iterable[nn.Parameter],
        adam_rate: float,
        **adam: Any,
    ) -> None:
        """Of `parameters` those that are no matrices go to Adam too. `rate` is Muon's, about 0.02; `adam` goes to
        `torch.optim.Adam`."""
        every = list(parameters)
        matrices = [p for p in every if p.dim() > 1 and min(p.flatten(1).shape) >= _NARROWEST]
        chosen = set(map(id, matrices))
        left = [*(p for p in every if id(p) not in chosen), *others]
        groups: list[dict[str, Any]] = [{"params": matrices, "lr": rate}, {"params": left}]
        super().__init__(groups, adam_rate, **adam)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        matrices = self.param_groups[0]
        alike: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                rows = len(parameter)
                alike.setdefault((rows, parameter.numel() // rows), []).append(parameter)
        for same in alike.values():
            self._turn(same, matrices["lr"])
        super().step()
        return loss

    def _turn(self, parameters: list[nn.Parameter], rate: float) -> None:
        """Those of one shape at once: most are so small that the calls cost more than the sums."""
        ahead = torch.stack([self._ahead(parameter).flatten(1) for parameter in parameters])
        rows, columns = ahead.shape[1:]
        step = rate * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, orthogonalised(ahead), strict=True):
            parameter.sub_(direction.view_as(parameter), alpha=step)
            parameter.grad = None  # Adam leaves alone what has none

    def _ahead(self, parameter: nn.Parameter) -> Tensor:
        """The gradient with Nesterov's momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        return parameter.grad.lerp(momentum, _MOMENTUM)
