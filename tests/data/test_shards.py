"""The shard schema: staging, packing, merging; what a killed run leaves behind; the same clips give the same bytes."""

import hashlib
import io
import json
import tarfile
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dex.data import shards
from dex.data.shards import ClipMeta, CropContract, FrameLabels, ShardError, ShardIndex

CROP = CropContract(rule="synthetic.v1", size=64, margin=1.5, shift_up=0.05)
FRAMES = 5


def meta(number: int = 0, camera: str = "0") -> ClipMeta:
    recording = f"take{number:03d}"
    return ClipMeta(
        key=f"{recording}_{camera}",
        identity=f"person{number // 2}",
        recording=recording,
        camera=camera,
        group=recording,
        clip=0,
        source_file=f"folder/{recording}.mov",
        source_sha256="0" * 64,
        start=1.5,
        crop_box=[0.0, 1.0, 64.0, 65.0],
        crop=CROP,
        fps=25.0,
        frames=FRAMES,
        landmark_scheme="synthetic",
        blendshape_names=["jawOpen", "mouthSmileLeft"],
    )


def labels(seed: int = 0, frames: int = FRAMES) -> FrameLabels:
    rng = np.random.default_rng(seed)
    sizes = {
        "landmarks": (7, 2),
        "pose": (3, 4),
        "pose_weight": (),
        "blendshapes": (2,),
        "face_box": (4,),
        "quality": (),
    }
    return FrameLabels(**{name: rng.random((frames, *size), dtype=np.float32) for name, size in sizes.items()})


def stage(folder: Path, *clips: ClipMeta, audio: bytes | None = None, size: int = 2000) -> Path:
    for clip in clips:
        rng = np.random.default_rng(list(clip.key.encode()))
        shards.stage_clip(folder, clip, labels(len(clip.key)), rng.bytes(size), audio)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- one clip --------------------------------------------------------------------------------------------------------


def test_meta_and_labels_come_back_as_they_were() -> None:
    assert ClipMeta.from_json(meta(3).to_json()) == meta(3)
    written = labels()
    found = FrameLabels.from_npz(written.to_npz())
    assert len(found) == FRAMES
    for name, array in vars(written).items():
        np.testing.assert_array_equal(getattr(found, name), array)


def test_npz_holds_no_clock_and_is_readable_by_numpy() -> None:
    data = labels().to_npz()
    assert data == labels().to_npz()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype for name in arrays.files} == dict.fromkeys(vars(labels()), np.float32)


