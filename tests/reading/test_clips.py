"""What the monitor reads from real pictures: arithmetic with a detector that knows, and MediaPipe on portraits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dex.metrics.extractors.faces import FaceReading, MediaPipeReader
from dex.pose import matrix_from_euler
from dex.reading.clips import ClipReadings, measure_clips, rotated
from dex.reading.measure import Measured, outputs
from dex.reading.pictures import tuples_picture
from dex.reading.tuples import EDITS

PORTRAITS = ("sadtalker_happy.png", "liveportrait_s9.jpg", "liveportrait_d12_img.jpg", "megactor_src2.png")
CPU = torch.device("cpu")


class KnowingReader:
    """Yaw stands in a picture's red, expression in its green; black has no face."""

    def read(self, frames: np.ndarray) -> FaceReading:
        red, green, _ = (torch.from_numpy(frames).double().mean(dim=(0, 1, 2)) / 255).tolist()
        pose = torch.eye(3, 4, dtype=torch.float64)
        pose[:, :3] = matrix_from_euler(*torch.tensor([red, 0.0, 0.0], dtype=torch.float64))
        lost = torch.nan if red + green == 0 else 0.0
        return FaceReading(
            pose[None] + lost, torch.full((1, 4), green, dtype=torch.float64) + lost, torch.zeros(1, 5, 2)
        )


def flat(*levels: tuple[float, float]) -> Tensor:
    """(N, 3, 16, 16), uint8, of (red, green) in [0, 1]."""
    picture = torch.tensor([(red, green, 0) for red, green in levels]).mul(255).round().to(torch.uint8)
    return picture[:, :, None, None].expand(-1, -1, 16, 16).contiguous()


PICTURES = flat((0.1, 0.9), (0.5, 0.2), (0.9, 0.4), (0.3, 0.6))


def half_and_half(source: Tensor, pose: Tensor, expression: Tensor) -> Tensor:
    """Red of the pose's driver; green half of the expression's driver, and a tenth of the pose's."""
    made = source.clone()
    made[:, 0] = pose[:, 0]
    made[:, 1] = 0.5 * expression[:, 1] + 0.1 * pose[:, 1]
    return made


def test_every_clip_is_source_and_driver_once() -> None:
    tuples = rotated(PICTURES)
    assert len(tuples) == 4
    for pictures in (tuples.source, *tuples.driver):
        assert {int(picture[0, 0, 0]) for picture in pictures} == {int(picture[0, 0, 0]) for picture in PICTURES}
    for three in zip(tuples.source, *tuples.driver, strict=True):
        assert len({int(picture[0, 0, 0]) for picture in three}) == 3


def test_gains_and_drifts_are_those_of_the_model() -> None:
    tuples, reader = rotated(PICTURES), KnowingReader()
    made = outputs(half_and_half, tuples, CPU)
    found = measure_clips(made, ClipReadings.of(reader, tuples), reader)  # type: ignore[arg-type]
    assert (found["faces_found"], found["tuples"]) == (1, 4)
    close = pytest.approx
    assert (found["I_pp"], found["I_pe"], found["I_ee"], found["I_ep"]) == close((1, 0, 0.5, 0.1), abs=0.01)


def test_what_has_no_face_counts_as_missed_and_not_as_still() -> None:
    tuples, reader = rotated(PICTURES), KnowingReader()
    made = outputs(half_and_half, tuples, CPU)
    made["pose"][0] = 0
    drivers = ClipReadings.of(reader, tuples)  # type: ignore[arg-type]
    found = measure_clips(made, drivers, reader)  # type: ignore[arg-type]
    assert (found["faces_found"], found["tuples"]) == (pytest.approx(11 / 12), 3)
    black = {edit: torch.full_like(made[edit], torch.nan) for edit in EDITS}
    assert measure_clips(black, drivers, reader) == {"faces_found": 0, "tuples": 0}  # type: ignore[arg-type]


def test_portraits_are_read_at_64_pixels(weights_env: Path, talking_heads: Path) -> None:
    """A model that gives back the driver that was edited moves as far as its drivers, in both factors; one that gives
    back its source does not move."""
    files = [Image.open(talking_heads / "portraits" / name).convert("RGB").resize((64, 64)) for name in PORTRAITS]
    tuples = rotated(torch.from_numpy(np.stack([np.asarray(file) for file in files])).movedim(-1, 1))
    with MediaPipeReader() as reader:
        drivers = ClipReadings.of(reader, tuples)
        assert drivers.a.found.all()
        made = outputs(lambda source, pose, expression: pose, tuples, CPU, joint=True)
        both = measure_clips(made, drivers, reader)
        still = measure_clips(outputs(lambda source, *_: source, tuples, CPU), drivers, reader)
    assert both["faces_found"] == still["faces_found"] == 1
    assert [both[f"I_{pair}"] for pair in ("pp", "ee", "pe", "ep")] == pytest.approx([1, 1, 1, 1], abs=1e-3)
    assert [still[f"I_{pair}"] for pair in ("pp", "ee", "pe", "ep")] == [0, 0, 0, 0]
    assert tuples_picture(tuples, Measured(both, made), 2).shape == (3, 2 * 66 + 2, 6 * 66 + 2)
