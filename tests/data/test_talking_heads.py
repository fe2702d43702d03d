"""The streaming datamodule: what its batches hold, their order, and what it does with bad shards."""

import io
import itertools
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from dex.batch import Batch
from dex.callbacks.checkpoints import Checkpoints
from dex.checkpoint import step_folder
from dex.data import clips as clips_module
from dex.data.clips import background_motion
from dex.data.position import Layout
from dex.data.reading import Tally, read_units
from dex.data.shards import ShardError
from dex.data.streaming import Loader, PassStream, TrainStream, epoch_units
from dex.data.talking_heads import TalkingHeads
from tests.data.shards_for_tests import clip_level, frame_level, make_shards

SIZE, FRAMES = 32, 40


@pytest.fixture(scope="module")
def one_camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "shards"
    make_shards(folder, clips=13, size=SIZE, frames=FRAMES)
    return folder


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "shards"
    make_shards(folder, clips=6, cameras=2, size=SIZE, frames=FRAMES)
    return folder


def module(shards: Path | str | list[str], **arguments: Any) -> TalkingHeads:
    defaults: dict[str, Any] = {"size": SIZE, "batch_size": 4, "workers": 0, "shuffle": 4, "clip_length": 8}
    data = TalkingHeads(str(shards) if isinstance(shards, Path) else shards, **(defaults | arguments))
    data.setup()
    return data


def keys(data: TalkingHeads, count: int) -> list[list[str]]:
    return [batch.key for batch in itertools.islice(data.train_dataloader(), count)]


def shots(part: str) -> list[tuple[str, int]]:
    """[(clip, frame), …] of one side of a sample's key."""
    return [(name.partition("@")[0], int(name.partition("@")[2])) for name in part.split("+")]


