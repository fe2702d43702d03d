"""python -m benchmarks.controlled: trains, measures, goes on where it stopped, and tables what there is."""

import argparse
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from benchmarks.controlled import __main__ as controlled
from benchmarks.controlled.__main__ import RunError, config_of, make, make_all, questions_of, train
from benchmarks.controlled.measuring import REFERENCES, SQUARES, entry, metric_id, recomputed
from benchmarks.controlled.tables import FRONT, differences, load, pooled, squares, table
from benchmarks.controlled.variants import PRESETS, VARIANTS, Preset
from benchmarks.results import Result, ResultError
from benchmarks.suite import verify
from dex.fit import make_cli
from dex.reading.tuples import STRATA
from tests.benchmarks.conftest import Called

ROOT = Path(__file__).parents[2]
TINY = {
    "volume_channels": 4, "volume_depth": 4, "volume_size": 16, "middle_size": 8, "appearance_width": 8,
    "appearance_blocks": 1, "pose_dims": [8, 16], "pose_depths": [1, 1], "fan_size": 8, "fan_width": 16,
    "expression_dim": 8, "style_dim": 16, "decoder_width": 8, "decoder_cap": 32, "size": 32,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The preset `small` at 32², two steps long, measured on two tuples, and on two of one stratum of yaw."""
    content = yaml.safe_load((ROOT / "configs" / "controlled_small.yaml").read_text())
    content["model"]["init_args"]["network"] |= TINY
    content["data"]["init_args"] |= {"size": 32, "batch_size": 2, "drivers": 2, "val_batches": 1}
    content["trainer"] |= {"max_steps": 2, "val_check_interval": 2}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(content))
    variants = ("everything", "joint-motion-code")
    preset = Preset((str(config),), (), (0,), variants, tuples=2, identities=5, strata=STRATA[:1])
    monkeypatch.setattr(controlled, "PRESETS", {"tiny": preset})
    questions_of.cache_clear()
    return argparse.Namespace(
        preset="tiny",
        only=None,
        seeds=None,
        encoders=None,
        tuples=None,
        drivers=None,
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        processes=1,
        table=False,
    )


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run or exported is noted here instead."""
    noted: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        noted.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(controlled, "export", lambda *paths: noted.append(["export", *map(str, paths)]))
    return noted


@pytest.mark.slow
def test_runs_are_made_once_and_stand_in_one_table(
    tiny: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    make_all(tiny)
    made = sorted(path.name for path in tiny.out.glob("tiny-*.json"))
    references = [f"tiny-{name}.json" for name in REFERENCES]
    assert made == sorted(["tiny-everything-0.json", "tiny-joint-motion-code-0.json", *references])
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in tiny.out.iterdir()}
    (tiny.out / "tiny-joint-motion-code-0.json").unlink()
    make_all(tiny)  # the training is complete, only the measurement is made again
    assert "joint-motion-code" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if "joint-motion-code" not in path.name)

    results = {result.method: result for result in load(tiny.out, "tiny")}
    joint, ours = results["joint-motion-code"], results["everything"]
    assert joint.content["model"]["config"]["init_args"]["network"]["joint_code"] is True
    assert joint.content["model"]["config"]["init_args"]["pose_augmentation"]["rotation"] == 0
    assert ours.content["model"]["config"]["init_args"]["pose_augmentation"]["rotation"] > 0
    assert ours.content["model"]["steps"] == 2
    # One code, taken from the driver that was edited: both edits give the same picture.
    rows = squares(joint)
    assert rows[:, 0] == pytest.approx(rows[:, 1], abs=1e-6)
    assert rows[:, 2] == pytest.approx(rows[:, 3], abs=1e-6)
    for name, least in (("oracle", 0.9), ("joint-code", 0.9)):
        assert results[name].metric("influence_pp.fit_and_network.v1")["value"] > least
    assert results["copy-source"].metric("influence_pp.fit_and_network.v1")["value"] < 0.2
    for stratum in STRATA[:1]:
        assert ours.metric(f"influence_pp.fit_and_network_yaw_{stratum}.v1")["value"] >= 0
    said = table(list(results.values()))
    assert "| a | the method | 0 |" in said
    assert "| gain of | jaw_open |" in said
    assert "Median over tuples of the pose's drift under an edit of the expression: everything " in said


