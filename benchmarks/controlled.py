"""The controlled experiment: what keeps pose and expression apart, on heads whose truth is exact.

`python -m benchmarks.controlled --preset small|full|long` trains the method and the forms of it that lack one part
each, measures each on heads that no training saw, and prints one table (docs/experiments.md). It goes on where it
stopped: a run that has its result file is not made again, one that was cut short continues at its last checkpoint.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from benchmarks.disentanglement import animate_by, intervals_of, provenance
from benchmarks.manifest import sha256_of
from benchmarks.results import SCHEMA, Result, ResultError, environment, git_state
from dex.animation.backends import load_backend
from dex.data.synthetic.controls import NAMES, to_blendshapes
from dex.data.synthetic.head import GENERATOR
from dex.data.synthetic.motion import FramingName
from dex.data.synthetic.render import render
from dex.reading.measure import (
    MATRIX,
    cross_talk,
    encoded,
    influence_of,
    is_measurable,
    measure,
    outputs,
    probes,
    squared_distances,
    truths,
    why_not,
    with_leaks,
)
from dex.reading.tuples import STRATA, Faces, Tuples, make_faces, make_tuples
from dex.speed import usable_cores

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "controlled"
SQUARES = ("pp", "pe", "ep", "ee", "drivers_p", "drivers_e")  # of each tuple: `squared_distances`
# Without: nothing is done to the picture that the encoder sees, and it is the driving frame itself.
_NO_POSE_AUGMENTATION = {
    **{f"model.init_args.pose_augmentation.{name}": 0 for name in ("rotation", "scale", "translation", "perspective")},
    "data.init_args.second_view": False,
}
_NO_EXPRESSION_AUGMENTATION = {
    f"model.init_args.expression_augmentation.{name}": 0 for name in ("warp", "mask_probability")
}


@dataclass(frozen=True)
class Variant:
    """A form of the method: settings of `dex.fit` that differ, and of the sampler."""

    letter: str  # as the paper's ablations are counted here
    words: str
    stage: int = 1
    change: Mapping[str, Any] | None = None
    of: str | None = None  # the variant whose training it shares
    sampler: Mapping[str, int] | None = None


VARIANTS: dict[str, Variant] = {
    "everything": Variant("a", "the method"),
    "no-pose-augmentation": Variant("b", "without pose augmentation", change=_NO_POSE_AUGMENTATION),
    "no-expression-augmentation": Variant("c", "without expression augmentation", change=_NO_EXPRESSION_AUGMENTATION),
    "no-augmentation": Variant("d", "without both", change=_NO_POSE_AUGMENTATION | _NO_EXPRESSION_AUGMENTATION),
    "joint-motion-code": Variant(
        "e",
        "one code for pose and expression",
        change=_NO_POSE_AUGMENTATION | _NO_EXPRESSION_AUGMENTATION | {"model.init_args.network.joint_code": True},
    ),
    "animator": Variant("a2", "stage 2, the method", stage=2),
    "no-ray-map": Variant("f", "stage 2 without ray map", stage=2, change={"model.init_args.network.ray_map": False}),
    "no-reference-warping": Variant(
        "g",
        "stage 2 without reference warping",
        stage=2,
        change={"model.init_args.network.reference_warping": False},
    ),
    "standard-guidance": Variant(
        "h", "stage 2, standard guidance", stage=2, of="animator", sampler={"delay": 0, "blend": 0}
    ),
    "progressive-0": Variant("h", "stage 2, S = 0", stage=2, of="animator", sampler={"delay": 0, "blend": 5}),
    "progressive-10": Variant("h", "stage 2, S = 10", stage=2, of="animator", sampler={"delay": 10, "blend": 5}),
}
REFERENCES = ("oracle", "joint-code", "copy-source", "constant")


@dataclass(frozen=True)
class Preset:
    motion: str  # configurations
    animator: str | None
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    tuples: int = 64
    identities: int = 64


PRESETS = {
    "small": Preset("controlled_small.yaml", "controlled_small_animator.yaml", (0, 1), tuple(VARIANTS)),
    "full": Preset(
        "controlled_full.yaml",
        "controlled_full_animator.yaml",
        (0,),
        ("everything", "no-augmentation", "joint-motion-code", "animator"),
    ),
    "long": Preset("controlled_long.yaml", None, (0,), ("everything",)),
}


class RunError(ValueError):
    """A training of the experiment failed; the message says which and where its output is."""


@dataclass(frozen=True)
class Questions:
    """The tuples and faces that every variant of a preset is measured on, and the estimator's own figures."""

    sets: dict[str, Tuples]  # "" for poses as in training, and one a stratum of yaw
    own: dict[str, dict[str, float]]
    faces: Faces
    described: dict[str, Any]

    @classmethod
    def make(cls, preset: Preset, size: int, framing: FramingName) -> Questions:
        count = preset.tuples
        sets = {name: make_tuples(count, size, 0, "test", name or None, framing) for name in ("", *STRATA)}
        own = {name: cross_talk(tuples, usable_cores()) for name, tuples in sets.items()}
        faces = make_faces(preset.identities, 8, size, 0, "test", framing)
        described = {"generator": GENERATOR, "size": size, "framing": framing, "tuples": count, "split": "test"}
        return cls(sets, own, faces, described | {"identities": preset.identities, "strata": list(STRATA)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controlled", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--runs", type=Path, default=Path("runs/controlled"), help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time, which share the cores")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what there is")
    asked = parser.parse_args()
    try:
        if not asked.table:
            make_all(asked)
        print(table(load(asked.out, asked.preset)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def make_all(asked: argparse.Namespace) -> None:
    """Every result that is not there yet; stage 2 after stage 1, which it stands on."""
    preset = PRESETS[asked.preset]
    names = asked.only or preset.variants
    seeds = preset.seeds if asked.seeds is None else tuple(asked.seeds)
    for stage in (1, 2):
        jobs = [(name, seed) for seed in seeds for name in names if VARIANTS[name].stage == stage]
        # those that share a training after the one that makes it
        for shared in (False, True):
            todo = [job for job in jobs if bool(VARIANTS[job[0]].of) == shared and not file_of(asked, *job).is_file()]
            with ThreadPoolExecutor(asked.processes) as pool:
                for path in pool.map(lambda job: make(asked, *job), todo):
                    print(path, flush=True)
    make_references(asked)


def file_of(asked: argparse.Namespace, name: str, seed: int | None = None) -> Path:
    return asked.out / f"{asked.preset}-{name}{'' if seed is None else f'-{seed}'}.json"


def make(asked: argparse.Namespace, name: str, seed: int) -> Path:
    """Trains, exports, measures and writes one result."""
    variant, preset = VARIANTS[name], PRESETS[asked.preset]
    run = asked.runs / f"{asked.preset}-{variant.of or name}-{seed}"
    config = ROOT / "configs" / (preset.motion if variant.stage == 1 else str(preset.animator))
    if variant.of is None:
        train(asked, run, config, variant, seed)
    content = yaml.safe_load((run / "config.yaml").read_text())
    backend = load_backend(run, None, None, 0, None, None, **(variant.sampler or {}))
    data = content["data"]["init_args"]
    questions = Questions.make(preset, data["size"], data.get("framing", "wide"))
    model = {
        "name": name,
        "letter": variant.letter,
        "seed": seed,
        **provenance(run, backend),
        "config": content["model"],
    }
    trained = json.loads((run / "result.json").read_text())
    result = measured(
        questions, backend, asked.preset, model | {"seconds": trained["seconds"], "steps": trained["step"]}
    )
    path = file_of(asked, name, seed)
    result.save(path)
    return path


def train(asked: argparse.Namespace, run: Path, config: Path, variant: Variant, seed: int) -> None:
    """In a process of its own, which goes on where an earlier one stopped; then the export. Raises `RunError`."""
    change = {
        "seed_everything": seed,
        "model.init_args.seed": seed,
        "data.init_args.seed": seed,
        **(variant.change or {}),
    }
    if variant.stage == 2:
        change["model.init_args.encoders"] = asked.runs / f"{asked.preset}-everything-{seed}" / "export" / "encoders"
    arguments = [f"--{key}={value}" for key, value in change.items()]
    threads = max(1, usable_cores() // asked.processes)
    run.mkdir(parents=True, exist_ok=True)
    log = run / "output.log"
    for command in (
        ["dex.fit", "--config", str(config), "--run", str(run), *arguments],
        ["dex.export", str(run)],
    ):
        with log.open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-m", *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                check=False,
            )
        if done.returncode:
            raise RunError(f"{run}: python -m {command[0]} ended with {done.returncode}; its output is in {log}")


def measured(questions: Questions, backend: Any, preset: str, model: dict[str, Any]) -> Result:
    """A checkpoint's result."""
    cpu, animate = torch.device("cpu"), animate_by(backend)
    made = {name: outputs(animate, tuples, cpu, backend.joint_code) for name, tuples in questions.sets.items()}
    codes = encoded(lambda pictures: backend.read_motion(pictures)[1], questions.faces, cpu)
    return result_of(questions, made, preset, model, probes(codes, questions.faces))


def result_of(
    questions: Questions,
    made: Mapping[str, Mapping[str, Tensor]],
    preset: str,
    model: dict[str, Any],
    codes: Mapping[str, float],
) -> Result:
    """`made`: outputs after each edit, of each set of tuples."""
    entries: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for name, tuples in questions.sets.items():
        own = questions.own[name]
        found = measure(made[name], tuples, usable_cores())
        sums = squared_distances(found.readings, tuples).T.numpy()
        between = intervals_of(sums, own)
        figures = with_leaks(found.figures, own) if is_measurable(own) else found.figures
        if not name:
            figures = {**figures, **codes}
        entries += [
            entry(key, name, value, len(tuples), between.get(key), why_not(own) if key == "S" else "")
            for key, value in figures.items()
            if key in KEYS and (not name or key in (*MATRIX, "S"))
        ]
        if "S" not in figures:
            entries.append(entry("S", name, None, len(tuples), None, f"not measurable: {why_not(own)}"))
        for number, values in enumerate(sums.tolist()):
            which = f"{name or 'all'}/{number}"
            pairs.append({"id": which, "identity": which, "values": dict(zip(SQUARES, values, strict=True))})
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
        "environment": environment(),
        "warnings": [],
        "command": sys.argv,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Result(content, pairs)


# Figures of `dex.reading` by the names of metrics; what is better only where more or less alone is a merit.
KEYS: dict[str, tuple[str, str]] = {
    "I_pp": ("influence_pp.fit.v1", "none"),
    "I_pe": ("influence_pe.fit.v1", "none"),
    "I_ep": ("influence_ep.fit.v1", "none"),
    "I_ee": ("influence_ee.fit.v1", "none"),
    "L_pe": ("leak_pe.fit.v1", "none"),
    "L_ep": ("leak_ep.fit.v1", "none"),
    "S": ("selectivity.fit.v1", "higher"),
    "probe_r2/pose_from_expression": ("probe_pose.ridge_r2.v1", "none"),
    "probe_r2/identity_from_expression": ("probe_identity.ridge.v1", "none"),
    "background_drift": ("background_drift.v1", "lower"),
    "residual": ("residual.fit.v1", "lower"),
    **{f"gain/{name}": (f"gain_{name}.fit.v1", "none") for name in NAMES},
}


def metric_id(key: str, stratum: str = "") -> str:
    """`influence_pp.fit.v1`; of a stratum of yaw `influence_pp.fit_yaw_0-15.v1`."""
    whole = KEYS[key][0]
    return whole.replace(".v1", f"_yaw_{stratum}.v1") if stratum else whole


def entry(
    key: str, stratum: str, value: float | None, n: int, interval: Sequence[float] | None, note: str
) -> dict[str, Any]:
    """A metric of a result file."""
    return {
        "id": metric_id(key, stratum),
        "value": value,
        "unit": "",
        "better": KEYS[key][1],
        "aggregation": "of the whole set",
        "n": n,
        "ci95": list(interval) if interval else None,
        "ci_method": "BCa bootstrap over tuples, 2000 resamples" if interval else None,
        "seed_sd": None,
        "fail_rate": None,
        "extractor": None,
        "floor": None,
        "note": note or None,
    }


def make_references(asked: argparse.Namespace) -> None:
    """The rows that say what a figure means, on the same tuples and by the same estimator."""
    preset = PRESETS[asked.preset]
    todo = [name for name in REFERENCES if not file_of(asked, name).is_file()]
    if not todo:
        return
    data = yaml.safe_load((ROOT / "configs" / preset.motion).read_text())["data"]["init_args"]
    questions = Questions.make(preset, data["size"], data.get("framing", "wide"))
    for name in todo:
        made = {of: reference(name, tuples) for of, tuples in questions.sets.items()}
        result = result_of(questions, made, asked.preset, {"name": name, "letter": "", "seed": None}, {})
        result.save(file_of(asked, name))


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


def load(folder: Path, preset: str) -> list[Result]:
    """The results of a preset. Raises `ResultError` for a damaged one, or where there is none."""
    found = [Result.load(path) for path in sorted(folder.glob(f"{preset}-*.json"))]
    if not found:
        raise ResultError(f"{folder}: no results of the preset {preset}")
    return found


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
    figures = influence_of(torch.from_numpy(sums.sum(axis=0)))
    between = intervals_of(sums, own)
    if is_measurable(own):
        figures = with_leaks(figures, own)
    return [(figures.get(key), between.get(key)) for key in FRONT]


def squares(result: Result) -> Float[np.ndarray, "N 6"]:
    """Squared distances of the tuples with poses as in training."""
    rows = [pair["values"] for pair in result.pairs if pair["id"].startswith("all/")]
    return np.array([[values[name] for name in SQUARES] for values in rows])


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
    seconds = [r.content["model"]["seconds"] for r in results if "seconds" in r.content["model"]]
    devices = sorted({r.content["environment"]["device"] for r in results if "seconds" in r.content["model"]})
    if seconds:
        lines.append(
            f"- {len(seconds)} trainings of {min(seconds):.0f} to {max(seconds):.0f} s on {', '.join(devices)}."
        )
    return lines


if __name__ == "__main__":
    main()
