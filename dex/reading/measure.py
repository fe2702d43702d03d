"""From a model to the figures of its disentanglement: outputs of the fixed tuples, read, compared with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dex.batch import picture_to_float, to_unit
from dex.data.synthetic.controls import NAMES, to_blendshapes
from dex.metrics.background import BackgroundDrift
from dex.metrics.influence import (
    FACTORS,
    LEAST_R2,
    MOST_CROSS_TALK,
    Reading,
    distances_of,
    influence_of,
    leak,
    selectivity,
)
from dex.metrics.probes import identity_accuracy, pose_leakage, pose_targets, ridge_r2
from dex.pose import POSE_COMPONENTS, pose_components
from dex.reading.estimate import read
from dex.reading.fit import Fit
from dex.reading.tuples import EDITS, Asked, Faces, Tuples, parts

MATRIX = ("I_pp", "I_ee", "I_pe", "I_ep")
AT_ONCE = 16  # tuples, or pictures to encode
LEAST_FACES = 1000  # for the ceiling of `leakage`
_STILL = 1e-4  # deviation of a component that does not vary: radians, normalised units, nats

# (source, pose driver, expression driver) → outputs; codes of pictures. All (N, 3, H, W) in [-1, 1]
Animate = Callable[[Tensor, Tensor, Tensor], Tensor]
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """`figures` by name; `outputs` in [0, 1] after each edit, and what was read from them."""

    figures: dict[str, float]
    outputs: dict[str, Float[Tensor, "N 3 H W"]]
    readings: dict[str, Fit] = field(default_factory=dict)


def outputs(
    animate: Animate, tuples: Asked, device: torch.device, joint: bool = False
) -> dict[str, Float[Tensor, "N 3 H W"]]:
    """g(s, a, a), g(s, b, a), g(s, a, b), in [0, 1] on the CPU.

    `joint`: of a model that has one code for pose and expression. It takes both from the driver that was edited.
    """
    a, b = tuples.driver
    made = {}
    for edit in EDITS:
        pose, expression = (b if edit == factor or (joint and edit != "none") else a for factor in EDITS[1:])
        made[edit] = animated(animate, tuples.source, pose, expression, device)
    return made


def animated(
    animate: Animate,
    source: Shaped[Tensor, "N 3 H W"],
    pose: Shaped[Tensor, "N 3 H W"],
    expression: Shaped[Tensor, "N 3 H W"],
    device: torch.device,
) -> Float[Tensor, "N 3 H W"]:
    """Outputs in [0, 1] on the CPU, of uint8 pictures, `AT_ONCE` at a time."""
    made = [
        animate(*(picture_to_float(pictures[part].to(device)) for pictures in (source, pose, expression)))
        for part in parts(len(source), AT_ONCE)
    ]
    drawn = torch.cat(made)
    return to_unit(drawn.where(drawn.isfinite(), torch.nan)).cpu()  # else infinite ones would be white


def truths(tuples: Tuples) -> dict[str, Float[Tensor, "N 3 H W"]]:
    """The oracle's outputs."""
    return {edit: picture.float() / 255 for edit, picture in zip(EDITS, tuples.truth, strict=True)}


def measure(made: Mapping[str, Tensor], tuples: Tuples, threads: int = 1) -> Measured:
    """Influence of pose and expression on outputs, gain of every control, and background drift.

    I_pp, I_ee, I_pe, I_ep and their uses are those of `dex.metrics.influence`, over blendshape coefficients;
    `gain/CONTROL` is the slope of what a control did under an expression edit against what it was to do, 1 where it
    follows; `residual` says how well the readings explain the pictures.
    """
    readings = {edit: _read(tuples, made[edit], edit, threads) for edit in EDITS}
    return Measured(figures(readings, made, tuples), dict(made), readings)


def _read(tuples: Tuples, pictures: Float[Tensor, "N 3 H W"], edit: str, threads: int) -> Fit:
    """Begins at the source's pose or at a driver's, whichever looks more like the picture."""
    starts = torch.stack([tuples.asked_pose(edit), *tuples.pose, tuples.source_pose], dim=1)
    return read(tuples.heads, pictures, starts, threads)


def as_reading(pose: Float[Tensor, "N 3 4"], controls: Float[Tensor, "N C"]) -> Reading:
    return Reading(pose, torch.from_numpy(to_blendshapes(controls.numpy())))


def squared_distances(readings: Mapping[str, Fit], tuples: Tuples) -> Float[Tensor, "6 N"]:
    """`distances_of` what was read from the outputs, and the truth about the drivers."""
    made = (as_reading(readings[edit].pose, readings[edit].controls) for edit in EDITS)
    drivers = (as_reading(*driver) for driver in zip(tuples.pose, tuples.controls, strict=True))
    return distances_of(*made, *drivers)


