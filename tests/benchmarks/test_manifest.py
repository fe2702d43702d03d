"""Protocols: what makers write, what readers refuse, and that the shipped ones are what the program draws."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.make import make_of_shards, make_synthetic
from benchmarks.manifest import FOLDER, TASKS, Manifest, ManifestError, find
from benchmarks.material import open_material
from dex.data.synthetic.write import Plan, write


@pytest.mark.parametrize("task", TASKS)
def test_shipped_protocols_are_what_this_program_makes(task: str) -> None:
    shipped = Manifest.load(find(f"synthetic-v1-{task}"))
    assert shipped == make_synthetic(task, "synthetic-v1", 32, 256, 0)
    open_material(shipped, None)  # draws the parameters and compares their hashes


def test_written_manifest_reads_back_the_same(tmp_path: Path) -> None:
    made = make_synthetic("disentangled", "mine", 5, 64, 7)
    made.save(tmp_path / "m.jsonl")
    assert Manifest.load(tmp_path / "m.jsonl") == made


def test_identities_are_apart() -> None:
    cross, apart = make_synthetic("cross", "c", 9, 64, 1), make_synthetic("disentangled", "d", 9, 64, 1)
    for pair in cross.pairs:
        assert cross.identity[pair.source.clip] != cross.identity[pair.pose.clip]
        assert pair.pose == pair.expression
    assert len({pair.source.clip for pair in cross.pairs}) == len({pair.pose.clip for pair in cross.pairs}) == 9
    by_edit = {(pair.tuple, pair.edit): pair for pair in apart.pairs}
    for name in {pair.tuple for pair in apart.pairs}:
        none, pose, expression = (by_edit[name, edit] for edit in ("none", "pose", "expression"))
        assert none.pose == none.expression == expression.pose == pose.expression
        assert pose.pose == expression.expression
        assert len({apart.identity[s.clip] for s in (none.source, none.pose, pose.pose)}) == 3


def test_a_tuple_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    make_synthetic("disentangled", "mine", 5, 64, 7).save(path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(ManifestError, match="has the edits none, pose: need none, pose, expression"):
        Manifest.load(path)


def test_self_does_not_score_its_source() -> None:
    for pair in make_synthetic("self", "s", 3, 64, 0).pairs:
        assert pair.source.frames[0] not in pair.pose.frames
        assert pair.source.clip == pair.pose.clip == pair.expression.clip


def test_another_seed_draws_other_tracks() -> None:
    one, two = (make_synthetic("self", "s", 2, 64, seed) for seed in (0, 1))
    assert one.clips[0].identity == two.clips[0].identity
    assert one.clips[0].sha256 != two.clips[0].sha256


def test_changed_parameters_are_refused() -> None:
    made = make_synthetic("self", "s", 2, 64, 0)
    other = dataclasses.replace(made, seed=1)
    with pytest.raises(ManifestError, match="other parameters"):
        open_material(other, None)


def test_truth_of_self_is_the_driver_itself() -> None:
    made = make_synthetic("self", "s", 2, 64, 0)
    material, pair = open_material(made, None), made.pairs[1]
    truth = material.truth(pair.source, pair.pose, pair.expression)
    assert truth is not None
    assert np.array_equal(truth, material.frames(pair.pose))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write(Plan(clips=4, size=64, seconds=0.5), folder)
    return folder


def test_manifest_of_shards(shards: Path, tmp_path: Path) -> None:
    made = make_of_shards("self", "mine", shards, None, 0, None, 4, 2)
    assert (made.size, made.fps, len(made.pairs)) == (64, 12.5, 4)
    material, pair = open_material(made, shards), made.pairs[0]
    assert list(pair.pose.frames) == [2, 4, 6, 8]
    assert material.frames(pair.pose).shape == (4, 64, 64, 3)
    assert make_of_shards("self", "mine", shards, None, 0, 2, 4, 2) == make_of_shards(
        "self", "mine", shards, None, 0, 2, 4, 2
    )


def test_other_bytes_than_the_manifest_are_refused(shards: Path, tmp_path: Path) -> None:
    made = make_of_shards("cross", "mine", shards, None, 0, None, 4, 1)
    changed = dataclasses.replace(made.clips[0], sha256="0" * 64)
    with pytest.raises(ManifestError, match=f"{changed.key} has other bytes"):
        open_material(dataclasses.replace(made, clips=(changed, *made.clips[1:])), shards)
    write(Plan(clips=1, size=64, seconds=0.5, seed=3), tmp_path)
    with pytest.raises(ManifestError, match="lacks 4 of 4 clips"):
        open_material(made, tmp_path)
    with pytest.raises(ManifestError, match="--shards"):
        open_material(made, None)


def test_too_few_or_too_short_clips_are_refused(shards: Path) -> None:
    with pytest.raises(ManifestError, match="need one of each"):
        make_of_shards("self", "mine", shards, None, 0, None, 400, 1)
    with pytest.raises(ManifestError, match="at least 3 identities"):
        make_of_shards("disentangled", "mine", shards, None, 0, 2, 4, 1)


@pytest.mark.parametrize(
    "text", ["", "{}", "garbage", '{"schema":9}', '{"schema":1,"task":"self"}', '[1]\n{"clip":{}}', '"\\u0000"']
)
def test_garbage_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_protocol_names_those_there_are() -> None:
    with pytest.raises(ManifestError, match="synthetic-v1-self"):
        find("vfhq")
    assert len(list(FOLDER.glob("*.jsonl"))) >= 3
