"""Progressive hybrid guidance: how much each branch of the denoiser counts at a step (DeX-Portrait, sec. 3.3).

With t counting down from 35, c|exp the condition without expression, and ε̃(z, c) = ε(z, ∅) + w (ε(z, c) − ε(z, ∅)):

    30 < t ≤ 35    ε̃(z, c|exp)
    25 < t ≤ 30    ε̃(z, c|exp) (t − 25)/5 + ε̃(z, c) (30 − t)/5
         t ≤ 25    ε̃(z, c)

Pose and identity are settled while the picture is still coarse; the expression, which could bend them, joins later.
"""

from __future__ import annotations

from typing import Literal

Branch = Literal["none", "no_expression", "full"]

# The number of steps that `delay` and `blend` are counted in, whatever number is taken.
PAPER_STEPS = 35


def branch_weights(step: int, steps: int, *, scale: float, delay: int = 5, blend: int = 5) -> dict[Branch, float]:
    """Weights of ε(z, ∅), ε(z, c|exp) and ε(z, c) at a step, by name; they add up to 1. A branch of weight 0 is absent
    and need not be evaluated.

    Args:
        step: 0 … steps − 1, as time goes on: t = steps − step.
        steps: how many there are. The rule scales with it: with 70 steps everything lasts twice as long.
        scale: w ≥ 0; 1 is no guidance (ε(z, ∅) is absent), 0 is no condition.
        delay: S, how many of 35 steps go without expression.
        blend: how many of 35 steps it takes to come in; its first step still has expression at weight 0. 0: at once.

    Raises `ValueError` for numbers out of range.
    """
    check_guidance(scale, delay, blend)
    if not 0 <= step < steps:
        raise ValueError(f"step {step} of {steps}: steps are counted from 0 to steps - 1")
    # In whole numbers up to the division, so that a weight that should be 0 or 1 is exactly that.
    late = PAPER_STEPS * step - delay * steps
    share = min(max(late / (blend * steps), 0.0), 1.0) if blend else float(late >= 0)
    weights: dict[Branch, float] = {"none": 1 - scale, "no_expression": scale * (1 - share), "full": scale * share}
    return {branch: weight for branch, weight in weights.items() if weight != 0}


def check_guidance(scale: float, delay: int, blend: int) -> None:
    """Raises `ValueError` where `branch_weights` has no meaning."""
    if not 0 <= scale < float("inf"):
        raise ValueError(f"guidance scale is {scale}, need a number from 0 up; 1 is no guidance")
    if delay < 0 or blend < 0 or delay + blend > PAPER_STEPS:
        raise ValueError(
            f"guidance delay is {delay} and blend {blend}: each must be at least 0 and both together at most "
            f"{PAPER_STEPS}, the number of steps they are counted in (they scale with the number taken)"
        )