def test_npz_with_a_pickle_inside_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{**vars(labels()), "pose": np.array([{"a": 1}] * FRAMES, dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        FrameLabels.from_npz(buffer.getvalue())


@pytest.mark.parametrize(
    ("place", "offset", "damage"),
    [
        (b"{'descr'", 1, b"'''"),  # tokenize.TokenError
        (b"PK\x01\x02", 10, b"\x63"),  # NotImplementedError: a compression that zipfile does not know
        (b"PK\x01\x02", 8, b"\x01"),  # RuntimeError: encrypted
    ],
)
def test_damaged_labels_are_one_error(place: bytes, offset: int, damage: bytes) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **vars(labels()))
    data = bytearray(buffer.getvalue())
    at = data.index(place) + offset
    data[at : at + len(damage)] = damage
    for unreadable in (bytes(data), b""):
        with pytest.raises(ShardError, match="labels cannot be read"):
            FrameLabels.from_npz(unreadable)


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a/b", "é", "_é"])
def test_a_key_that_webdataset_would_split_or_a_file_system_refuse_is_an_error(key: str) -> None:
    with pytest.raises(ShardError, match="only letters, digits"):
        replace(meta(), key=key)


def test_a_key_too_long_for_a_tar_header_is_an_error(tmp_path: Path) -> None:
    longest = replace(meta(), key="k" * shards.KEY_LENGTH)
    shards.write_shards(shards.staged_clips(stage(tmp_path / "staged", longest, audio=b"")), tmp_path / "out")
    assert [clip.meta for clip in shards.packed_clips(tmp_path / "out")] == [longest]
    with pytest.raises(ShardError, match="91 characters"):
        replace(meta(), key="k" * (shards.KEY_LENGTH + 1))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards.write_shards(shards.staged_clips(stage(tmp_path / "staged", meta(), audio=b"")), tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    tar.write_bytes(b"no archive" * 100)
    with pytest.raises(ShardError, match=f"{tar.name}: is damaged"):
        list(shards.packed_clips(tmp_path / "out"))


def test_json_of_another_schema_or_with_other_fields_is_an_error() -> None:
    raw = asdict(meta())
    with pytest.raises(ShardError, match=r"take000_0.*schema 2, this program reads 1"):
        ClipMeta.from_json(json.dumps({**raw, "schema": 2}))
    with pytest.raises(ShardError, match=r"\['colour', 'fps'\]"):
        ClipMeta.from_json(json.dumps({"colour": 1, **{k: v for k, v in raw.items() if k != "fps"}}))
    for damaged in ([1], {**raw, "crop": 3}, {**raw, "crop": {"side": 1}}):
        with pytest.raises(ShardError, match="clip"):
            ClipMeta.from_json(json.dumps(damaged))


def test_labels_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="'pose': 4"):
        replace(labels(), pose=labels().pose[:4])
    with pytest.raises(ShardError, match=r"take000_0: 4 rows of labels for 5 frames"):
        shards.stage_clip(tmp_path / "staged", meta(), labels(frames=4), b"")
    assert not (tmp_path / "staged").exists()


# ---- staging ---------------------------------------------------------------------------------------------------------


def test_staged_clips_come_back_in_order_with_all_members(tmp_path: Path) -> None:
    stage(tmp_path / "b", meta(2), audio=b"sound")
    stage(tmp_path / "a", meta(1), meta(0))
    found = list(shards.staged_clips(tmp_path))
    assert [clip.meta for clip in found] == [meta(0), meta(1), meta(2)]
    assert [sorted(clip.members) for clip in found] == [["json", "mp4", "npz"]] * 2 + [["flac", "json", "mp4", "npz"]]
    assert found[2].members["flac"]() == b"sound"
    assert len(FrameLabels.from_npz(found[0].members["npz"]())) == FRAMES


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_clip_that_was_not_finished_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Killed before the n-th of its four files took its final name."""
    whole, count = shards.write_atomic, iter(range(10))

    def killed(path: Path, data: bytes) -> None:
        if next(count) == written:
            raise KeyboardInterrupt
        whole(path, data)

    monkeypatch.setattr(shards, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, meta(), audio=b"sound")
    assert list(shards.staged_clips(tmp_path)) == []
    monkeypatch.undo()
    stage(tmp_path, meta(), audio=b"sound")
    assert [clip.meta for clip in shards.staged_clips(tmp_path)] == [meta()]


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_index_and_tars_agree(tmp_path: Path) -> None:
    clips = [meta(i) for i in range(12)]
    stage(tmp_path / "staged", *clips)
    index = shards.write_shards(shards.staged_clips(tmp_path / "staged"), tmp_path / "out", shard_bytes=20_000)
    assert index == ShardIndex.load(tmp_path / "out")
    assert (index.clips, index.frames, index.fps, index.crop) == (12, 12 * FRAMES, 25.0, CROP)
    assert index.identities == [f"person{i}" for i in range(6)]
    assert len(index.shards) > 2
    assert sorted(contents(tmp_path / "out")) == ["index.json", *(shard.name for shard in index.shards)]
    for shard in index.shards:
        data = (tmp_path / "out" / shard.name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (shard.sha256, shard.bytes)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert sum(name.endswith(".json") for name in tar.getnames()) == shard.clips
    assert sum(shard.clips for shard in index.shards) == 12
    assert sum(shard.frames for shard in index.shards) == 12 * FRAMES


def test_webdataset_reads_every_clip_once(tmp_path: Path) -> None:
    clips = [meta(i) for i in range(12)]
    stage(tmp_path / "staged", *clips, audio=b"sound")
    index = shards.write_shards(shards.staged_clips(tmp_path / "staged"), tmp_path / "out", shard_bytes=20_000)
    names = [str(tmp_path / "out" / shard.name) for shard in index.shards]
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(names, shardshuffle=False)}
    assert sorted(samples) == sorted(clip.key for clip in clips)
    staged = contents(tmp_path / "staged")
    for key, sample in samples.items():
        assert {ext: sample[ext] for ext in shards.MEMBERS} == {ext: staged[f"{key}.{ext}"] for ext in shards.MEMBERS}


def test_shards_mix_recordings_but_keep_a_group_together(tmp_path: Path) -> None:
    clips = [meta(i, camera) for i in range(8) for camera in ("left", "right", "up")]
    stage(tmp_path / "staged", *clips)
    index = shards.write_shards(shards.staged_clips(tmp_path / "staged"), tmp_path / "out", shard_bytes=30_000)
    packed = list(shards.packed_clips(tmp_path / "out"))
    groups = [clip.meta.group for clip in packed]
    assert groups[::3] == groups[1::3] == groups[2::3]
    assert len(set(groups)) == 8
    assert groups[::3] != sorted(groups[::3])  # by hash: neighbours in the input folder are not neighbours in a shard
    assert all(shard.clips % 3 == 0 for shard in index.shards)


def test_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    clips = [meta(i) for i in range(6)]
    for name, order in (("one", clips), ("two", clips[::-1])):
        stage(tmp_path / f"{name}-staged", *order)
        shards.write_shards(shards.staged_clips(tmp_path / f"{name}-staged"), tmp_path / name, shard_bytes=20_000)
        time.sleep(1.1)  # tar stores whole seconds
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_merging_parts_equals_packing_at_once(tmp_path: Path) -> None:
    clips = [meta(i) for i in range(9)]
    stage(tmp_path / "all", *clips)
    shards.write_shards(shards.staged_clips(tmp_path / "all"), tmp_path / "whole", shard_bytes=20_000)
    for part in range(3):
        stage(tmp_path / f"staged{part}", *clips[part::3])
        shards.write_shards(shards.staged_clips(tmp_path / f"staged{part}"), tmp_path / f"part{part}")
    parts = (clip for part in range(3) for clip in shards.packed_clips(tmp_path / f"part{part}"))
    shards.write_shards(parts, tmp_path / "merged", shard_bytes=20_000)
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_failed_packing_leaves_no_index(tmp_path: Path) -> None:
    stage(tmp_path / "staged", *(meta(i) for i in range(6)))
    clips = list(shards.staged_clips(tmp_path / "staged"))
    for clip in clips:
        if clip.meta.key == "take003_0":
            (tmp_path / "staged" / "take003_0.mp4").unlink()  # read lazily, while packing
    with pytest.raises(FileNotFoundError, match="take003"):
        shards.write_shards(clips, tmp_path / "out", shard_bytes=20_000)
    assert not (tmp_path / "out" / "index.json").exists()
    with pytest.raises(ShardError, match=r"index\.json: not found"):
        ShardIndex.load(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.tar"):  # what has a final name is whole
        with tarfile.open(path) as tar:
            assert tar.getnames()


def test_a_smaller_packing_takes_the_larger_one_s_shards_away(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "test-000009.tar").touch()  # another split
    for count in (12, 2):
        stage(tmp_path / f"staged{count}", *(meta(i) for i in range(count)))
        shards.write_shards(shards.staged_clips(tmp_path / f"staged{count}"), tmp_path / "out", shard_bytes=10_000)
    assert sorted(contents(tmp_path / "out")) == ["index.json", "test-000009.tar", "train-000000.tar"]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no clips to pack"):
        shards.write_shards([], tmp_path)


def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    for part in ("a", "b"):
        stage(tmp_path / part, meta(1), meta(int(part == "b") + 2))
    with pytest.raises(ShardError, match="1 clip keys occur twice, the first is 'take001_0'"):
        shards.write_shards(shards.staged_clips(tmp_path), tmp_path / "out")


@pytest.mark.parametrize("change", [{"crop": replace(CROP, size=128)}, {"fps": 30.0}])
def test_clips_of_another_contract_are_an_error(tmp_path: Path, change: dict) -> None:
    stage(tmp_path / "staged", meta(1), replace(meta(2), **change))
    with pytest.raises(ShardError, match=f"clips of different {next(iter(change))}"):
        shards.write_shards(shards.staged_clips(tmp_path / "staged"), tmp_path / "out")


def test_an_index_of_another_schema_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"schema": 7}')
    with pytest.raises(ShardError, match="schema 7, this program reads 1"):
        ShardIndex.load(tmp_path)


def test_a_clip_without_its_video_is_an_error(tmp_path: Path) -> None:
    stage(tmp_path / "staged", meta(1))
    (tmp_path / "staged" / "take001_0.mp4").unlink()
    with pytest.raises(ShardError, match=r"take001_0\.json: its \['mp4'\] is gone"):
        shards.write_shards(shards.staged_clips(tmp_path / "staged"), tmp_path / "out")