def make_result(folder: Path, name: str, seed: int, factor: float) -> None:
    """Six tuples whose outputs move `factor` of the way, and a good estimator."""
    own = {"I_pe": 0.0, "I_ep": 0.1, "r2/expression": 0.97}
    own |= {f"r2/{component}": 1.0 for component in ("yaw", "pitch", "roll", "tx", "ty", "log_scale")}
    rows = [
        {"id": f"all/{i}", "identity": f"all/{i}", "values": dict(zip(
            SQUARES, (factor**2 * (1 + i), 0.01, 0.01, factor**2 * (1 + i), 1.0 + i, 1.0 + i), strict=True
        ))}
        for i in range(6)
    ]  # fmt: skip
    content = {
        "schema": 1, "id": "", "task": "controlled",
        "dataset": {"name": "small", "size": 64, "framing": "close", "tuples": 6},
        "model": {"name": name, "letter": "a", "seed": seed, "seconds": 10.0 + seed, "threads": 1,
                  "precision": "32-true" if seed else "bf16-mixed"},
        "estimator": {"": own}, "environment": {"device": "a CPU"},
        "metrics": [entry("S", "", factor, 6, None, "")],
    }  # fmt: skip
    Result(content, rows).save(folder / f"small-{name}-{seed}.json")


def test_seeds_are_pooled_tuple_by_tuple(tmp_path: Path) -> None:
    make_result(tmp_path, "everything", 0, 0.6)
    make_result(tmp_path, "everything", 1, 0.8)
    results = load(tmp_path, "small")
    (pp, between), *_ = pooled(results)
    assert pp == pytest.approx((0.6 + 0.8) / 2)
    assert between is not None
    assert between[0] <= pp <= between[1]
    said = table(results)
    assert "| a | the method | 0, 1 | 0.70 [" in said
    assert "0.60, 0.80" in said  # S of each seed
    assert "where nothing interrupted it: everything-0 10, everything-1 11 (a CPU, 1 threads each)" in said
    assert "Trained in float32, the processor having no bf16: everything-1." in said
    path = tmp_path / "small-everything-0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ResultError, match="was edited"):
        load(tmp_path, "small")


def test_intervals_of_a_grid_are_over_its_sources(tmp_path: Path) -> None:
    """Twice each tuple: of as many sources the interval is narrower, of half as many no more than it was."""
    make_result(tmp_path, "everything", 0, 0.8)
    (result,) = load(tmp_path, "small")
    twice = [pair | {"id": f"all/{2 * i + j}"} for i, pair in enumerate(result.pairs) for j in (0, 1)]
    apart = [pair | {"identity": pair["id"]} for pair in twice]
    given = (result, Result(result.content, twice), Result(result.content, apart))
    alone, same, narrower = (pooled([one])[FRONT.index("I_pe")][1] for one in given)
    assert alone is not None
    assert narrower is not None
    assert same == pytest.approx(alone)
    assert narrower[1] - narrower[0] < 0.9 * (alone[1] - alone[0])


def test_figures_that_the_pairs_do_not_have_are_found(tmp_path: Path) -> None:
    make_result(tmp_path, "everything", 0, 0.6)
    path = tmp_path / "small-everything-0.json"
    result = Result.load(path)
    result.content["metrics"][0]["value"] = right = recomputed(result)[metric_id("S")]
    assert 0.3 < right < 0.6
    result.save(path)
    assert "influence, leaks and selectivity" in verify(path, None, "", None, None)[-1]
    result.content["metrics"][0]["value"] = right + 0.01
    result.save(path)
    with pytest.raises(ResultError, match=rf"selectivity.fit_and_network.v1 is {right + 0.01}, its pairs have {right}"):
        verify(path, None, "", None, None)


def test_variants_are_compared_tuple_by_tuple(tmp_path: Path) -> None:
    make_result(tmp_path, "everything", 0, 0.8)
    make_result(tmp_path, "no-augmentation", 0, 0.6)
    made = {result.method: [result] for result in load(tmp_path, "small")}
    cells = differences(made["everything"], made["no-augmentation"])
    assert cells[:3] == ["+0.20 [+0.20, +0.20]", "+0.20 [+0.20, +0.20]", "+0.00 [+0.00, +0.00]"]
    said = table([made["everything"][0], made["no-augmentation"][0]])
    assert "| without both | +0.20 [+0.20, +0.20] |" in said
    assert "less …" not in table(made["everything"])
    make_result(tmp_path, "everything", 1, 0.3)  # a seed that the other does not have is not compared with it
    assert "| without both | +0.20 [+0.20, +0.20] |" in table(load(tmp_path, "small"))


def test_stage_2_is_compared_with_stage_2(tmp_path: Path) -> None:
    for name, factor in {"everything": 0.9, "no-augmentation": 0.8, "animator": 0.7, "no-ray-map": 0.5}.items():
        make_result(tmp_path, name, 0, factor)
    first, second = table(load(tmp_path, "small")).split("less …, tuple by tuple")[1:]
    assert "| without both | +0.10" in first
    assert "stage 2" not in first.splitlines()[2]
    assert "| stage 2 without ray map | +0.20" in second


