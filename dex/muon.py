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


def orthogonalised(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """UVᵀ of the singular value decomposition USVᵀ, roughly, by Newton-Schulz iteration."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


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
        for parameter in matrices["params"]:
            if parameter.grad is not None:
                self._turn(parameter, matrices["lr"])
                parameter.grad = None  # Adam leaves alone what has none
        super().step()
        return loss

    def _turn(self, parameter: nn.Parameter, rate: float) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        ahead = parameter.grad.lerp(momentum, _MOMENTUM).flatten(1)  # Nesterov's
        rows, columns = ahead.shape
        parameter.sub_(orthogonalised(ahead).view_as(parameter), alpha=rate * max(1.0, rows / columns) ** 0.5)
