"""Result files of the controlled experiment as one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.controlled.measuring import REFERENCES, SQUARES, metric_id, squares, squares_of_sources
from benchmarks.controlled.variants import VARIANTS
from benchmarks.results import Result, ResultError
from dex.data.synthetic.controls import NAMES
from dex.metrics.influence import influence_of
from dex.metrics.statistics import bca
from dex.reading.measure import why_not, with_leaks
from dex.reading.tuples import STRATA


def load(folder: Path, preset: str) -> list[Result]:
    """The results of a preset. Raises `ResultError` for a damaged one, or where there is none."""
    found = [Result.load(path) for path in sorted(folder.glob(f"{preset}-*.json"))]
    if not found:
        raise ResultError(f"{folder}: no results of the preset {preset}. Leave out --table to make them")
    return found


# What is compared with what
COMPARED = {
    "everything": (
        "no-pose-augmentation",
        "no-image-transforms",
        "no-second-camera",
        "no-expression-augmentation",
        "no-augmentation",
        "joint-motion-code",
    ),
    "no-augmentation": ("joint-motion-code",),  # which differ in nothing else
    "fading-labels": ("fading-labels-no-expression-augmentation",),
    "animator": ("no-ray-map", "no-reference-warping", "standard-guidance", "progressive-0", "progressive-10"),
}
FRONT = ("I_pp", "I_ee", "I_pe", "I_ep", "S")
BEHIND = {
    "probe_r2/pose_from_expression": "probe R² of pose",
    "pose_leakage/normalised": "over what pictures tell",
    "probe_r2/identity_from_expression": "probe of identity",
    "background_drift": "background drift",
    "residual": "residual",
}


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a variant, means over its seeds, with 95 % intervals over sources; then the gain of each control,
    and differences at equal seeds."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.method, []).append(result)
    order = [name for name in (*VARIANTS, *REFERENCES) if name in by_name]
    head = ["", "", "seeds", *FRONT, "S of each seed", *BEHIND.values()]
    head += [f"S at yaw {stratum}°" for stratum in STRATA]
    lines = [line(head), line(["---"] * len(head)), *(line(row(name, by_name[name])) for name in order)]
    lines += ["", line(["gain of", *NAMES]), line(["---"] * (1 + len(NAMES)))]
    for name in order:
        gains = [mean(by_name[name], metric_id(f"gain/{control}")) for control in NAMES]
        lines.append(line([name, *map(shown, gains)]))
    for base, others in COMPARED.items():
        if rest := [name for name in others if name in by_name and base in by_name]:
            lines += ["", line([f"{VARIANTS[base].words}, less …, tuple by tuple", *FRONT])]
            lines += [line(["---"] * (1 + len(FRONT)))]
            pairs = [(name, *of_the_same_seeds(by_name[base], by_name[name])) for name in rest]
            lines += [line([VARIANTS[name].words, *differences(mine, others)]) for name, mine, others in pairs if mine]
    return "\n".join([*lines, "", *notes(results)])


def row(name: str, results: Sequence[Result]) -> list[str]:
    variant = VARIANTS.get(name)
    seeds = ", ".join(str(result.content["model"]["seed"]) for result in results) if variant else ""
    cells = [variant.letter if variant else "", variant.words if variant else name, seeds]
    cells += [cell(*figure) for figure in pooled(results)]
    cells.append(", ".join(shown(mean([result], metric_id("S"))) for result in results) if variant else "")
    cells += [shown(mean(results, metric_id(key))) for key in BEHIND]
    return cells + [shown(mean(results, metric_id("S", stratum))) for stratum in STRATA]


def pooled(results: Sequence[Result]) -> list[tuple[float | None, tuple[float, float] | None]]:
    """`FRONT`, means over seeds, with intervals over sources, of which each has its tuples."""
    own, sums = results[0].content["estimator"][""], sources_side_by_side(results)
    return [with_interval(sums, partial(seed_mean, key, own)) for key in FRONT]


def sources_side_by_side(results: Sequence[Result]) -> Float[np.ndarray, "N 6n"]:
    return np.concatenate([squares_of_sources(result) for result in results], axis=1)


def with_interval(
    rows: Float[np.ndarray, "N M"], statistic: Callable[[Float[np.ndarray, "R M"]], Float[np.ndarray, "R"]]
) -> tuple[float | None, tuple[float, float] | None]:
    """Of the sums of `rows`; None where it is not measurable."""
    (value,) = statistic(rows.sum(axis=0, keepdims=True))
    return (None, None) if np.isnan(value) else (float(value), bca(rows, statistic))


def seed_mean(key: str, own: Mapping[str, float], totals: Float[np.ndarray, "R 6n"]) -> Float[np.ndarray, "R"]:
    """A figure of each of n trainings, of the sums of its squared distances; NaN where it is not measurable."""
    seeds = torch.from_numpy(totals).unflatten(1, (-1, len(SQUARES)))
    figures = with_leaks(influence_of(seeds), own)
    return figures[key].mean(axis=1) if key in figures else np.full(len(totals), np.nan)


def of_the_same_seeds(results: Sequence[Result], others: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """Of two variants the trainings whose seed both have."""
    seeds = [{result.content["model"]["seed"] for result in side} for side in (results, others)]
    mine, theirs = (
        [r for r in side if r.content["model"]["seed"] in seeds[0] & seeds[1]] for side in (results, others)
    )
    return mine, theirs


def differences(results: Sequence[Result], others: Sequence[Result]) -> list[str]:
    """`FRONT` of the one less that of the other, with intervals over the sources of the tuples that both answered."""
    own, mine = results[0].content["estimator"][""], len(SQUARES) * len(results)
    both = sources_side_by_side([*results, *others])

    def less(key: str, totals: Float[np.ndarray, "R 6n"]) -> Float[np.ndarray, "R"]:
        return seed_mean(key, own, totals[:, :mine]) - seed_mean(key, own, totals[:, mine:])

    return [cell(*with_interval(both, partial(less, key)), "+.2f") for key in FRONT]


def median_drift(results: Sequence[Result]) -> float | None:
    """Degrees, of all seeds together; a few tuples whose pose was misread move I_pe but not this."""
    drifts = [np.sqrt(squares(result)[:, SQUARES.index("pe")]) for result in results]
    return float(np.median(np.concatenate(drifts))) if drifts else None


def mean(results: Sequence[Result], name: str) -> float | None:
    """Over seeds; None where one of them has no value."""
    values = [entry["value"] if (entry := result.metric(name)) else None for result in results]
    return None if None in values else float(np.mean(values))  # type: ignore[arg-type]


def cell(value: float | None, interval: tuple[float, float] | None, form: str = ".2f") -> str:
    if value is None or interval is None:
        return shown(value)
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def notes(results: Sequence[Result]) -> list[str]:
    """What stands below the table."""
    first = results[0].content
    own, data = first["estimator"][""], first["dataset"]
    truth = f"φ_pe {own['I_pe']:.3f}, φ_ep {own['I_ep']:.3f}, R² of expression {own['r2/expression']:.3f}"
    drivers = data.get("drivers", 2)
    asked = "tuples" if drivers == 2 else f"sources, each with all combinations of {drivers} drivers,"
    lines = [
        f"- {data['tuples']} {asked} of unseen identities at {data['size']}², framing {data['framing']}. The estimator "
        f"on renders of the truth: {truth}."
    ]
    if why := why_not(own):
        lines.append(f"- S is not measurable: {why}.")
    drifts = {name: median_drift([r for r in results if r.method == name]) for name in VARIANTS}
    if said := ", ".join(f"{name} {drift:.1f}°" for name, drift in drifts.items() if drift is not None):
        lines.append(f"- Median over tuples of the pose's drift under an edit of the expression: {said}.")
    trained = [r.content for r in results if r.method in VARIANTS and VARIANTS[r.method].of is None]
    timed = [content for content in trained if content["model"].get("seconds")]
    seconds = ", ".join(f"{c['model']['name']}-{c['model']['seed']} {c['model']['seconds']:.0f}" for c in timed)
    # Earlier files name only the device of measuring, which was that of training.
    used = {(c["model"].get("device", c["environment"]["device"]), c["model"]["threads"]) for c in timed}
    devices = sorted(f"{device}, {threads} threads" for device, threads in used if device and threads)
    if seconds:
        where = f" ({'; '.join(devices)} each)" if devices else ""
        lines.append(f"- Seconds of training, where nothing interrupted it: {seconds}{where}.")
    exact = [content["model"] for content in trained if content["model"].get("precision") == "32-true"]
    if said := ", ".join(f"{model['name']}-{model['seed']}" for model in exact):
        lines.append(f"- Trained in float32, the processor having no bf16: {said}.")
    return lines
