"""A whole source through both passes, with a detector that is made up; what a source without clips leaves behind."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep import filters
from data_prep.layouts import Source
from data_prep.pipeline import Record, process
from data_prep.settings import FPS, Settings
from data_prep.staging import Staging
from dex.data.shards import FrameLabels, stage_clip, staged_clips
from dex.faces.detect import Face, Seen
from tests.data.shards_for_tests import labels, meta
from tests.data_prep.made_videos import write_video
from tests.data_prep.test_analyse import CountingTracker

SIDE = 128  # of the video's pictures


class MovingTracker(CountingTracker):
    """A face of 60 pixels that goes right by 0.05 a look and is not seen in some of them."""

    blendshape_names: tuple[str, ...] = ()

    def __init__(self, lapse: range) -> None:
        self.lapse = lapse
        self.points = np.random.default_rng(0).uniform(24, 84, (478, 2))

    def track(self, image: np.ndarray) -> Seen:
        seen = super().track(image)
        look = self.looked - 1
        pose = np.concatenate([30 * np.eye(3), [[54 + 0.05 * look], [54], [0]]], axis=1)
        face = Face(self.points + [0.05 * look, 0], pose, seen.face.blendshapes, sharpness=100.0)
        return Seen(None if look in self.lapse else face, seen.score, np.zeros((0, 4)))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_video(path, [np.full((SIDE, SIDE, 3), 128, np.uint8)] * 400, [Fraction(i, FPS) for i in range(400)])
    return path


@pytest.mark.parametrize("multi_view", [False, True])
@pytest.mark.parametrize("lapse", [range(199, 202), range(196, 200), range(200, 204)])
def test_a_lapse_where_a_run_is_cut_in_two_is_filled_from_both_sides(
    long_video: Path, tmp_path: Path, lapse: range, multi_view: bool
) -> None:
    """16 s are cut at 8 s (and in windows of 4 s): a clip ends, begins, or both without a measured frame."""
    source = Source(long_video, "long.mp4", "someone", "take", multi_view=multi_view)
    record = process(source, Settings(size=32), MovingTracker(lapse), tmp_path, lambda _: None)
    wanted = [(0, 100), (100, 100), (200, 100), (300, 100)] if multi_view else [(0, 200), (200, 200)]
    assert [(round(clip["start"] * FPS), clip["frames"]) for clip in record.clips] == wanted
    for clip in staged_clips(tmp_path):
        found = FrameLabels.from_npz(clip.members["npz"]())
        unseen = [round(clip.meta.start * FPS) + i in lapse for i in range(clip.meta.frames)]
        assert ((found.pose_weight == 0) == unseen).all()
        steps = np.diff(found.landmarks[:, 0, 0])  # the crop stands still
        np.testing.assert_allclose(steps, steps.mean(), rtol=0.02)
        assert steps.mean() > 0


def test_a_source_that_is_recorded_without_clips_keeps_none_that_were_staged(tmp_path: Path) -> None:
    """A worker that died in its second clip had staged the first."""
    staging = Staging(tmp_path / "out")
    sources = [Source(tmp_path / name, name, name, name) for name in ("crashed.mp4", "good.mp4")]
    with staging.opened({}):
        for source in sources:
            described = meta(source.identity[:-4], source.identity, 0, source.recording, 3, 32)
            stage_clip(staging.clips_folder(source), described, labels(3), b"video")
        staging.finish(sources[0], Record("crashed.mp4", filters.CRASHED, "its process ended with SIGSEGV"))
        staging.finish(sources[1], Record("good.mp4", clips=[{"key": "good", "frames": 3}]))
        assert [clip.meta.key for clip in staging.clips(sources)] == ["good"]
