"""The monitor beside a training: what it logs, and that it changes nothing."""

import io
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dex.callbacks.monitor import FRAMES, Monitor
from dex.data.talking_heads import TalkingHeads
from dex.metrics.extractors.faces import FaceReading
from dex.reading.own import own_figures
from dex.reading.tuples import make_clip, make_faces, make_tuples
from tests.data.shards_for_tests import make_shards
from tests.motion.conftest import tiny_data, tiny_trainer


def trained(folder: Path, monitor: bool, data: L.LightningDataModule | None = None) -> list[float]:
    """Losses of four steps."""
    L.seed_everything(0, verbose=False)
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(trainer.callback_metrics["loss/total"].item())

    trainer = L.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[*([Monitor(every_n_steps=3, tuples=3, identities=5)] if monitor else []), Record()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(tiny_trainer(), data or tiny_data())
    return losses


def test_it_logs_and_changes_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(tmp_path / "with", monitor=True) == trained(tmp_path / "without", monitor=False)
    assert capsys.readouterr().out.count("monitor at step") == 2
    board = EventAccumulator(str(tmp_path / "with"), size_guidance={"images": 0})
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    assert {f"disentanglement/I_{name}" for name in ("pp", "ee", "pe", "ep")} <= scalars
    assert {"probe_r2/pose_from_expression", "probe_r2/identity_from_expression"} <= scalars
    assert {"disentanglement/estimator_I_ep", "disentanglement/gain/jaw_open"} <= scalars
    assert [event.step for event in board.Scalars("disentanglement/I_pp")] == [2, 3]  # the third, and the last
    pictures = {"influence_matrix", "tuples", "swap_grid_pose_by_expression", "film_driver_both_pose_expression"}
    assert set(board.Tags()["images"]) == {f"disentanglement/{name}" for name in pictures}
    film = board.Images("disentanglement/film_driver_both_pose_expression")[0].encoded_image_string
    with Image.open(io.BytesIO(film)) as moving:
        assert (moving.n_frames, moving.size) == (FRAMES, (4 * 32, 32))
    assert board.Tags()["tensors"] == ["disentanglement/verdict/text_summary"]


class NoFaces:
    """A detector that finds none."""

    def __enter__(self) -> "NoFaces":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, frames: np.ndarray) -> FaceReading:
        return FaceReading(torch.full((1, 3, 4), torch.nan), torch.zeros(1, 52), torch.zeros(1, 5, 2))


def no_detector() -> NoFaces:
    raise ValueError("reading faces needs MediaPipe")


@pytest.mark.parametrize("detector", [NoFaces, no_detector])
def test_clips_held_out_are_asked_too_and_change_no_loss(
    detector: type, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dex.callbacks.monitor.MediaPipeReader", detector)
    make_shards(tmp_path / "shards", clips=8)

    def data() -> TalkingHeads:
        return TalkingHeads(str(tmp_path / "shards"), val_fraction=0.5, size=32, batch_size=2, drivers=2, workers=0)

    assert trained(tmp_path / "with", True, data()) == trained(tmp_path / "without", False, data())
    said = capsys.readouterr().out
    board = EventAccumulator(str(tmp_path / "with"))
    board.Reload()
    assert "disentanglement_clips/tuples" in board.Tags()["images"]
    if detector is NoFaces:
        assert said.count("0 tuples of clips; faces_found 0.00") == 2
        assert [event.value for event in board.Scalars("disentanglement_clips/faces_found")] == [0, 0]
    else:
        assert said.count("of real clips pictures only; reading faces needs MediaPipe") == 1
        assert "disentanglement_clips/faces_found" not in board.Tags()["scalars"]


def test_outputs_that_are_no_numbers_are_an_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = L.Trainer(logger=TensorBoardLogger(tmp_path, name="", version=""), enable_checkpointing=False)
    module = tiny_trainer()
    torch.nn.init.constant_(module.average.decoder.middle.weight, torch.nan)
    module._trainer = trainer
    monitor = Monitor(every_n_steps=1, tuples=2, identities=5)
    monitor.tuples, monitor.faces = make_tuples(2, 32), make_faces(5, 8, 32)
    found = monitor.measured(module, monitor.tuples, monitor.faces)
    assert found is not None
    shown = monitor.shown(module, monitor.tuples, make_clip(2, 32))
    monitor.report(trainer, found, own_figures(monitor.tuples, 2, 32, "wide", 0), shown, begun=0.0)
    assert "I_pp: nan" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["every_n_steps", "tuples", "identities"])
def test_settings_that_measure_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"monitor.{wrong} is 0"):
        Monitor(**{wrong: 0})
