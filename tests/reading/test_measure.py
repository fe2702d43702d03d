"""Figures of models whose disentanglement is known: the truth itself, one that never moves, and a joint code."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dex.data.synthetic.controls import NAMES, to_blendshapes
from dex.data.synthetic.render import render
from dex.pose import euler_from_matrix, split_pose
from dex.reading.__main__ import main, spoilt
from dex.reading.fit import Fit
from dex.reading.measure import (
    Measured,
    accuracy,
    cross_talk,
    encoded,
    figures,
    is_measurable,
    leakage,
    measure,
    outputs,
    probes,
    truths,
    why_not,
    with_leaks,
)
from dex.reading.own import KNOWN, USUAL, key, own_figures
from dex.reading.pictures import influence_picture, tuples_picture
from dex.reading.tuples import EDITS, STRATA, Tuples, make_faces, make_tuples
from dex.reading.verdict import alarms, verdict

COUNT = 6
FREE = {"I_pe": 0.0, "I_ep": 0.0}  # of an estimator without cross-talk


@pytest.fixture(scope="module")
def tuples() -> Tuples:
    return make_tuples(COUNT, 64, seed=1)


@pytest.fixture(scope="module")
def oracle(tuples: Tuples) -> Measured:
    return measure(truths(tuples), tuples, threads=2)


def test_the_truth_moves_what_is_edited_and_nothing_else(oracle: Measured) -> None:
    found = with_leaks(oracle.figures, FREE)
    assert found["I_pp"] == pytest.approx(1, abs=0.03)
    assert found["I_ee"] == pytest.approx(1, abs=0.15)
    assert found["I_pe"] < 0.05
    assert found["I_ep"] < 0.3
    assert found["S"] > 0.6
    assert found["background_drift"] == 0
    assert found["gain/jaw_open"] == pytest.approx(1, abs=0.1)
    assert not alarms(found | {"L_ep": 0.0})


def test_a_still_picture_moves_nothing(tuples: Tuples) -> None:
    still = tuples.source.float() / 255
    found = measure(dict.fromkeys(EDITS, still), tuples, threads=2).figures
    assert [found[name] for name in ("I_pp", "I_ee", "I_pe", "I_ep")] == [0] * 4
    assert "background_drift" not in found  # nothing changes, nothing to compare with
    wrong = {alarm.name for alarm in alarms(with_leaks(found, FREE))}
    assert wrong == {"dead expression", "dead pose"}


def test_a_joint_code_has_gains_and_no_selectivity(tuples: Tuples) -> None:
    made = truths(tuples)
    both = [
        render(head, to_blendshapes(tuples.controls[1, i : i + 1].numpy()), tuples.pose[1, i : i + 1].numpy(), 64).image
        for i, head in enumerate(tuples.heads)
    ]
    moved = torch.from_numpy(np.concatenate(both)).movedim(-1, 1).float() / 255
    found = with_leaks(
        measure({"none": made["none"], "pose": moved, "expression": moved}, tuples, threads=2).figures, FREE
    )
    assert found["I_pp"] == found["I_pe"] == pytest.approx(1, abs=0.05)
    assert found["I_ee"] == found["I_ep"] == pytest.approx(1, abs=0.2)
    assert found["S"] < 0.05
    assert {"pose drifts with expression", "expression drifts with pose"} <= {alarm.name for alarm in alarms(found)}


def test_a_model_is_asked_for_each_edit_in_its_own_units(tuples: Tuples) -> None:
    def animate(source: Tensor, pose: Tensor, expression: Tensor) -> Tensor:
        assert source.min() >= -1
        assert source.max() <= 1
        return (pose + expression) / 2

    made = outputs(animate, tuples, torch.device("cpu"))
    a, b = tuples.driver.float() / 255
    torch.testing.assert_close(made["none"], a, atol=1e-6, rtol=0)
    torch.testing.assert_close(made["pose"], (a + b) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(made["expression"], (a + b) / 2, atol=1e-6, rtol=0)


def test_probes_find_what_a_code_holds() -> None:
    faces = make_faces(12, 8, 16)
    count = len(faces.identity)
    drawn = torch.rand(count, 6, generator=torch.Generator().manual_seed(0))
    who = torch.nn.functional.one_hot(torch.tensor(faces.identity)).float()
    pose = torch.cat([faces.pose.flatten(1), faces.pose.flatten(1).square()], dim=1)
    assert probes(pose, faces)["probe_r2/pose_from_expression"] > 0.6
    assert probes(drawn, faces)["probe_r2/pose_from_expression"] < 0.1
    assert probes(who, faces)["probe_r2/identity_from_expression"] == pytest.approx(1)
    assert probes(drawn, faces)["probe_r2/identity_from_expression"] < 0.15
    assert probes(torch.ones(count, 3), faces)["code_deviation"] == 0
    brightness = encoded(lambda pictures: pictures.mean(dim=(1, 2, 3))[:, None], faces, torch.device("cpu"))
    torch.testing.assert_close(brightness[:, 0], faces.pictures.float().mean(dim=(1, 2, 3)) / 127.5 - 1)


def test_leakage_is_a_share_of_what_pictures_tell() -> None:
    faces = make_faces(63, 16, 24)
    few = faces.first(5)
    assert torch.equal(few.pictures, make_faces(5, 16, 24).pictures)
    assert few.identity == [number for number in range(5) for _ in range(16)]
    assert leakage(torch.zeros(len(few.identity), 2), few) == {}
    drawn = torch.randn(len(faces.identity), 6, generator=torch.Generator().manual_seed(0))
    told, untold = leakage(faces.pose.flatten(1), faces), leakage(drawn, faces)
    assert told["pose_leakage/normalised"] == 1
    assert untold["pose_leakage/normalised"] < 0.1
    for name in ("ridge", "rbf"):
        assert 0.05 < told[f"pose_leakage/ceiling_{name}"] == untold[f"pose_leakage/ceiling_{name}"] < 1


def test_tuples_are_a_function_of_their_seed_and_stratum() -> None:
    again, other = make_tuples(2, 32, seed=4), make_tuples(2, 32, seed=5)
    assert torch.equal(make_tuples(2, 32, seed=4).truth, again.truth)
    assert not torch.equal(again.controls, other.controls)
    for name in STRATA:
        low, high = map(float, name.split("-"))
        yaw = euler_from_matrix(split_pose(make_tuples(4, 16, stratum=name).pose)[0])[0].rad2deg().abs()
        assert ((yaw >= low - 1e-3) & (yaw <= high + 1e-3)).all()
    with pytest.raises(ValueError, match="0-15, 15-30, 30-60"):
        make_tuples(2, 16, stratum="5")


def test_a_control_that_rests_in_all_tuples_has_no_gain() -> None:
    tuples = make_tuples(2, 16)
    exact = {
        edit: Fit(tuples.asked_pose(edit), tuples.asked_controls(edit), torch.zeros(len(tuples))) for edit in EDITS
    }
    moved = (tuples.controls[1] != tuples.controls[0]).any(dim=0)
    assert 0 < moved.sum() < len(NAMES)
    found = figures(exact, truths(tuples), tuples)
    assert {f"gain/{name}" in found for name, some in zip(NAMES, moved, strict=True) if some} == {True}
    assert not [name for name, some in zip(NAMES, moved, strict=True) if not some and f"gain/{name}" in found]


def test_outputs_that_are_infinite_are_not_taken_for_white() -> None:
    tuples = make_tuples(2, 16)
    made = outputs(lambda source, *_: source / 0, tuples, torch.device("cpu"))
    assert not any(picture.isfinite().any() for picture in made.values())


def test_of_three_drivers_tuples_are_the_whole_grid() -> None:
    """Every pose of a source's drivers with every expression, from each driver's own to those of each other."""
    tuples = make_tuples(2, 32, drivers=3)
    assert (len(tuples), tuples.each) == (12, 6)
    for whose in (slice(0, 6), slice(6, 12)):
        pictures = tuples.truth[:, whose].flatten(0, 1).flatten(1)
        assert len(pictures.unique(dim=0)) == 9
        assert len(tuples.driver[:, whose].flatten(0, 1).flatten(1).unique(dim=0)) == 3
    from_a_to_b = {"none": (0, 0), "pose": (1, 0), "expression": (0, 1)}
    for number, edit in enumerate(EDITS):
        pose, expression = from_a_to_b[edit]
        moved = to_blendshapes(tuples.controls[expression, 3:4].numpy())
        drawn = render(tuples.heads[3], moved, tuples.pose[pose, 3:4].numpy(), 32)
        assert (tuples.truth[number, 3].movedim(0, -1).numpy() == drawn.image[0]).all()
    with pytest.raises(ValueError, match="drivers 1: need at least 2"):
        make_tuples(2, 16, drivers=1)


def test_an_estimator_that_reads_badly_measures_no_leak() -> None:
    known = json.loads(KNOWN.read_text())
    good = known[key(*USUAL[1], 0)]
    assert is_measurable(good)
    assert not is_measurable(good | {"I_ep": 0.2})
    assert "φ_ep 0.200, need at most 0.15" in why_not(good | {"I_ep": 0.2})
    assert not is_measurable(good | {"r2/expression": 0.8})
    assert is_measurable({name: value for name, value in good.items() if name != "r2/tx"})  # did not vary
    said = verdict({"I_pp": 0.9, "I_ee": 0.1}, good | {"r2/yaw": 0.5}, alarms({"I_pp": 0.9, "I_ee": 0.1}))
    assert said.startswith("**dead expression**: I_ee 0.10, need ≥ 0.2")
    assert "not measurable" in said
    assert "| ok | I_pp | 0.900 | ≥ 0.2 |" in said
    assert [alarm.name for alarm in alarms({"I_pp": math.nan})] == ["I_pp"]
    assert [alarm.name for alarm in alarms({"loss/discriminator": 0.01})] == ["discriminator winning"]
    assert "| alarm | I_pp | nan | ≥ 0.2 |" in verdict({"I_pp": math.nan}, good, alarms({"I_pp": math.nan}))
    assert [alarm.found for alarm in alarms({"loss/discriminator": math.inf})] == ["inf"]
    assert verdict({"I_pp": 0.9, "S": 0.5}, good, []).startswith("**healthy**: both controls move what they should")
    hardly = verdict({"I_pp": 0.21, "I_ee": 0.21, "L_pe": 0.2, "L_ep": 0.2, "S": 0.01}, good, [])
    assert hardly.startswith("**no alarm, but S is 0.01, of healthy ones at least 0.5**\n")
    leaking = {"I_pp": 1.0, "I_ee": 0.9, "I_pe": 0.99, "I_ep": 0.8}  # and by this estimator nobody knows
    assert alarms(leaking) == []
    unknown = verdict(leaking, good | {"I_ep": 0.17}, [])
    assert unknown.startswith("**no alarm, leaks not measured**\n")


def test_a_component_that_does_not_vary_has_no_share_in_the_estimators_worth() -> None:
    tuples = make_tuples(3, 16, stratum="15-30")
    exact = {
        edit: Fit(tuples.asked_pose(edit), tuples.asked_controls(edit), torch.zeros(len(tuples))) for edit in EDITS
    }
    found = accuracy(exact, tuples)
    assert set(found) == {"yaw", "pitch", "roll", "expression"}
    assert min(found.values()) == pytest.approx(1)


@pytest.mark.slow
def test_the_estimators_own_figures_are_those_on_record() -> None:
    count, size, framing = USUAL[0]
    tuples = make_tuples(count, size, framing=framing)
    assert cross_talk(tuples, 2) == pytest.approx(own_figures(tuples, count, size, framing, 0), abs=0.03)


def test_every_usual_set_is_on_record() -> None:
    assert set(json.loads(KNOWN.read_text())) == {key(*usual, 0) for usual in USUAL}


def test_pictures_show_the_matrix_and_the_tuples(tuples: Tuples, oracle: Measured) -> None:
    picture = influence_picture(oracle.figures)
    assert picture.shape[0] == 3
    size = picture.shape[1] // 3
    diagonal, off = picture[:, size + 5, size + 5], picture[:, size + 5, 2 * size + 5]
    assert diagonal[2] > diagonal[0] + 0.3  # blue where pose follows pose
    assert off.min() > 0.9  # white where nothing leaks
    shown = tuples_picture(tuples, oracle, 3)
    assert shown.shape == (3, 3 * 66 + 2, 9 * 66 + 2)
    assert len(NAMES) == len(oracle.readings["none"].controls[0])


def test_spoilt_truths_have_the_same_errors_in_the_pictures_of_a_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    tuples = make_tuples(3, 64, framing="close")
    exact, made = truths(tuples), spoilt(tuples)
    errors = {edit: made[edit] - exact[edit] for edit in EDITS}
    again = spoilt(tuples)
    for edit in EDITS:
        assert torch.equal(made[edit], again[edit])
        assert made[edit].min() >= 0
        assert made[edit].max() <= 1
        assert errors[edit].abs().mean() > 0.02
    alike = torch.stack([e.flatten() for e in errors.values()]).corrcoef()
    assert alike[0, 2] > 0.5  # an edit of the expression changes few pixels, so nearly the same errors
    monkeypatch.setattr("sys.argv", ["x", "--degraded", "--size", "128"])
    with pytest.raises(SystemExit, match=r"error: --degraded: renders of 64 pixels"):
        main()
