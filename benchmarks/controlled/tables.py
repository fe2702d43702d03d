"""Result files of the controlled experiment as one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.controlled.measuring import REFERENCES, SQUARES, metric_id
from benchmarks.controlled.variants import VARIANTS
from benchmarks.disentanglement import RESAMPLES, intervals_of
from benchmarks.results import Result, ResultError
from dex.data.synthetic.controls import NAMES
from dex.metrics.statistics import bca
from dex.reading.measure import influence_of, why_not, with_leaks
from dex.reading.tuples import STRATA


def load(folder: Path, preset: str) -> list[Result]:
    """The results of a preset. Raises `ResultError` for a damaged one, or where there is none."""
    found = [Result.load(path) for path in sorted(folder.glob(f"{preset}-*.json"))]
    if not found:
        raise ResultError(f"{folder}: no results of the preset {preset}. Leave out --table to make them")
    return found


BASES = ("everything", "animator")  # of each stage, what the others of it are compared with
FRONT = ("I_pp", "I_ee", "I_pe", "I_ep", "S")
BEHIND = ("probe_r2/pose_from_expression", "probe_r2/identity_from_expression", "background_drift", "residual")


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a variant, its seeds pooled, with 95 % intervals over tuples; then the gain of each control."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.method, []).append(result)
    order = [name for name in (*VARIANTS, *REFERENCES) if name in by_name]
    head = ["", "", "seeds", *FRONT, "S of each seed", "probe R² of pose", "probe of identity", "background drift"]
    head += ["residual", *(f"S at yaw {stratum}°" for stratum in STRATA)]
    lines = [line(head), line(["---"] * len(head)), *(line(row(name, by_name[name])) for name in order)]
    lines += ["", line(["gain of", *NAMES]), line(["---"] * (1 + len(NAMES)))]
    for name in order:
        gains = [mean(by_name[name], metric_id(f"gain/{control}")) for control in NAMES]
        lines.append(line([name, *map(shown, gains)]))
    for base in (name for name in BASES if name in by_name):
        stage = [name for name in order if name in VARIANTS and VARIANTS[name].stage == VARIANTS[base].stage]
        if rest := [name for name in stage if name != base]:
            lines += ["", line([f"{VARIANTS[base].words}, less …, tuple by tuple", *FRONT])]
            lines += [line(["---"] * (1 + len(FRONT)))]
            lines += [line([VARIANTS[name].words, *differences(by_name[base], by_name[name])]) for name in rest]
    return "\n".join([*lines, "", *notes(results)])


def row(name: str, results: Sequence[Result]) -> list[str]:
    variant = VARIANTS.get(name)
    seeds = ", ".join(str(result.content["model"]["seed"]) for result in results) if variant else ""
    cells = [variant.letter if variant else "", variant.words if variant else name, seeds]
    for value, interval in pooled(results):
        cells.append(shown(value) + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
    cells.append(", ".join(shown(mean([result], metric_id("S"))) for result in results) if variant else "")
    cells += [shown(mean(results, metric_id(key))) for key in BEHIND]
    return cells + [shown(mean(results, metric_id("S", stratum))) for stratum in STRATA]


def pooled(results: Sequence[Result]) -> list[tuple[float | None, tuple[float, float] | None]]:
    """`FRONT` of all seeds together, the sums of a tuple being over its seeds, with intervals over tuples."""
    own = results[0].content["estimator"][""]
    sums = np.sum([squares(result) for result in results], axis=0)
    figures, between = with_leaks(influence_of(torch.from_numpy(sums.sum(axis=0))), own), intervals_of(sums, own)
    return [(figures.get(key), between.get(key)) for key in FRONT]


def differences(results: Sequence[Result], others: Sequence[Result]) -> list[str]:
    """`FRONT` of the one less that of the other, seeds pooled, with intervals over the tuples that both answered."""
    own = results[0].content["estimator"][""]
    both = np.concatenate([np.sum([squares(result) for result in side], axis=0) for side in (results, others)], axis=1)

    def less(key: str, totals: Float[np.ndarray, "R 12"]) -> Float[np.ndarray, "R"]:
        sides = ([with_leaks(influence_of(torch.from_numpy(part)), own) for part in np.split(one, 2)] for one in totals)
        return np.array([mine.get(key, np.nan) - other.get(key, np.nan) for mine, other in sides])

    cells = []
    for key in FRONT:
        (value,) = less(key, both.sum(axis=0, keepdims=True))
        if np.isnan(value):
            cells.append(shown(None))
        else:
            low, high = bca(both, partial(less, key), RESAMPLES)
            cells.append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
    return cells


def squares(result: Result) -> Float[np.ndarray, "N 6"]:
    """Squared distances of the tuples with poses as in training."""
    rows = [pair["values"] for pair in result.pairs if pair["id"].startswith("all/")]
    return np.array([[values[name] for name in SQUARES] for values in rows])


def median_drift(results: Sequence[Result]) -> float | None:
    """Degrees, of all seeds together; a few tuples whose pose was misread move I_pe but not this."""
    drifts = [np.sqrt(squares(result)[:, SQUARES.index("pe")]) for result in results]
    return float(np.median(np.concatenate(drifts))) if drifts else None


def mean(results: Sequence[Result], name: str) -> float | None:
    """Over seeds; None where one of them has no value."""
    values = [entry["value"] if (entry := result.metric(name)) else None for result in results]
    return None if None in values else float(np.mean(values))  # type: ignore[arg-type]


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def notes(results: Sequence[Result]) -> list[str]:
    """What stands below the table."""
    first = results[0].content
    own, data = first["estimator"][""], first["dataset"]
    truth = f"φ_pe {own['I_pe']:.3f}, φ_ep {own['I_ep']:.3f}, R² of expression {own['r2/expression']:.3f}"
    lines = [
        f"- {data['tuples']} tuples of unseen identities at {data['size']}², framing {data['framing']}. The estimator "
        f"on renders of the truth: {truth}."
    ]
    if why := why_not(own):
        lines.append(f"- S is not measurable: {why}.")
    drifts = {name: median_drift([r for r in results if r.method == name]) for name in VARIANTS}
    if said := ", ".join(f"{name} {drift:.1f}°" for name, drift in drifts.items() if drift is not None):
        lines.append(f"- Median over tuples of the pose's drift under an edit of the expression: {said}.")
    own_trainings = (r for r in results if r.method in VARIANTS and VARIANTS[r.method].of is None)
    timed = [result.content for result in own_trainings if result.content["model"].get("seconds")]
    seconds = [content["model"]["seconds"] for content in timed]
    devices = sorted({f"{c['environment']['device']}, {c['model']['threads']} threads" for c in timed})
    if seconds:
        lines.append(
            f"- Seconds of training, where nothing interrupted it: {', '.join(f'{s:.0f}' for s in seconds)} "
            f"({'; '.join(devices)} each)."
        )
    return lines