def figures(readings: Mapping[str, Fit], made: Mapping[str, Tensor], tuples: Tuples) -> dict[str, float]:
    """Of outputs and of what was read from them."""
    found = influence_of(squared_distances(readings, tuples).sum(dim=1))
    asked = tuples.controls[1] - tuples.controls[0]
    did = readings["expression"].controls - readings["none"].controls
    slopes, moved = (asked * did).sum(0) / asked.square().sum(0), (asked != 0).any(dim=0)
    # In few tuples some controls stay at rest, and what they would do nobody knows.
    found |= {f"gain/{name}": float(slope) for name, slope, some in zip(NAMES, slopes, moved, strict=True) if some}
    found |= {f"r2/{name}": value for name, value in accuracy(readings, tuples).items()}
    found["residual"] = float(torch.cat([fit.residual for fit in readings.values()]).mean())
    faces = tuples.face[[0, 2]].any(dim=0)
    moved = (made["expression"] - made["none"]).abs().amax(dim=1)
    if moved[faces].any():  # else there is nothing to compare with
        drift = BackgroundDrift(sync_on_compute=False)  # the other ranks measure nothing and would not answer
        drift.update(made["expression"], made["none"], tuples.head[[0, 2]].transpose(0, 1), faces)
        found["background_drift"] = float(drift.compute())
    return found


def accuracy(readings: Mapping[str, Fit], tuples: Tuples) -> dict[str, float]:
    """R² of what was read against what was asked for: of each component of the pose that varies (in a stratum of yaw
    heads turn but do not move), and of the whole expression."""
    pose = torch.cat([pose_components(readings[edit].pose) for edit in EDITS]).double()
    asked_pose = torch.cat([pose_components(tuples.asked_pose(edit)) for edit in EDITS]).double()
    seen, asked = (
        torch.from_numpy(to_blendshapes(torch.cat(settings).numpy())).double()
        for settings in (
            [readings[edit].controls for edit in EDITS],
            [tuples.asked_controls(edit) for edit in EDITS],
        )
    )
    errors, spread = (pose - asked_pose).square().sum(0), (asked_pose - asked_pose.mean(0)).square().sum(0)
    values = {
        name: 1 - error / wide
        for name, error, wide in zip(POSE_COMPONENTS, errors.tolist(), spread.tolist(), strict=True)
        if wide > len(pose) * _STILL**2
    }
    whole = 1 - (seen - asked).square().sum() / (asked - asked.mean(0)).square().sum()
    return values | {"expression": float(whole)}


def cross_talk(tuples: Tuples, threads: int = 1) -> dict[str, float]:
    """The estimator's own figures, on renders of the truth: φ as `I_pe` and `I_ep`, its gains, and R²."""
    return measure(truths(tuples), tuples, threads).figures


def why_not(own: Mapping[str, float]) -> str:
    """In what the estimator is not good enough on these tuples for a leak to be a model's; empty where it is."""
    wrong = [
        f"R² of {name} {own[f'r2/{name}']:.2f}, need {LEAST_R2}"
        for name in (*POSE_COMPONENTS, "expression")
        if f"r2/{name}" in own and not own[f"r2/{name}"] >= LEAST_R2
    ]
    wrong += [
        f"cross-talk φ_{pair} {own[f'I_{pair}']:.3f}, need at most {MOST_CROSS_TALK}"
        for pair in ("pe", "ep")
        if not own[f"I_{pair}"] <= MOST_CROSS_TALK
    ]
    return f"the estimator on renders of the truth: {'; '.join(wrong)}. Take more tuples" if wrong else ""


def is_measurable(own: Mapping[str, float]) -> bool:
    return not why_not(own)


def with_leaks(found: Mapping[str, Any], own: Mapping[str, float]) -> dict[str, Any]:
    """`L_pe`, `L_ep` and `S` added, where the estimator is good enough for them: leaks less its own cross-talk, and the
    weaker of the two controls."""
    if not is_measurable(own):
        return dict(found)
    leaks = {f"L_{i}{j}": leak(found[f"I_{i}{j}"], own[f"I_{i}{j}"]) for i, j in (FACTORS, FACTORS[::-1])}
    return {**found, **leaks, "S": selectivity(found, own)}


def encoded(encode: Encode, faces: Faces, device: torch.device) -> Float[Tensor, "N E"]:
    """The expression codes of all faces, on the CPU."""
    codes = [encode(picture_to_float(faces.pictures[part].to(device))) for part in parts(len(faces.identity), AT_ONCE)]
    return torch.cat(codes).float().cpu()


def probes(codes: Float[Tensor, "N E"], faces: Faces) -> dict[str, float]:
    """What a linear probe reads from the expression codes of faces that should not be there:
    `probe_r2/pose_from_expression`, mean R² over the twelve `pose_targets`, on identities the probe was not fitted on;
    `probe_r2/rotation_from_expression`, over the rotation vector alone, which an upright face still shows;
    `probe_r2/identity_from_expression`, accuracy above chance, 1 where every identity is told; and `code_deviation`."""
    pose = ridge_r2(codes, pose_targets(faces.pose), faces.identity)
    correct, chance = identity_accuracy(codes, faces.identity)
    identity = max(0.0, (correct - chance) / (1 - chance))
    return {
        "probe_r2/pose_from_expression": float(pose.nanmean()),
        "probe_r2/rotation_from_expression": float(pose[:3].nanmean()),
        "probe_r2/identity_from_expression": identity,
        "code_deviation": float(codes.std(dim=0).mean()),
    }


def leakage(codes: Float[Tensor, "N E"], faces: Faces) -> dict[str, float]:
    """`pose_leakage` of the expression codes, what probes read of the pose, linear and not, over what they read of it
    from the pictures; empty for fewer than `LEAST_FACES` faces. Takes longer than a training should wait."""
    if len(faces.identity) < LEAST_FACES:
        return {}
    found = pose_leakage(codes, faces.pose, faces.identity, faces.pictures.flatten(1).float())
    return {f"pose_leakage/{name}": value for name, value in found.items()}
