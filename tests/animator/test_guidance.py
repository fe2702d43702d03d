"""Progressive hybrid guidance against the formula of the method, step by step."""

import pytest

from dex.animator.guidance import branch_weights

BRANCHES = ("none", "no_expression", "full")


def formula(t: int, w: float) -> tuple[float, float, float]:
    """The paper's rule with t counting down from 35, as coefficients of (ε(z, ∅), ε(z, c|exp), ε(z, c))."""
    without = (1 - w, w, 0.0)  # ε̃(z, c|exp) = ε(z, ∅) + w (ε(z, c|exp) − ε(z, ∅))
    whole = (1 - w, 0.0, w)
    if 30 < t <= 35:
        return without
    if 25 < t <= 30:
        return tuple(a * (t - 25) / 5 + b * (30 - t) / 5 for a, b in zip(without, whole, strict=True))
    return whole


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, 7.5])
def test_every_step_of_the_paper(w: float) -> None:
    for step, t in enumerate(range(35, 0, -1)):
        weights = branch_weights(step, 35, scale=w, delay=5, blend=5)
        assert [weights.get(branch, 0.0) for branch in BRANCHES] == pytest.approx(formula(t, w))
        assert 0 not in weights.values()


@pytest.mark.parametrize("factor", [2, 3])
def test_the_rule_scales_with_the_number_of_steps(factor: int) -> None:
    for step in range(35):
        assert branch_weights(factor * step, factor * 35, scale=3) == branch_weights(step, 35, scale=3)
    assert len(branch_weights(2, 20, scale=3)) == 2  # 5 of 35 steps are 2.9 of 20
    assert branch_weights(3, 20, scale=3)["full"] == pytest.approx(3 * (3 * 35 / 20 - 5) / 5)
    assert "no_expression" not in branch_weights(6, 20, scale=3)


def test_how_many_branches_there_are() -> None:
    """The blend's first step, t = 30, has weight (30 − 30)/5 = 0 on ε̃(z, c) and needs two."""
    counts = [len(branch_weights(step, 35, scale=2.0)) for step in range(35)]
    assert counts == [2] * 5 + [2] + [3] * 4 + [2] * 25
    without_guidance = [set(branch_weights(step, 35, scale=1.0)) for step in range(35)]
    assert without_guidance == [{"no_expression"}] * 6 + [{"no_expression", "full"}] * 4 + [{"full"}] * 25
    assert branch_weights(0, 35, scale=0.0) == {"none": 1.0}


@pytest.mark.parametrize(
    ("delay", "blend", "first_full", "last_without"),
    [(0, 0, 0, -1), (0, 5, 1, 4), (5, 0, 5, 4), (10, 5, 11, 14), (30, 5, 31, 34), (35, 0, 35, 34), (0, 35, 1, 34)],
)
def test_edges(delay: int, blend: int, first_full: int, last_without: int) -> None:
    weights = [branch_weights(step, 35, scale=2.0, delay=delay, blend=blend) for step in range(35)]
    assert [step for step in range(35) if "full" in weights[step]] == list(range(first_full, 35))
    assert [step for step in range(35) if "no_expression" in weights[step]] == list(range(last_without + 1))
    assert all(sum(weight.values()) == pytest.approx(1) for weight in weights)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"scale": -1.0}, "from 0 up"),
        ({"scale": float("nan")}, "from 0 up"),
        ({"delay": -1}, "at least 0"),
        ({"delay": 31}, "at most 35"),
        ({"step": 35}, "counted from 0"),
    ],
)
def test_what_is_allowed_is_said(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        branch_weights(**{"step": 0, "steps": 35, "scale": 2.0, **wrong})
