"""The speed benchmarks run from the command line at toy size, and their figures hold together."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import ROOT, Called, command

CONFIGS = ROOT / "configs"


def figures_of(called: Called, module: str, report: Path, *arguments: str | Path) -> dict[str, Any]:
    assert "| of matrix rate |" in called(module, "--device", "cpu", "--json", report, *arguments)
    figures: dict[str, Any] = json.loads(report.read_text())
    return figures


@pytest.mark.slow
def test_training_step_is_split_and_options_are_compared(tmp_path: Path, called: Called) -> None:
    figures = figures_of(
        called, "train_speed", tmp_path / "report.json", "--config", CONFIGS / "animator_quick.yaml", "--random",
        "--rounds", "1", "--steps", "2", "--warm-up", "1", "--options", "sdpa", "fused", "latent_cache",
        "gradient_checkpointing", "--", "--data.init_args.batch_size=1",
    )  # fmt: skip
    assert list(figures["variants"]) == ["base", "sdpa", "fused", "latent_cache", "gradient_checkpointing"]
    assert figures["random"]
    for row in figures["variants"].values():
        assert sum(row["split_ms"].values()) == pytest.approx(row["step_ms"])
        assert all(row["split_ms"][name] > 0 for name in ("forward", "backward", "optimiser", "EMA"))
        assert row["matrix_share"] > 0
        assert row["floor_ms"] == pytest.approx(row["matrix_share"] * row["step_ms"])
        assert row["peak_gb"] > 0.1
    assert figures["variants"]["base"]["speed_up"] == 1
    assert figures["variants"]["sdpa"]["on"] is False


@pytest.mark.slow
def test_stage_1_is_measured_with_its_discriminators_penalty(tmp_path: Path, called: Called) -> None:
    figures = figures_of(
        called, "train_speed", tmp_path / "report.json", "--config", CONFIGS / "quickstart.yaml", "--rounds", "1",
        "--steps", "2", "--warm-up", "1", "--options", "none", "--", "--data.init_args.batch_size=1",
        "--model.init_args.loss.adversarial=0.1",
    )  # fmt: skip
    assert list(figures["variants"]) == ["base"]
    assert figures["counted"]["tflop_per_sample"] > 0


@pytest.mark.slow
def test_sampler_decoders_and_one_pass_are_measured(tmp_path: Path, called: Called) -> None:
    settings = ("--frames", "6", "--steps", "12", "--rounds", "1")
    figures = figures_of(called, "sample_speed", tmp_path / "report.json", *settings)
    rows = figures["rows"]
    assert list(rows)[-4:] == ["decoder, VAE", "decoder, TAESD", "decoder, space-to-depth", "motion trainer"]
    late, at_once, unguided = (
        rows[f"sampler, {name}"]["unet_calls"] for name in ("late expression", "expression at once", "unguided")
    )
    assert at_once == 2 * unguided
    assert unguided < late <= at_once + 5 * unguided / 12  # a third branch while two of them blend
    assert all(row["ms_per_frame"] > 0 and row["peak_gb"] > 0 for row in rows.values())
    assert rows["decoder, space-to-depth"]["tflop_per_frame"] == 0
    assert all(row["tflop_per_frame"] > 0 for name, row in rows.items() if name != "decoder, space-to-depth")
    for row in rows.values():
        assert row["floor_ms"] == pytest.approx(row["matrix_share"] * row["ms_per_frame"])


def test_errors_are_one_line(tmp_path: Path, refused: Called) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    overlay = CONFIGS / "strategy" / "fsdp.yaml"
    for module, wrong, said in (
        ("train_speed", ["--config", broken], "no configuration"),
        ("train_speed", ["--config", overlay], "An overlay follows the config it changes"),
        ("sample_speed", ["--config", broken], "no configuration"),
        ("sample_speed", ["--frames", "0"], "must be at least 1"),
        ("scaling", ["--config", broken], "no configuration"),
    ):
        assert said in refused(module, *wrong)
    # And in a process of its own, where libraries have their say, too.
    done = command("scaling", "--config", broken)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
