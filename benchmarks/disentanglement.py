"""How far a checkpoint keeps pose and expression apart: `python -m benchmarks.disentanglement RUN [--json FILE]`.

Synthetic heads that no training saw, as in the monitor of training (`dex.reading`, docs/monitor.md), with 95 %
intervals over sources. RUN is a run or an export of either stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.figures import measured
from benchmarks.results import checkpoint_sha256, environment, git_state
from dex.animation.backends import Backend, device, load_backend, to_network
from dex.cores import usable_cores
from dex.data.synthetic.controls import NAMES
from dex.data.synthetic.motion import FRAMINGS
from dex.metrics.influence import influence_of
from dex.metrics.statistics import bca
from dex.reading.measure import (
    MATRIX,
    cross_talk,
    encoded,
    is_measurable,
    leakage,
    measure,
    outputs,
    probes,
    squared_distances,
    why_not,
    with_leaks,
)
from dex.reading.pictures import swap_grid, tuples_picture
from dex.reading.tuples import STRATA, Faces, make_faces, make_tuples

PROBED = 64  # identities whose codes are probed as the monitor's are


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disentanglement", description=__doc__)
    parser.add_argument("run", type=Path, help="a run, or a folder of python -m dex.export")
    parser.add_argument("--tuples", type=int, default=64, help="sources")
    parser.add_argument(
        "--drivers", type=int, default=2, help="of each source; of 3 and more all pairs: a factorial grid"
    )
    parser.add_argument("--stratum", choices=STRATA, help="degrees of the drivers' yaw; all of them if not given")
    parser.add_argument("--framing", choices=FRAMINGS, default="wide", help="how far the head fills the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the tuples, and of the sampler's noise")
    parser.add_argument("--steps", type=int, help="of the diffusion sampler")
    parser.add_argument("--guidance", type=float, help="of the diffusion sampler")
    parser.add_argument("--delay", type=int, help="S of the diffusion sampler's guidance")
    parser.add_argument("--blend", type=int, help="of the diffusion sampler's guidance")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--picture", type=Path, help="write outputs beside their truth there, as PNG or JPEG")
    parser.add_argument("--swap-grid", type=Path, help="write one head in five poses × five expressions there")
    asked = parser.parse_args()
    measured(lambda: report(asked), asked.json)


def report(asked: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints, writes pictures; the figures and what they are of. Raises ValueError (`ExportError`) for a
    checkpoint that is none, or a picture of no known format."""
    for picture in (asked.picture, asked.swap_grid):
        if picture and picture.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"{picture}: need a name that ends in .png or .jpg")
    if asked.tuples < 2 or asked.seed < 0:
        raise ValueError(f"--tuples {asked.tuples}, --seed {asked.seed}: need at least 2 and 0")
    backend = load_backend(asked.run, None, None, asked.seed, asked.steps, asked.guidance, asked.delay, asked.blend)
    tuples = make_tuples(asked.tuples, backend.size, asked.seed, "test", asked.stratum, asked.framing, asked.drivers)
    own = cross_talk(tuples, usable_cores())
    cpu, animate = torch.device("cpu"), animate_by(backend)
    found = measure(outputs(animate, tuples, cpu, backend.joint_code), tuples, usable_cores())
    faces = make_faces(2 * PROBED, 8, backend.size, split="test", framing=asked.framing)
    figures = with_leaks(found.figures, own) | of_codes(backend, faces, PROBED)
    between = intervals_of(by_source(squared_distances(found.readings, tuples).T.numpy(), tuples.each), own)
    print(table(figures, between, own))
    if asked.picture:
        save_picture(tuples_picture(tuples, found, 8), asked.picture)
    if asked.swap_grid:
        save_picture(swap_grid(animate, tuples, cpu, 5), asked.swap_grid)
    return {
        "figures": figures,
        "ci95": between,
        "estimator": own,
        "asked": {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()},
        "model": {"checkpoint_sha256": checkpoint_sha256(asked.run), **backend.provenance},
        "environment": environment(device()),
        **git_state(),
    }


def save_picture(picture: Float[Tensor, "3 H W"], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(picture, path)


def of_codes(backend: Backend, faces: Faces, probed: int) -> dict[str, float]:
    """What expression codes tell that they should not: `probes` of the first `probed` identities, as the monitor asks
    them, and `leakage` of all."""
    codes = encoded(lambda pictures: backend.read_motion(pictures)[1], faces, torch.device("cpu"))
    first = faces.first(probed)
    return probes(codes[: len(first.identity)], first) | leakage(codes, faces)


def animate_by(backend: Backend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One picture a source, through the interface that makes videos."""

    def animate(source: Tensor, pose: Tensor, expression: Tensor) -> Tensor:
        source_pose, poses, codes = (
            backend.read_motion(source)[0],
            backend.read_motion(pose)[0],
            backend.read_motion(expression)[1],
        )
        made = [
            next(iter(backend.animate(one, at, [(to, code)])))
            for one, at, to, code in zip(source, source_pose, poses, codes, strict=True)
        ]
        return to_network(made)

    return animate


def by_source(rows: Float[np.ndarray, "M 6"], each: int) -> Float[np.ndarray, "N 6"]:
    """Sums over the `each` tuples of a source, which share its drivers and are not independent of each other."""
    return rows.reshape(-1, each, rows.shape[1]).sum(axis=1)


def intervals_of(clusters: Float[np.ndarray, "N 6"], own: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Of the matrix, and of S where the estimator is good enough; `clusters`: `squared_distances` of each source, which
    has drivers of its own."""

    def figure(key: str, totals: Float[np.ndarray, "R 6"]) -> Float[np.ndarray, "R"]:
        return with_leaks(influence_of(torch.from_numpy(totals)), own)[key]

    keys = (*MATRIX, "S") if is_measurable(own) else MATRIX
    return {key: bca(clusters, partial(figure, key)) for key in keys}


def table(figures: Mapping[str, float], between: Mapping[str, tuple[float, float]], own: Mapping[str, float]) -> str:
    """Markdown: gains with leaks, and beside them what the estimator does on renders of the truth."""
    rows = ["| | found | 95 % | estimator's own |", "| --- | --- | --- | --- |"]
    names = [*MATRIX, "L_pe", "L_ep", "S", "probe_r2/pose_from_expression"]
    names += ["probe_r2/rotation_from_expression", "probe_r2/identity_from_expression"]
    names += [f"pose_leakage/{name}" for name in ("ridge", "rbf", "ceiling_ridge", "ceiling_rbf", "normalised")]
    names += ["background_drift", "residual", "r2/expression", *(f"gain/{name}" for name in NAMES)]
    for name in names:
        if name in figures:
            span = "{:.3f} … {:.3f}".format(*between[name]) if name in between else ""
            mine = f"{own[name]:.3f}" if name in own else ""
            rows.append(f"| {name} | {figures[name]:.3f} | {span} | {mine} |")
    if why := why_not(own):
        rows.append(f"\nleaks and S are not measurable here; {why}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