def assert_shows(image: torch.Tensor, clip: str, frame: int) -> None:
    """The picture (3, H, W) is the one that this clip and frame were written with."""
    left, right = image[..., 2 : SIZE // 2 - 2].float().mean(), image[..., SIZE // 2 + 2 : -2].float().mean()
    assert abs(left - frame_level(frame)) < 1.5
    assert abs(right - clip_level(int(clip[2:4]), int(clip[-1]))) < 2


# ---- what a batch holds ----------------------------------------------------------------------------------------------


def test_pairs_hold_what_their_keys_say(two_cameras: Path) -> None:
    crossed = 0
    for batch in itertools.islice(module(two_cameras).train_dataloader(), 6):
        assert batch.source.shape == (4, 3, SIZE, SIZE)
        assert batch.driving.shape == batch.expression_view.shape == (4, 4, 3, SIZE, SIZE)
        assert batch.driving.dtype == batch.driving_region.dtype == torch.uint8
        for i, key in enumerate(batch.key):
            (source,), driving = (shots(part) for part in key.split("|"))
            assert_shows(batch.source[i], *source)
            assert len({source[1], *(frame for _, frame in driving)}) == 5
            assert {clip[:4] for clip, _ in driving} == {source[0][:4]}  # one subject
            crossed += sum(clip != source[0] for clip, _ in driving)
            for k, (clip, frame) in enumerate(driving):
                assert_shows(batch.driving[i, k], clip, frame)
                other = clip[:-1] + str(1 - int(clip[-1]))
                assert_shows(batch.expression_view[i, k], other, frame)
                last = frame == FRAMES - 1  # the frame without a label
                assert batch.driving_pose_weight[i, k] == (0 if last else 1)
                assert batch.driving_pose[i, k, 0, 3] == pytest.approx(0 if last else frame / 100)
            assert torch.isfinite(batch.driving_pose).all()
    assert 30 < crossed < 66  # of 96, each camera by an even draw


def test_without_cross_view_the_expression_is_the_drivers_own(two_cameras: Path) -> None:
    batch = next(iter(module(two_cameras, cross_view=False).train_dataloader()))
    assert torch.equal(batch.expression_view, batch.driving)


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_are_consecutive_and_the_source_lies_outside(one_camera: Path, workers: int) -> None:
    for batch in itertools.islice(module(one_camera, mode="clip", workers=workers).train_dataloader(), 4):
        assert batch.driving.shape == (4, 8, 3, SIZE, SIZE)
        assert torch.equal(batch.expression_view, batch.driving)
        for i, key in enumerate(batch.key):
            source, _, window = key.partition("|")
            clip, _, span = window.partition("@")
            begin, end = (int(bound) for bound in span.split("-"))
            frame = shots(source)[0][1]
            assert end - begin == 7
            assert not begin <= frame <= end
            assert_shows(batch.source[i], clip, frame)
            for k in range(8):
                assert_shows(batch.driving[i, k], clip, begin + k)


def test_frames_are_scaled_and_regions_follow(one_camera: Path) -> None:
    batch = next(iter(module(one_camera, size=16).train_dataloader()))
    assert batch.driving.shape[-2:] == batch.driving_region.shape[-2:] == (16, 16)
    assert batch.driving_region.unique().tolist() == [0, 1, 2, 3, 4]


def test_pictures_become_float_on_the_device(one_camera: Path) -> None:
    data = module(one_camera)
    raw = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.driving.is_contiguous()
    torch.testing.assert_close(batch.driving, raw.driving.float() / 127.5 - 1)


def test_pinned_batches_share_what_they_shared(one_camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a GPU: here a copy stands in for it."""
    batch = next(iter(module(one_camera).train_dataloader()))
    assert batch.expression_view is batch.driving
    copies: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: copies.append(self.clone()) or copies[-1])
    pinned, _ = pin_memory((batch, Tally()))  # what the loader does with its items
    assert isinstance(pinned, Batch)
    assert pinned.key == batch.key
    assert pinned.expression_view is pinned.driving
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert any(getattr(pinned, name) is copy for copy in copies)
            torch.testing.assert_close(getattr(pinned, name), value, rtol=0, atol=0, equal_nan=True)
    assert len(copies) == len({id(value) for value in vars(batch).values() if isinstance(value, torch.Tensor)})


# ---- order -----------------------------------------------------------------------------------------------------------


def test_order_is_decided_by_the_seed(one_camera: Path) -> None:
    assert keys(module(one_camera), 6) == keys(module(one_camera), 6)
    assert keys(module(one_camera), 6) != keys(module(one_camera, seed=1), 6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [1, 6, 9])
def test_a_resumed_run_goes_on_where_it_was(one_camera: Path, workers: int, consumed: int) -> None:
    """Over the border of an epoch (7 batches) and from a batch that is not worker 0's."""
    whole = keys(module(one_camera, workers=workers, epoch_batches=7), 12)
    resumed = module(one_camera, workers=workers, epoch_batches=7)
    resumed.load_state_dict({"history": [(1, max(1, workers), consumed)]})
    assert keys(resumed, 12 - consumed) == whole[consumed:]
    assert len({key for batch in whole for key in batch}) == 48  # nothing is repeated on the way


def test_resuming_decodes_only_what_is_asked_for(one_camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    reader = clips_module.ClipReader
    monkeypatch.setattr(clips_module, "ClipReader", lambda *a: opened.append(a) or reader(*a))
    data = module(one_camera, epoch_batches=1000)
    data.load_state_dict({"history": [(1, 1, 900)]})
    next(iter(data.train_dataloader()))
    assert len(opened) == 2  # a batch of 4, two samples from each clip


@pytest.mark.parametrize("processes", [1, 3, 6])
def test_an_epoch_deals_every_clip_to_one_process(one_camera: Path, processes: int) -> None:
    """5 shards over 1, 3 and 6 processes (the last share them clip by clip): nothing is lost before it repeats."""
    schedule = module(one_camera, shuffle=0)._schedule()
    dealt = Counter()
    for index in range(processes):
        units = epoch_units(schedule, index, processes, epoch=3, tally=Tally())
        share: list[str] = []
        while (group := next(units).group) not in share:
            share.append(group)
        assert group == share[0]
        dealt.update(share)
    assert sorted(dealt) == [f"group{i:02d}" for i in range(13)]
    assert set(dealt.values()) == {1}


def test_ranks_and_workers_draw_differently(one_camera: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    drawn = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        drawn += itertools.chain(*keys(module(one_camera, workers=2), 4))
    assert len(set(drawn)) == len(drawn) == 32


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_a_pass_gives_every_clip_once(
    one_camera: Path, world: int, workers: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    found, lengths = [], []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        loader = module(one_camera, val_shards=str(one_camera), batch_size=batch_size, workers=workers).val_dataloader()
        batches = [batch.key for batch in loader]
        assert len(batches) == len(loader)
        assert max(map(len, batches)) <= max(batch_size, 2)
        lengths.append(len(batches))
        found += itertools.chain(*batches)
    assert len(set(lengths)) == 1  # or the ranks would wait for one another for ever
    assert sorted(key[:4] for key in found) == [f"id{i:02d}" for i in range(13)]
    alone = module(one_camera, val_shards=str(one_camera)).val_dataloader() if batch_size == 4 else None
    if alone is not None and world == 1:
        assert sorted(found) == sorted(key for batch in alone for key in batch.key)  # the same samples


def test_held_out_identities_are_never_trained_on(one_camera: Path) -> None:
    data = module(one_camera, val_fraction=0.25)
    trained = {key[:4] for batch in keys(data, 30) for key in batch}
    validated = {key[:4] for batch in data.val_dataloader() for key in batch.key}
    assert len(validated) == 3
    assert trained | validated == {f"id{i:02d}" for i in range(13)}
    assert not trained & validated
    assert module(one_camera).val_dataloader() == []


def test_val_pictures_are_the_first_clips_on_every_rank_and_draw_no_random_numbers(
    one_camera: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    found = module(one_camera, val_shards=str(one_camera)).val_pictures(6)
    assert torch.equal(before, torch.get_rng_state())
    assert (found.shape, found.dtype) == ((6, 3, SIZE, SIZE), torch.uint8)
    assert len({int(picture[0, 0, -1]) for picture in found}) >= 5  # clips 0 and 8 have one level
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert torch.equal(module(one_camera, val_shards=str(one_camera)).val_pictures(6), found)
    assert len(module(one_camera).val_pictures(6)) == 0


def test_pipes_and_patterns_read_the_same(one_camera: Path) -> None:
    names = sorted(path.name for path in one_camera.glob("*.tar"))
    braces = f"{one_camera}/train-{{000000..{len(names) - 1:06d}}}.tar"
    whole = keys(module(one_camera, epoch_batches=9), 5)
    assert keys(module(braces, epoch_batches=9), 5) == whole
    assert keys(module(f"{one_camera}/*.tar", epoch_batches=9), 5) == whole
    assert keys(module([f"pipe:cat {one_camera}/{name}" for name in names], epoch_batches=9), 5) == whole


def test_a_clip_opens_one_camera_of_its_group(two_cameras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    reader = clips_module.ClipReader
    monkeypatch.setattr(clips_module, "ClipReader", lambda *a: opened.append(a) or reader(*a))
    drawn = keys(module(two_cameras, mode="clip"), 6)
    assert len(opened) == 12  # a batch of 4, two samples from each clip
    assert {key.partition("@")[0][-1] for batch in drawn for key in batch} == {"0", "1"}


def test_an_epoch_is_counted_only_where_all_shards_are(one_camera: Path) -> None:
    both = [str(one_camera), f"{one_camera}/*.tar"]
    assert module([str(one_camera)] * 2)._schedule().samples == 2 * 26
    assert module(both)._schedule().samples == 0  # and not the folder's alone


def test_of_many_cameras_a_few_are_drawn(tmp_path: Path) -> None:
    index = make_shards(tmp_path / "shards", clips=1, cameras=5, size=SIZE, frames=20)
    url, tally = str(tmp_path / "shards" / index.shards[0].name), Tally()
    drawn = Counter()
    for seed in range(60):
        (unit,) = read_units(url, tally, cameras=2, rng=np.random.default_rng(seed))
        assert len({clip.meta.camera for clip in unit.clips}) == 2
        drawn.update(clip.meta.camera for clip in unit.clips)
    assert min(drawn.values()) > 10  # 24 expected of each


# ---- under Lightning -------------------------------------------------------------------------------------------------


class Listener(L.LightningModule):
    """A training step that notes the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert batch.driving.dtype == torch.float32
        self.seen.append(batch.key)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated += batch.key

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: TalkingHeads, folder: Path, steps: int, resume: Path | None = None) -> tuple[Listener, L.Trainer]:
    listener = Listener()
    saves = Checkpoints(str(folder), every_n_steps=3, keep=10)
    saves.resume = resume
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[saves],
        val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(listener, data)
    return listener, trainer


def test_resume_under_lightning_sees_the_same_samples(one_camera: Path, tmp_path: Path) -> None:
    """Prefetched batches do not count as consumed, nor do those of validation."""
    arguments: dict[str, Any] = {"workers": 2, "val_fraction": 0.2, "epoch_batches": 4}
    whole, _ = fit(TalkingHeads(str(one_camera), size=SIZE, batch_size=4, **arguments), tmp_path, 8)
    resumed, _ = fit(
        TalkingHeads(str(one_camera), size=SIZE, batch_size=4, **arguments), tmp_path / "b", 8, step_folder(tmp_path, 3)
    )
    assert len(whole.seen) == 8
    assert resumed.seen == whole.seen[3:]
    assert len(whole.validated) == 1 + 2 * 3 or len(whole.validated) >= 6


# ---- bad shards ------------------------------------------------------------------------------------------------------


Edit = Callable[[str, bytes], bytes | None]


def damaged(shards: Path, out: Path, edit: Edit, clips: tuple[int, ...], **arguments: Any) -> TalkingHeads:
    """A copy of `shards` in which the members of some clips went through `edit` (None: the member is lost)."""
    shutil.copytree(shards, out)
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar]
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                changed = edit(name.partition(".")[2], data) if int(name[2:4]) in clips else data
                if changed is not None:
                    info = tarfile.TarInfo(name)
                    info.size = len(changed)
                    tar.addfile(info, io.BytesIO(changed))
    return module(out, val_shards=str(out), **arguments)


def hole(kind: str, data: bytes) -> bytes:
    """The second half of the video is zeros."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2) if kind == "mp4" else data


def fewer_frames(kind: str, data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"frames": FRAMES - 1}).encode() if kind == "json" else data


def other_schema(kind: str, data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"schema": 99}).encode() if kind == "json" else data


def no_video(kind: str, data: bytes) -> bytes | None:
    return None if kind == "mp4" else data


def no_labels(kind: str, data: bytes) -> bytes | None:
    return None if kind == "npz" else data


def no_meta(kind: str, data: bytes) -> bytes | None:
    return None if kind == "json" else data


def torn_labels(kind: str, data: bytes) -> bytes:
    return data[:1000] if kind == "npz" else data


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("edit", [hole, fewer_frames, other_schema, no_video, no_labels, no_meta, torn_labels])
def test_a_damaged_clip_is_skipped_and_counted(one_camera: Path, tmp_path: Path, edit: Edit, workers: int) -> None:
    data = damaged(one_camera, tmp_path / "shards", edit, (5,), workers=workers)
    validation = data.val_dataloader()
    seen = sorted(key[:4] for batch in validation for key in batch.key)
    assert seen == [f"id{i:02d}" for i in range(13) if i != 5]
    assert validation.tally.skipped == 1
    assert "05" in validation.tally.reason
    training = data.train_dataloader()
    assert all("id05" not in key for batch in itertools.islice(training, 12) for key in batch.key)
    assert 1 <= training.tally.skipped <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_clip_counts_once_however_often_it_is_read(one_camera: Path, tmp_path: Path, workers: int) -> None:
    training = damaged(one_camera, tmp_path / "shards", hole, (5,), workers=workers).train_dataloader()
    for _ in itertools.islice(training, 60):  # nine times through 13 clips
        pass
    assert training.tally.damaged == {"group05"}
    assert training.tally.tried == {f"group{i:02d}" for i in range(13)}


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_a_batch_of_one_that_is_damaged_is_made_of_the_next(
    one_camera: Path, tmp_path: Path, world: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = damaged(one_camera, tmp_path / "shards", hole, (5,), batch_size=1, workers=workers)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    seen: Counter[str] = Counter()
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        loader = data.val_dataloader()
        batches = [batch.key for batch in loader]
        assert len(batches) == len(loader)
        seen.update(key[:4] for batch in batches for key in batch)
    assert sorted(seen) == [f"id{i:02d}" for i in range(13) if i != 5]
    assert sorted(seen.values())[:-1] == [1] * 11
    assert max(seen.values()) <= 2


def test_a_pass_of_unusable_clips_is_an_error(one_camera: Path) -> None:
    loader = module(one_camera, val_shards=str(one_camera), mode="clip", clip_length=50, batch_size=1).val_dataloader()
    with pytest.raises(ShardError, match=r"no validation clip of rank 0 is of use.* 40 frames, need 51"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_many_damaged_clips_stop_the_run(one_camera: Path, tmp_path: Path, workers: int) -> None:
    data = damaged(one_camera, tmp_path / "shards", no_labels, tuple(range(6)), workers=workers)
    with pytest.raises(ShardError, match=r"4 of \d+ clips are damaged, more than 1%; the last one: group0\d: no npz"):
        keys(data, 50)


def test_a_cut_shard_loses_its_tail_only(one_camera: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(one_camera, tmp_path / "shards"))
    cut = sorted(shards.glob("*.tar"))[0]
    cut.write_bytes(cut.read_bytes()[: int(0.6 * cut.stat().st_size)])
    tally = Tally()
    whole = [unit for url in sorted(one_camera.glob("*.tar")) for unit in read_units(str(url), Tally(), 1)]
    read = [unit for url in sorted(shards.glob("*.tar")) for unit in read_units(str(url), tally, 1)]
    assert 0 < len(whole) - len(read) < 4
    assert tally.skipped == 1
    assert cut.name in tally.reason


def test_short_clips_say_how_to_mend_it(one_camera: Path) -> None:
    with pytest.raises(ShardError, match=r"40 frames, need 51\. Lower data\.clip_length or prepare with --min-seconds"):
        keys(module(one_camera, mode="clip", clip_length=50), 1)


def test_user_errors_are_one_line(one_camera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    empty = Path(shutil.copytree(one_camera, tmp_path / "empty"))
    index = json.loads((empty / "index.json").read_text())
    (empty / "index.json").write_text(json.dumps(index | {"shards": [], "clips": 0}))
    name = sorted(one_camera.glob("*.tar"))[0].name
    cases = [
        ({"shards": str(tmp_path / "gone")}, "gone: no such shard or folder"),
        ({"shards": str(tmp_path / "bare")}, "index.json: not found"),
        ({"shards": str(empty)}, "names no shard"),
        ({"shards": f"{tmp_path}/train-{{000..002}}.tar"}, r"3 of 3 are missing"),
        ({"shards": f"{tmp_path}/*.tar"}, "no such shard"),
        ({"shards": str(one_camera), "size": 64}, "crops of 32 pixels"),
        ({"shards": str(one_camera), "workers": 20}, "13 clips for 20 loader processes .* lower data.workers"),
        ({"shards": f"pipe:cat {one_camera}/{name}", "workers": 2}, "1 shards for 2 loader processes"),
        ({"shards": f"pipe:cat {one_camera}/{name}", "val_fraction": 0.1}, "index.json; give data.val_shards"),
        ({"shards": str(one_camera), "mode": "pears"}, "'pairs' or 'clip'"),
        ({"shards": str(one_camera), "batch_size": 0}, "batch_size is 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            module(**({"size": SIZE} | arguments)).train_dataloader()
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("WORLD_SIZE", "14")
    with pytest.raises(ShardError, match="13 validation clips for 14 ranks"):
        module(one_camera, val_shards=str(one_camera)).val_dataloader()


def test_a_share_without_clips_is_an_error(one_camera: Path) -> None:
    schedule = module(one_camera)._schedule()
    nobody = type(schedule)(**{**vars(schedule), "keep": _nobody})
    with pytest.raises(ShardError, match="finds no clip in its share"):
        next(iter(Loader(TrainStream(nobody, [Layout(1, 1, 0)]), workers=0)))
    with pytest.raises(ShardError, match="0 validation clips"):
        PassStream(nobody)


def _nobody(identity: str) -> bool:
    return False


# ---- background motion -----------------------------------------------------------------------------------------------


def test_background_motion_measures_the_background_only() -> None:
    rng = np.random.default_rng(0)
    frames = np.full((6, 64, 64, 3), 100, np.uint8)
    regions = np.zeros((6, 64, 64), np.uint8)
    regions[:, 20:50, 20:44] = 1
    frames[:, 20:50, 20:44] = rng.integers(0, 255, (6, 30, 24, 3))  # the head moves as it likes
    frames[:, 52:] = rng.integers(0, 255, (6, 12, 64, 3))  # shoulders
    assert background_motion(frames, regions) == 0
    flicker = frames.copy()
    flicker[::2, :20] += 10  # rows of background above the head
    rows = np.ones((32, 32), bool)  # it measures every other pixel,
    rows[25:] = False  # above the chin,
    rows[7:28, 7:25] = False  # beside the head grown by three of them
    assert background_motion(flicker, regions) == pytest.approx(10 * rows[:10].sum() / rows.sum())
    assert background_motion(frames, np.ones_like(regions)) == 0  # no background to measure


def test_moving_background_is_dropped_and_counted(one_camera: Path) -> None:
    """These clips brighten by 3 levels a frame on their left half: 1.5 over the background."""
    loader = module(one_camera, mode="clip", max_background_motion=2.0).train_dataloader()
    next(iter(loader))
    assert loader.tally.dropped == 0
    with pytest.raises(ShardError, match=r"background motion 1\.[3-7], at most 1"):
        keys(module(one_camera, mode="clip", max_background_motion=1.0), 1)


def test_other_workers_in_the_middle_of_an_epoch_repeat_and_lose_nothing(one_camera: Path) -> None:
    """12 clips of training by 1 worker, then by 2: together what an epoch holds, each clip once."""
    arguments: dict[str, Any] = {"batch_size": 2, "samples_per_clip": 1, "epoch_batches": 6}
    first = keys(module(one_camera, **arguments), 2)
    resumed = module(one_camera, workers=2, **arguments)
    resumed.load_state_dict({"history": [(1, 1, 2)]})
    # Worker 0 finishes what is begun; worker 1 has nothing left of this epoch and begins the next.
    rest = keys(resumed, 8)[::2]
    assert first + rest == keys(module(one_camera, **arguments), 6)
