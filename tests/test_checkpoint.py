"""Checkpoints: complete or not there, whatever happens while they are written, and refused where they do not fit."""

import dataclasses
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

from dex import checkpoint, export
from dex.callbacks.checkpoints import Checkpoints, Preempted
from dex.checkpoint import CheckpointError
from dex.fit import make_cli
from tests.motion.conftest import TINY, tiny_data, tiny_trainer

ROOT = Path(__file__).parents[1]


def train(
    folder: Path,
    steps: int,
    *callbacks: L.Callback,
    resume: Path | None = None,
    trainer: dict[str, Any] | None = None,
    **settings: Any,
) -> Checkpoints:
    torch.manual_seed(0)
    saves = Checkpoints(str(folder), **{"every_n_steps": 2, **settings})
    saves.resume = resume
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    limits = {"max_steps": steps, "accelerator": "cpu", "limit_val_batches": 0, "default_root_dir": folder}
    built: Any = L.Trainer(callbacks=[*callbacks, saves], **{**plain, **limits, **(trainer or {})})  # type: ignore[arg-type]
    built.fit(tiny_trainer(), tiny_data())
    return saves


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_are_kept_and_last_points_to_the_newest(tmp_path: Path) -> None:
    train(tmp_path, 7, keep=2)
    assert names(tmp_path) == ["last", "step-0000006", "step-0000007"]
    assert (tmp_path / "last").resolve().name == "step-0000007"  # the end is saved, too
    state = checkpoint.read_state(tmp_path / "last")
    assert (state["step"], state["world_size"], state["schema"]) == (7, 1, checkpoint.SCHEMA)
    known = checkpoint.stored(tmp_path / "last")
    assert {name.split(".")[0] for name in known} == {"model", "optimizer_0", "optimizer_1"}
    assert {name.split(".")[1] for name in known if name.startswith("model.")} >= {"generator", "average", "read_out"}


class FullDisk(L.Callback):
    """No file may grow beyond a page while step 4 is saved."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        if trainer.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self.limit[1]))

    def on_train_batch_end(self, *_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


def test_full_disk_warns_and_training_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step 4: the checkpoint was not saved \(.*too large.*\); step 2 stays"):
        saves = train(tmp_path, 5, FullDisk(), keep=5)
    assert names(tmp_path) == ["last", "step-0000002", "step-0000005"]
    assert saves.saved == 5


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights after six steps at a stretch."""
    whole = tmp_path_factory.mktemp("whole")
    train(whole, 6)
    return checkpoint.read_tensors(whole / "last", "model.")


