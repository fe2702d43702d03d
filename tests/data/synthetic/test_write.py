"""The command line writes shards of the common schema, with exact labels, and goes on after an interruption."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dex.data import synthetic
from dex.data.shards import FrameLabels, packed_clips
from dex.data.synthetic.__main__ import main
from dex.data.synthetic.write import Plan, write, write_take
from dex.video import ClipReader


def clips(folder):
    return {clip.meta.key: clip for clip in packed_clips(folder)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "shards"
    assert main(["--out", str(folder), "--clips", "2", "--seconds", "0.6", "--size", "64", "--views", "2"]) == 0
    return folder


def test_clips_hold_frames_and_truth(shards):
    found = clips(shards)
    assert len(found) == 4
    assert len({c.meta.group for c in found.values()}) == 2
    for clip in found.values():
        labels = FrameLabels.from_npz(clip.members["npz"]())
        frames = ClipReader(clip.members["mp4"](), clip.meta.frames).get(range(15))
        assert clip.meta.blendshape_names == list(synthetic.BLENDSHAPES)
        assert len(labels) == clip.meta.frames == 15
        assert (labels.pose_weight == 1).all()
        head = synthetic.make_head(int(clip.meta.identity.removeprefix("synthetic-")))
        assert synthetic.parameters_hash(head) == clip.meta.source_sha256
        drawn = synthetic.render(head, labels.blendshapes, labels.pose, 64).image
        assert np.abs(frames.astype(int) - drawn).mean() < 6  # what the codec loses, no more
        assert np.allclose(labels.landmarks, synthetic.landmarks(head, labels.blendshapes, labels.pose), atol=1e-5)
        assert (labels.quality > 0).all()


def test_views_share_the_expression_and_turn_the_head_rigidly(shards):
    found = clips(shards)
    key = sorted(found)[0]
    a, b = (FrameLabels.from_npz(found[k].members["npz"]()) for k in (key, key[:-1] + "1"))
    assert np.array_equal(a.blendshapes, b.blendshapes)
    camera = b.pose[:, :, :3] @ np.linalg.inv(a.pose[:, :, :3])
    assert np.abs(camera - camera[0]).max() < 1e-4
    turn = np.degrees(np.arccos((np.trace(camera[0] / np.cbrt(np.linalg.det(camera[0]))) - 1) / 2))
    assert 10 < turn < 40


def test_a_killed_run_goes_on(tmp_path, shards, monkeypatch):
    plan = Plan(clips=2, size=64, seconds=0.6, views=2)
    drawn = []

    def counted(plan, folder, take):
        if take == 1 and len(drawn) == 1:
            drawn.append(0)
            raise KeyboardInterrupt
        drawn.append(write_take(plan, folder, take))
        return drawn[-1]

    monkeypatch.setattr("dex.data.synthetic.write.write_take", counted)
    with pytest.raises(KeyboardInterrupt):
        write(plan, tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    index = write(plan, tmp_path / "out")
    assert drawn == [30, 0, 0, 30]  # the first take was there already
    assert index.shards[0].sha256 == next(iter(write(plan, shards).shards)).sha256  # the same bytes as without a break


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "val"}, {"identities": 1}, {"clips": 4, "views": 1}])
def test_shards_of_another_plan_are_no_success(shards, other):
    """Two clips of two views: the others have as many clips and frames of the same size."""
    same = Plan(clips=2, size=64, seconds=0.6, views=2)
    assert write(same, shards).clips == 4
    with pytest.raises(ValueError, match=r"its 4 clips are not those of Plan\("):
        write(replace(same, **other), shards)


def test_what_a_kill_left_beside_finished_shards_is_removed(tmp_path, monkeypatch):
    """Killed between the index and the removal of the loose clips."""
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    write(plan := Plan(clips=1, size=32, seconds=0.1), tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.glob(".staging-*/*.json"))
    write(plan, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "train-000000.tar"]


def test_errors_are_one_line(tmp_path, shards, capsys):
    assert main(["--out", str(shards), "--clips", "9"]) == 1
    assert main(["--out", str(tmp_path / "x"), "--size", "63"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_sheet(tmp_path):
    assert main(["--sheet", str(tmp_path / "sheet.png"), "--size", "48"]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (288, 288)