@pytest.mark.parametrize(
    ("encoders", "named"),
    [
        ("RUNS/tiny-everything-0/export/encoders", "tiny-everything-0/export/encoders"),
        (ROOT / "dex" / "assets" / "demo", "dex/assets/demo"),
        ("RUNS/../mine/encoders", "encoders"),
    ],
)
def test_a_result_names_no_folder_of_the_machine(tmp_path: Path, encoders: str | Path, named: str) -> None:
    runs = tmp_path / "runs"
    run = runs / "tiny-animator-0"
    run.mkdir(parents=True)
    where = str(encoders).replace("RUNS", str(runs))
    (run / "config.yaml").write_text(f"model:\n  init_args: {{seed: 0, encoders: {where}}}\n")
    assert config_of(run, runs)["init_args"] == {"seed": 0, "encoders": named}


def test_references_are_made_without_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand on nothing, whatever stage 2 was given."""
    monkeypatch.setattr(controlled, "questions_of", lambda *_: SimpleNamespace(sets={"": None}))
    monkeypatch.setattr(controlled, "reference", lambda name, _: name)
    commands: list[list[str]] = []

    def result_of(*given: Any) -> SimpleNamespace:
        commands.append(given[-2])
        return SimpleNamespace(save=lambda _: None)

    monkeypatch.setattr(controlled, "result_of", result_of)
    asked = argparse.Namespace(preset="small", out=tmp_path, encoders=Path("demo"), tuples=None, drivers=None)
    controlled.make_references(asked)
    assert commands == [["python", "-m", "benchmarks.controlled", "--preset", "small"]] * len(REFERENCES)


@pytest.mark.parametrize("given", [None, Path("dex/assets/demo")])
def test_stage_2_stands_on_its_seeds_stage_1_or_on_what_is_given(
    tmp_path: Path, commands: list[list[str]], given: Path | None
) -> None:
    stage_1 = tmp_path / "small-everything-1"
    (stage_1 / "export").mkdir(parents=True)
    (stage_1 / "export" / "config.json").touch()
    asked = argparse.Namespace(preset="small", runs=tmp_path, encoders=given, processes=1)
    train(asked, tmp_path / "small-animator-1", VARIANTS["animator"], 1)
    expected = given or stage_1 / "export" / "encoders"
    assert f"--model.init_args.encoders={expected}" in commands[0]
    run = tmp_path / "small-animator-1"
    assert commands[0][2] == "dex.fit"
    assert commands[1:] == [["export", str(run / "checkpoints" / "last"), str(run / "export")]]


def test_a_run_that_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    asked = argparse.Namespace(preset="small", runs=tmp_path, encoders=None, processes=1)
    run = tmp_path / "small-everything-0"
    with pytest.raises(RunError, match=rf"{run}: trained, not exported: .*last: no checkpoint"):
        train(asked, run, VARIANTS["everything"], 0)
    assert not controlled.ONE_AT_A_TIME.locked()


@pytest.mark.parametrize(("emulates", "accelerator"), [(True, False), (False, False), (True, True)])
def test_where_bf16_is_emulated_trainings_are_in_float32(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, emulates: bool, accelerator: bool
) -> None:
    monkeypatch.setattr(controlled, "emulates_bf16", lambda: emulates)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    asked = argparse.Namespace(preset="small", runs=tmp_path, encoders=None, processes=1)
    train(asked, tmp_path / "small-everything-0", VARIANTS["everything"], 0)
    assert ("--trainer.precision=32-true" in commands[0]) == (emulates and not accelerator)


def test_a_training_is_continued_in_its_own_precision(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controlled, "emulates_bf16", lambda: True)
    (tmp_path / "config.yaml").write_text("trainer: {precision: bf16-mixed}")
    asked = argparse.Namespace(preset="small", runs=tmp_path, encoders=None, processes=1)
    train(asked, tmp_path, VARIANTS["everything"], 0)
    assert "--trainer.precision=bf16-mixed" in commands[0]


def test_a_result_has_the_seed_of_the_training_and_the_sampler_that_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "small-animator-1"
    (run / "export").mkdir(parents=True)
    (run / "export" / "config.json").touch()
    config = {"model": {"init_args": {"encoders": str(tmp_path / "demo")}}, "trainer": {"precision": "32-true"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text('{"step": 2000, "seconds": 1.0, "continued": false}')
    backend = SimpleNamespace(provenance={"sampler": {"seed": 0, "delay": 0}, "step": 2000, "seed": 0}, encoders="")
    given: dict[str, object] = {}
    monkeypatch.setattr(controlled, "load_backend", lambda *_, **sampler: given.update(sampler) or backend)
    monkeypatch.setattr(controlled, "questions_of", lambda *_: None)
    monkeypatch.setattr(controlled, "checkpoint_sha256", lambda _: {})

    def measured(_: object, __: object, preset: str, model: dict[str, object], command: list[str]) -> Result:
        content = {"schema": 1, "id": "", "task": "controlled", "dataset": {"name": preset}, "model": model}
        return Result(content | {"metrics": [], "command": command}, [])

    monkeypatch.setattr(controlled, "measured", measured)
    asked = argparse.Namespace(
        preset="small", runs=tmp_path, out=tmp_path, encoders=Path("demo"), tuples=None, drivers=3, processes=1
    )
    content = json.loads(make(asked, "standard-guidance", 1).read_text())
    model = content["model"]
    made_by = "python -m benchmarks.controlled --preset small --only standard-guidance --seeds 1"
    made_by += " --encoders demo --drivers 3"
    assert " ".join(content["command"]) == made_by
    assert given == {"delay": 0, "blend": 0}
    assert (model["name"], model["seed"], model["steps"]) == ("standard-guidance", 1, 2000)
    assert model["precision"] == "32-true"
    assert model["sampler"] == {"seed": 0, "delay": 0}


def test_results_of_other_questions_stay_apart(tmp_path: Path, refused: Called, commands: list[list[str]]) -> None:
    """Told before anything is trained."""
    record = ROOT / "benchmarks" / "results" / "controlled" / "estimator-small.json"
    (tmp_path / record.name).write_bytes(record.read_bytes())
    said = refused("controlled.__main__", "--preset", "small", "--out", tmp_path, "--tuples", 128)
    assert "the results beside it are of tuples 64, strata" in said
    earlier = json.loads(record.read_text())
    del earlier["reader"]
    (tmp_path / record.name).write_text(json.dumps(earlier))
    assert "are of reader None, not" in refused("controlled.__main__", "--preset", "small", "--out", tmp_path)
    (tmp_path / record.name).write_text(record.read_text().replace('"tuples": 64', '"drivers": 3, "tuples": 64'))
    assert "of drivers 3, not drivers None" in refused("controlled.__main__", "--preset", "small", "--out", tmp_path)
    assert not commands
    assert "--tuples 1, --drivers 2: need at least 2" in refused(
        "controlled.__main__", "--preset", "small", "--tuples", 1
    )
    said = refused("controlled.__main__", "--preset", "long", "--only", "animator", "--out", tmp_path)
    assert "--only animator: the preset long has no stage 2" in said


def test_mistakes_are_told_in_one_line(tmp_path: Path, refused: Called) -> None:
    said = refused("controlled.__main__", "--preset", "small", "--table", "--out", tmp_path)
    assert "no results of the preset small" in said
    said = refused("controlled.__main__", "--preset", "small", "--table", "--seeds", 0, "--drivers", 3)
    assert said == "error: --table prints all results of --out; leave out --seeds, --drivers\n"


def test_a_training_that_fails_names_its_output(tiny: argparse.Namespace) -> None:
    config = Path(controlled.PRESETS["tiny"].motion[0])
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["network"]["size"] = 33
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(RunError, match=r"dex.fit ended with \d+; its output is in .*output.log"):
        make_all(tiny)
    log = tiny.runs / "tiny-everything-0" / "output.log"
    assert "must be a power of two" in log.read_text()


def test_metrics_are_named_by_stratum() -> None:
    assert metric_id("I_pp") == "influence_pp.fit_and_network.v1"
    assert metric_id("S", "15-30") == "selectivity.fit_and_network_yaw_15-30.v1"
    assert json.dumps(entry("S", "", None, 3, None, "not measurable: x"))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_and_their_changes_are_settings_of_dex_fit(preset: str, tmp_path: Path) -> None:
    """Every configuration and every variant's change is parsed, and the networks are built, on no device."""
    of = PRESETS[preset]
    for name in of.variants:
        variant = VARIANTS[name]
        configs = [f"--config={ROOT / 'configs' / c}" for c in (of.motion if variant.stage == 1 else of.animator)]
        change = [f"--{key}={value}" for key, value in (variant.change or {}).items()]
        with torch.device("meta"):
            cli = make_cli([*configs, *change, f"--run={tmp_path}"])
            module = cli.model
        if variant.stage == 2:
            assert module.network.config.ray_map == (name != "no-ray-map")
            assert module.network.config.reference_warping == (name != "no-reference-warping")
        else:
            assert module.joint_code == (name == "joint-motion-code")
            assert (module.pose_augmentation.rotation == 0) == (variant.letter in ("b", "b1", "d", "e"))
            assert (module.expression_augmentation.warp == 0) == (variant.letter in ("c", "c1", "d", "e"))
            assert (module.optimisation.teacher_poses == 1000) == (variant.letter in ("a1", "c1"))
            assert cli.datamodule.second_view == (variant.letter not in ("b", "b2", "d", "e"))
