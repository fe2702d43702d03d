"""From a checkpoint, or a reference row, to its result file."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.controlled.variants import Preset
from benchmarks.disentanglement import animate_by, by_source, intervals_of, of_codes
from benchmarks.manifest import sha256_of
from benchmarks.results import SCHEMA, Result, environment, git_state, metric
from dex.animation.backends import Backend, device
from dex.cores import usable_cores
from dex.data.synthetic.controls import NAMES, to_blendshapes
from dex.data.synthetic.head import GENERATOR
from dex.data.synthetic.motion import FramingName
from dex.data.synthetic.render import render
from dex.files import write_atomic
from dex.metrics.extractors import Source
from dex.metrics.influence import influence_of
from dex.metrics.statistics import RESAMPLES
from dex.reading.measure import (
    MATRIX,
    cross_talk,
    measure,
    outputs,
    squared_distances,
    truths,
    why_not,
    with_leaks,
)
from dex.reading.regressor import SHA256
from dex.reading.tuples import Faces, Tuples, make_faces, make_tuples

REFERENCES = ("oracle", "joint-code", "copy-source", "constant")
SQUARES = ("pp", "pe", "ep", "ee", "drivers_p", "drivers_e")  # of each tuple: `squared_distances`


@dataclass(frozen=True)
class Questions:
    """The tuples and faces that every variant of a preset is measured on, and the estimator's own figures."""

    sets: dict[str, Tuples]  # "" for poses as in training, and one a stratum of yaw
    own: dict[str, dict[str, float]]
    faces: Faces
    described: dict[str, Any]

    @classmethod
    def make(cls, preset: Preset, size: int, framing: FramingName, record: Path) -> Questions:
        """`record`: a file of the estimator's figures on these very questions, which takes minutes to find out and is
        written where it is missing. Raises ValueError where it is of other questions."""
        asked = described(preset, size, framing)
        sets = {
            name: make_tuples(preset.tuples, size, 0, "test", name or None, framing, preset.drivers)
            for name in ("", *preset.strata)
        }
        faces = make_faces(2 * preset.identities, 8, size, 0, "test", framing)
        own = recorded(record, asked)
        if own is None:
            own = {name: cross_talk(tuples, usable_cores()) for name, tuples in sets.items()}
            record.parent.mkdir(parents=True, exist_ok=True)
            known = {"questions": asked, "reader": SHA256, "own": own}
            write_atomic(record, (json.dumps(known, indent=1) + "\n").encode())
        return cls(sets, own, faces, asked)


def described(preset: Preset, size: int, framing: FramingName) -> dict[str, Any]:
    """What is asked of every variant of a preset."""
    of = {"generator": GENERATOR, "size": size, "framing": framing, "tuples": preset.tuples, "split": "test"}
    grid = {} if preset.drivers == 2 else {"drivers": preset.drivers}  # then `tuples` counts the sources
    return of | {"identities": preset.identities, "strata": list(preset.strata)} | grid


