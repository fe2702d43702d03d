"""Jobs on a real Slurm of two nodes: a signal, a killed task, and data preparation as an array."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dex.checkpoint import complete
from tests.slurm.cluster import cluster, missing

ROOT = Path(__file__).parents[2]
STEPS = 30
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        # One core for each task; the nodes' names are in no /etc/hosts.
        yield environment | {"DEX_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


def ask(slurm: dict[str, str], *command: str | Path) -> str:
    said = subprocess.run([str(c) for c in command], env=slurm, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, f"{command}: {said.stderr}"
    return said.stdout.strip()


def submit(slurm: dict[str, str], run: Path) -> str:
    """A training on 2 nodes with 1 task each, from the script that the project ships."""
    small = ["--data.batch_size=1", "--data.val_batches=2", "--data.workers=1", "--preview.every_n_steps=20"]
    optimisation = ("anchors_first=3", "muon=0", "encoders_every=1")
    small += [f"--model.init_args.optimisation.{setting}" for setting in optimisation]
    job = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0"]
    job += ["--time=30", f"--output={run}.log", "configs/slurm/nodes.sbatch"]
    configs = ["--config=configs/quickstart.yaml", "--config=configs/strategy/fsdp.yaml"]
    logs = ["--trainer.log_every_n_steps=1", "--trainer.val_check_interval=10", "--checkpoint.every_n_steps=10"]
    return ask(
        slurm, *job, *configs, f"--run={run}", *small, *logs,
        f"--trainer.max_steps={STEPS}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    )  # fmt: skip


def state(slurm: dict[str, str], job: str) -> dict[str, str]:
    """What Slurm says of a job, once it has settled: one that is being requeued fails or is cancelled for a moment."""
    for _ in range(40):
        said = ask(slurm, "scontrol", "show", "job", job)
        now = dict(part.split("=", 1) for part in said.split() if "=" in part)
        if now["JobState"] not in ("FAILED", "CANCELLED"):
            break
        time.sleep(0.5)
    return now


def hurry(slurm: dict[str, str], job: str) -> None:
    """Slurm lets a requeued job wait for two minutes; a start in the second of its end is refused, though."""
    time.sleep(3)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=slurm, capture_output=True, check=False)


def wait_for(slurm: dict[str, str], job: str, *wanted: str, log: Path, seconds: float = 300) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = state(slurm, job)
        if now["JobState"] in wanted:
            return now
        assert now["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), log.read_text()[-4000:]
        if now["JobState"] == "PENDING":
            hurry(slurm, job)
        time.sleep(0.5)
    raise AssertionError(f"{now['JobState']}, not {wanted}: {log.read_text()[-4000:] if log.exists() else ''}")


def wait_for_steps(slurm: dict[str, str], job: str, run: Path, log: Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        saved = complete(run / "checkpoints")
        if saved and int(saved[-1].name.removeprefix("step-")) >= step:
            return
        now = state(slurm, job)["JobState"]
        assert now in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), log.read_text()[-4000:]
        if now == "PENDING":
            hurry(slurm, job)
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-4000:] if log.exists() else "no log")


def curve(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run's losses and validation: (step, value) by tag."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("loss/", "val/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def undisturbed(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, float]]]:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    job = submit(slurm, run)
    wait_for(slurm, job, "COMPLETED", log=Path(f"{run}.log"))
    shown = curve(run)
    assert len(shown["loss/total"]) == STEPS
    return shown


def test_signalled_job_is_requeued_and_its_curve_has_no_seam(
    slurm: dict[str, str], undisturbed: dict[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    job = submit(slurm, run)
    wait_for(slurm, job, "RUNNING", log=log)
    ask(slurm, "scancel", "--batch", "--signal=USR1", job)  # while Python imports
    deadline = time.monotonic() + 120
    while state(slurm, job).get("Restarts") != "1" and time.monotonic() < deadline:
        time.sleep(0.5)
    wait_for_steps(slurm, job, run, log, step=10)
    ask(slurm, "scancel", "--batch", "--signal=USR1", job)  # while it trains
    ended = wait_for(slurm, job, "COMPLETED", log=log)
    said = log.read_text()
    print(said)
    assert ended["Restarts"] == "2", said
    assert said.count("SIGUSR1 at step") >= 2
    assert said.count(": requeued") == 2
    print("undisturbed", undisturbed["loss/total"], "signalled", curve(run)["loss/total"], sep="\n")
    assert curve(run) == undisturbed
    assert json.loads((run / "result.json").read_text())["step"] == STEPS


def test_job_with_a_killed_task_recovers_by_requeue(
    slurm: dict[str, str], undisturbed: dict[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    job = submit(slurm, run)
    wait_for_steps(slurm, job, run, log, step=10)
    os.kill(task_of(job, rank=1), signal.SIGKILL)
    deadline = time.monotonic() + 120
    while state(slurm, job).get("Restarts") != "1" and time.monotonic() < deadline:
        time.sleep(0.5)
    wait_for(slurm, job, "COMPLETED", log=log)
    print("undisturbed", undisturbed["loss/total"], "killed", curve(run)["loss/total"], sep="\n")
    assert state(slurm, job)["Restarts"] == "1", log.read_text()
    assert curve(run) == undisturbed


def task_of(job: str, rank: int) -> int:
    """The process of a rank: the first of those that Slurm started for it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        if b"dex.fit" in command and wanted <= set(variables):
            found.append(int(folder.name))
    return min(found)


def test_data_prep_as_an_array_gives_the_shards_of_a_single_run(
    slurm: dict[str, str], talking_heads: Path, weights_dir: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("liveportrait_d0", "hellomeme_amns", "megactor_chtf4"):
        shutil.copy(talking_heads / "videos" / f"{name}.mp4", raw)
    options = ["--size=128", "--min-seconds=2"]
    environment = slurm | {"DEX_WEIGHTS": str(weights_dir), "DEX_CPUS": "1", "PYTHONPATH": str(ROOT)}
    single = [sys.executable, "-m", "data_prep", str(raw), f"--out={tmp_path / 'single'}", *options, "--workers=1"]
    ask(environment, *single)
    said = subprocess.run(
        [ROOT / "configs/slurm/prepare.sh", raw, tmp_path / "shards", "2", *options],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    merge = said.stdout.split()[-1]
    wait_for(environment, merge, "COMPLETED", log=tmp_path / f"dex-merge-{merge}.log", seconds=400)
    assert contents(tmp_path / "shards") == contents(tmp_path / "single")


def contents(shards: Path) -> dict[str, str]:
    """Checksum of every member of a folder's shards, by clip and kind; which shard holds it does not matter."""
    found = {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                found[info.name] = hashlib.sha256(file.read()).hexdigest()
    assert found
    return found