@pytest.mark.parametrize("moment", ["rest", "point_to"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, moment: str, undisturbed: dict[str, Tensor]
) -> None:
    """Between the tensors and the rest, and between the folder's name and the link to it."""
    script = f"""
import os, signal
from pathlib import Path
from dex import checkpoint, export
from tests.test_checkpoint import train
real = checkpoint.{moment}
def killed(*arguments):
    if (Path({str(tmp_path)!r}) / "last").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
checkpoint.{moment} = killed
train(Path({str(tmp_path)!r}), 6)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == -9, ended.stderr
    assert (tmp_path / "last").resolve().name == "step-0000002"
    train(tmp_path, 6, resume=tmp_path / "last", keep=9)
    resumed = checkpoint.read_tensors(tmp_path / "last", "model.")
    assert {"step-0000004", "step-0000006"} <= set(names(tmp_path))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)


def test_a_run_goes_on_where_last_points_to_or_without_it_at_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoint.newest(folder) is None
    train(folder, 4)
    last = folder / "last"
    last.unlink()
    last.symlink_to("step-0000002")
    assert checkpoint.newest(folder) == folder / "step-0000002"
    last.unlink()  # as a kill between the first checkpoint and its link leaves it
    assert checkpoint.newest(folder) == folder / "step-0000004"
    last.symlink_to("step-0000006")
    with pytest.raises(CheckpointError, match=r"last points to step-0000006, .*: ln -sfn step-0000004 .*last"):
        checkpoint.newest(folder)
    with pytest.raises(CheckpointError, match="ln -sfn step-0000004"):  # a run whose checkpoints lie elsewhere
        make_cli([f"--run={tmp_path / 'run'}", f"--checkpoint.folder={folder}", "--trainer.accelerator=cpu"])
    cli = make_cli([f"--run={tmp_path / 'run'}", "--trainer.accelerator=cpu"])
    assert cli.checkpoints == tmp_path / "run" / "checkpoints"
    assert cli.config.checkpoint.folder == ""  # a copy of the run's settings does not point here
    monkeypatch.setattr(sys, "argv", ["dex.export", str(tmp_path)])  # which looks in the same place
    with pytest.raises(SystemExit, match="ln -sfn step-0000004"):
        export.main()


def test_a_folder_in_the_links_place_makes_way_for_it(tmp_path: Path) -> None:
    """As a copy that follows links leaves it."""
    train(tmp_path, 2)
    last = tmp_path / "last"
    last.unlink()
    shutil.copytree(tmp_path / "step-0000002", last)
    train(tmp_path, 4, keep=1, resume=checkpoint.newest(tmp_path))
    assert names(tmp_path) == ["last", "step-0000004"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-0000004"


def test_later_steps_do_not_displace_the_one_just_written(tmp_path: Path) -> None:
    train(tmp_path, 4)
    (tmp_path / "last").unlink()
    (tmp_path / "last").symlink_to("step-0000002")
    train(tmp_path, 3, keep=1, resume=checkpoint.newest(tmp_path))
    assert names(tmp_path) == ["last", "step-0000003", "step-0000004"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-0000003"


class CtrlC(L.Callback):
    """In step 3."""

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.checkpoint_callback.listen()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # a second one ends at once


@pytest.mark.usefixtures("_handlers")
def test_ctrl_c_saves_and_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Preempted, match="SIGINT at step 3") as ended:
        train(tmp_path, 6, CtrlC())
    assert "saves before the next step" in capfd.readouterr().err
    assert ended.value.signum == signal.SIGINT
    assert checkpoint.newest(tmp_path) == tmp_path / "step-0000003"


class Logged(L.Callback):
    """Steps at which validation ran, and the step under which Lightning logs each batch."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.logged: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.logged.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step)


def test_validation_and_logs_of_a_resumed_run_have_no_seam(tmp_path: Path) -> None:
    often: dict[str, Any] = {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    first, rest = Logged(), Logged()
    train(tmp_path, 4, first, trainer=often)
    train(tmp_path, 9, rest, keep=9, resume=tmp_path / "last", trainer=often)
    assert first.logged + rest.logged == list(range(9))
    assert first.validated + rest.validated == [3, 6, 9]
    early = Logged()  # from a checkpoint that was written while the next batch waited
    train(tmp_path / "early", 9, early, resume=tmp_path / "step-0000006", trainer=often)
    assert early.logged == [6, 7, 8]
    assert early.validated == [9]


def test_random_states_come_back(tmp_path: Path) -> None:
    saves = train(tmp_path, 2)
    expected = (random.random(), np.random.random(), torch.rand(()))  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    checkpoint.restore_random(checkpoint.read_state(saves.folder / "last")["random"][0])
    assert (random.random(), np.random.random(), torch.rand(())) == expected  # noqa: NPY002


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    last = (tmp_path / "last").resolve()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read_state(tmp_path / "step-0000009")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(tiny_trainer(network=dataclasses.replace(TINY, expression_dim=16)))
    trainer.strategy._lightning_module = trainer.strategy.model
    with pytest.raises(CheckpointError, match=r"made by another model or version of dex; .* such as"):
        checkpoint.load(trainer, last)
    state = torch.load(last / "state.pt", weights_only=True)
    torch.save(state | {"schema": 0}, last / "state.pt")
    with pytest.raises(CheckpointError, match="schema version 0, this program reads 1"):
        checkpoint.read_state(last)
    (last / "state.pt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
        checkpoint.read_state(last)
    next(last.glob("*.safetensors")).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.stored(last)


def test_settings_of_checkpoints_are_checked() -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.keep is 0, need at least 1"):
        Checkpoints(keep=0)
