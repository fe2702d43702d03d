"""What figures of disentanglement mean, in words: what is healthy, what leaks, and what usually causes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dex.reading.measure import why_not

LEAST_GAIN = 0.2  # a control that moves the output less than this is dead
MOST_LEAK = 0.2
MOST_PROBE = 0.2
HEALTHY = 0.5  # selectivity S
# softplus(D(Î)) + softplus(−D(I_d)): 1.39 where the discriminator is lost, near 0 where it tells every picture
WINNING = 0.1


@dataclass(frozen=True)
class Alarm:
    name: str
    found: str  # figure and threshold
    cause: str


@dataclass(frozen=True)
class _Rule:
    name: str
    figure: str
    wrong: Callable[[float], bool]
    threshold: str
    cause: str


_OTHER_VIEW = (
    "in stage 1 read it from another camera's view (data.second_view of synthetic heads, cross_view of shards), or "
    "strengthen pose_augmentation"
)
_RULES = (
    _Rule(
        "dead expression", "I_ee", lambda x: x < LEAST_GAIN, f"≥ {LEAST_GAIN}",
        "expression is drawn last, once pose is right and the face is sharp: train longer; weight eyes and mouth "
        "(loss.region_eyes, region_mouth, own_features; in stage 1 also clpips); weaken stage 1's pose_augmentation",
    ),
    _Rule(
        "dead pose", "I_pp", lambda x: x < LEAST_GAIN, f"≥ {LEAST_GAIN}",
        "stage 1's pose encoder has learned no rotation: set loss.pose, or optimisation.anchors_first; of a good one, "
        "train longer",
    ),
    _Rule(
        "pose drifts with expression", "L_pe", lambda x: x > MOST_LEAK, f"≤ {MOST_LEAK}",
        f"what draws takes pose out of the expression code: {_OTHER_VIEW}",
    ),
    _Rule(
        "expression drifts with pose", "L_ep", lambda x: x > MOST_LEAK, f"≤ {MOST_LEAK}",
        "the face is too blurred to hold one: train longer; or the pose carries expression: strengthen stage 1's "
        "expression_augmentation",
    ),
    _Rule(
        "pose leak into the code", "probe_r2/pose_from_expression", lambda x: x > MOST_PROBE, f"≤ {MOST_PROBE}",
        f"a probe reads the pose from the expression code: {_OTHER_VIEW}",
    ),
    _Rule(
        "identity leak into the code", "probe_r2/identity_from_expression", lambda x: x > MOST_PROBE, f"≤ {MOST_PROBE}",
        "a probe tells people apart by the expression code: in stage 1 narrow network.expression_dim, take more "
        "identities, more colour jitter",
    ),
    _Rule(
        "collapsed code", "code_deviation", lambda x: x < 1e-3, "≥ 0.001",
        "all faces have the same expression code: look at loss/expression and at the encoder's gradient norm",
    ),
    _Rule(
        "discriminator winning", "loss/discriminator", lambda x: x < WINNING, f"≥ {WINNING}",
        "it tells every picture and teaches nothing: lower its rate, raise loss.r1, or let it join later "
        "(adversarial_start)",
    ),
)  # fmt: skip


def alarms(figures: Mapping[str, float]) -> list[Alarm]:
    """What is wrong, of the figures that there are; one that is not a finite number always is."""
    found = [
        Alarm(name, str(value), "look at the losses of the last steps")
        for name, value in figures.items()
        if not math.isfinite(value)
    ]
    for rule in _RULES:
        value = figures.get(rule.figure, math.nan)
        if math.isfinite(value) and rule.wrong(value):
            found.append(Alarm(rule.name, f"{rule.figure} {value:.2f}, need {rule.threshold}", rule.cause))
    return found


def no_alarm(figures: Mapping[str, float], own: Mapping[str, float]) -> str:
    """What can be said where nothing is beyond its threshold: not that all is well where leaks are not known, or the
    weaker control is little ahead of its leak."""
    if why_not(own):
        return "no alarm, leaks not measured"
    ahead = figures.get("S", math.nan)
    return "healthy" if ahead >= HEALTHY else f"no alarm, but S is {ahead:.2f}, of healthy ones at least {HEALTHY}"


def verdict(figures: Mapping[str, float], own: Mapping[str, float], wrong: list[Alarm]) -> str:
    """Markdown: alarms with their likely causes, then every figure with its threshold."""
    broken = {alarm.name for alarm in wrong}
    lines = [f"**{alarm.name}**: {alarm.found}. {alarm.cause[0].upper()}{alarm.cause[1:]}.\n" for alarm in wrong]
    why = why_not(own)
    said = no_alarm(figures, own)
    lines = lines or [f"**{said}**{': both controls move what they should' if said == 'healthy' else ''}\n"]
    lines += ["| | figure | found | healthy |", "| --- | --- | --- | --- |"]
    for rule in _RULES:
        if rule.figure in figures:
            mark = "alarm" if {rule.name, rule.figure} & broken else "ok"
            lines.append(f"| {mark} | {rule.figure} | {figures[rule.figure]:.3f} | {rule.threshold} |")
    if why:
        lines.append(f"\nLeaks are not measurable on these tuples; {why}.")
    return "\n".join(lines)