def recorded(record: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    """The estimator's own figures, None without a record. Raises ValueError for a record of other questions than those
    `asked`, or of another reader's answers: the results beside it are of those too, and no table has both."""
    if not record.is_file():
        return None
    known = json.loads(record.read_text())
    found, wanted = known["questions"] | {"reader": known.get("reader")}, {**asked, "reader": SHA256}
    if differ := [key for key in found | wanted if found.get(key) != wanted.get(key)]:
        theirs, ours = (", ".join(f"{key} {of.get(key)}" for key in differ) for of in (found, wanted))
        raise ValueError(f"{record}: the results beside it are of {theirs}, not {ours}. Name another --out")
    return known["own"]


def measured(
    questions: Questions, backend: Backend, preset: str, model: dict[str, Any], command: Sequence[str]
) -> Result:
    """A checkpoint's result."""
    cpu, animate = torch.device("cpu"), animate_by(backend)
    made = {name: outputs(animate, tuples, cpu, backend.joint_code) for name, tuples in questions.sets.items()}
    codes = of_codes(backend, questions.faces, questions.described["identities"])
    return result_of(questions, made, preset, model, command, codes)


def result_of(
    questions: Questions,
    made: Mapping[str, Mapping[str, Tensor]],
    preset: str,
    model: dict[str, Any],
    command: Sequence[str],
    codes: Mapping[str, float],
) -> Result:
    """`made`: outputs after each edit, of the sets of tuples that count. `command`: by which it is made again."""
    entries: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for name in made:
        tuples, own = questions.sets[name], questions.own[name]
        found = measure(made[name], tuples, usable_cores())
        sums = squared_distances(found.readings, tuples).T.numpy()
        between = intervals_of(by_source(sums, tuples.each), own)
        figures = with_leaks(found.figures, own) | ({} if name else dict(codes))
        entries += [
            entry(key, name, value, count_of(key, tuples, questions), between.get(key))
            for key, value in figures.items()
            if key in KEYS and (not name or key in (*MATRIX, "S"))
        ]
        if "S" not in figures:
            entries.append(entry("S", name, None, len(tuples), None, f"not measurable: {why_not(own)}"))
        for number, values in enumerate(sums.tolist()):
            which, whose = (f"{name or 'all'}/{of}" for of in (number, number // tuples.each))
            pairs.append({"id": which, "identity": whose, "values": dict(zip(SQUARES, values, strict=True))})
    content = {
        "schema": SCHEMA,
        "id": "",
        "task": "controlled",
        "dataset": {"name": preset, "manifest_sha256": sha256_of([questions.described]), **questions.described},
        "pairs": {"sha256": sha256_of(pair["id"] for pair in pairs), "count": len(questions.sets[""])},
        "model": model | git_state(),
        "estimator": questions.own,
        "metrics": entries,
        "comparisons": [],
        "environment": environment(device()),
        "warnings": [],
        "command": list(command),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Result(content, pairs)


def count_of(key: str, tuples: Tuples, questions: Questions) -> int:
    """How many tuples, or faces whose code a probe read, a figure is of."""
    if key.startswith("pose_leakage/"):
        return len(questions.faces.identity)
    if key.startswith("probe_r2/"):
        return len(questions.faces.first(questions.described["identities"]).identity)
    return len(tuples)


def recomputed(result: Result) -> dict[str, float]:
    """By metric id, what the squared distances and the estimator's own figures of a result come to."""
    found: dict[str, float] = {}
    for name, own in result.content["estimator"].items():
        rows = squares(result, name)
        if len(rows):  # reference rows have no strata
            matrix = influence_of(torch.from_numpy(rows.sum(axis=0)))
            # Leaks are of the influence on record: where that is φ, they make a rounding as large as its root.
            said = {key: entry["value"] for key in MATRIX if (entry := result.metric(metric_id(key, name)))}
            figures = with_leaks(matrix | said, own) | matrix
            found |= {metric_id(key, name): value for key, value in figures.items()}
    return found


def squares(result: Result, stratum: str = "") -> Float[np.ndarray, "N 6"]:
    """Squared distances of the tuples with poses as in training, or of a stratum of yaw."""
    rows = [pair["values"] for pair in result.pairs if pair["id"].startswith(f"{stratum or 'all'}/")]
    return np.array([[values[name] for name in SQUARES] for values in rows])


def squares_of_sources(result: Result) -> Float[np.ndarray, "N 6"]:
    """Their sums over the tuples of each source, poses as in training."""
    sources = {pair["identity"] for pair in result.pairs if pair["id"].startswith("all/")}
    rows = squares(result)
    return by_source(rows, len(rows) // len(sources))


READ_BY = Source("dex.reading", SHA256, "Apache-2.0")
_READER = "fit_and_network.v1"  # `dex.reading.estimate`; another version when it reads differently
# Figures of `dex.reading` by the names of metrics; what is better only where more or less alone is a merit.
KEYS: dict[str, tuple[str, str]] = {
    "I_pp": (f"influence_pp.{_READER}", "none"),
    "I_pe": (f"influence_pe.{_READER}", "none"),
    "I_ep": (f"influence_ep.{_READER}", "none"),
    "I_ee": (f"influence_ee.{_READER}", "none"),
    "L_pe": (f"leak_pe.{_READER}", "none"),
    "L_ep": (f"leak_ep.{_READER}", "none"),
    "S": (f"selectivity.{_READER}", "higher"),
    "probe_r2/pose_from_expression": ("probe_pose.ridge_r2.v1", "none"),
    "probe_r2/rotation_from_expression": ("probe_rotation.ridge_r2.v1", "none"),
    "probe_r2/identity_from_expression": ("probe_identity.ridge.v1", "none"),
    "pose_leakage/ridge": ("pose_leakage.ridge_r2.v1", "none"),
    "pose_leakage/rbf": ("pose_leakage.rbf_r2.v1", "none"),
    "pose_leakage/ceiling_ridge": ("pose_leakage.pca512_ridge_r2.v2", "none"),
    "pose_leakage/ceiling_rbf": ("pose_leakage.pca512_rbf_r2.v2", "none"),
    "pose_leakage/normalised": ("pose_leakage.over_ceiling.v2", "none"),
    "background_drift": ("background_drift.either_face.v1", "lower"),  # that of benchmarks: the unedited one
    "residual": (f"residual.{_READER}", "lower"),
    **{f"gain/{name}": (f"gain_{name}.{_READER}", "none") for name in NAMES},
}


def metric_id(key: str, stratum: str = "") -> str:
    """`influence_pp.fit_and_network.v1`; of a stratum of yaw `influence_pp.fit_and_network_yaw_0-15.v1`."""
    whole = KEYS[key][0]
    return whole.replace(".v1", f"_yaw_{stratum}.v1") if stratum else whole


def entry(
    key: str, stratum: str, value: float | None, n: int, interval: Sequence[float] | None, note: str = ""
) -> dict[str, Any]:
    """A metric of a result file."""
    of_tuples = metric(metric_id(key, stratum), value, "of the whole set", n, unit="", better=KEYS[key][1])
    if _READER in KEYS[key][0]:
        of_tuples["extractor"] = vars(READ_BY)
    if interval:
        of_tuples |= {"ci95": list(interval), "ci_method": f"BCa bootstrap over sources, {RESAMPLES} resamples"}
    return of_tuples | {"note": note or None}


def reference(name: str, tuples: Tuples) -> dict[str, Tensor]:
    """oracle: the truth. joint-code: the truth of a model with one code, which takes both pose and expression from the
    driver that was edited. copy-source: the source, unmoved. constant: one picture for all."""
    exact = truths(tuples)
    if name == "oracle":
        return exact
    if name == "joint-code":
        both = [
            render(head, to_blendshapes(controls[None].numpy()), pose[None].numpy(), tuples.source.shape[-1]).image[0]
            for head, controls, pose in zip(tuples.heads, tuples.controls[1], tuples.pose[1], strict=True)
        ]
        moved = torch.stack([torch.from_numpy(picture).movedim(-1, 0) for picture in both]).float() / 255
        return {edit: exact["none"] if edit == "none" else moved for edit in exact}
    still = tuples.source.float() / 255
    return dict.fromkeys(exact, still if name == "copy-source" else still[:1].expand_as(still))
