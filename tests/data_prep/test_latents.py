"""The latent cache: what it holds, what a training step sees of it, and when it is refused."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from data_prep.latents import main
from dex.animator.codec import load_codec
from dex.batch import Batch
from dex.data.latents import LatentCache
from dex.data.shards import ShardError, ShardIndex, packed_clips, write_shards
from dex.data.talking_heads import TalkingHeads
from tests.data.shards_for_tests import make_shards

SIZE, FRAMES = 32, 20
CODEC = "space-to-depth:4"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    make_shards(folder, clips=4, cameras=2, size=SIZE, frames=FRAMES)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(folder := tmp_path_factory.mktemp("codec") / "vae")
    return str(folder)


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "shards"))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def data(shards: Path | str, **arguments: object) -> TalkingHeads:
    defaults = {"size": SIZE, "batch_size": 3, "workers": 0, "shuffle": 4, "clip_length": 8, "latents": "latents"}
    made = TalkingHeads(str(shards), **{**defaults, **arguments})
    made.setup()
    return made


def batches(made: TalkingHeads, count: int = 4) -> list[Batch]:
    return [made.on_after_batch_transfer(batch, 0) for batch in itertools.islice(made.train_dataloader(), count)]


def loss(batch: Batch, source: torch.Tensor, driving: torch.Tensor) -> torch.Tensor:
    """A training step in small: noised latents, a fixed linear denoiser, the mean square."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(driving.shape, generator=random)
    return (noise - torch.tanh(0.8 * driving + 0.6 * noise + 0.1 * source[:, None])).square().mean()


# ---- what it holds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pairs", "clip"])
@pytest.mark.parametrize("size", [SIZE, 16])
def test_cached_latents_are_the_online_ones_bit_for_bit(shards: Path, mode: str, size: int) -> None:
    assert run(shards, "--codec", CODEC, "--size", size) == 0
    codec = load_codec(CODEC)
    for batch in batches(data(shards, mode=mode, size=size)):
        source, driving = codec.encode(batch.source), codec.encode(batch.driving.flatten(0, 1))
        driving = driving.unflatten(0, batch.driving.shape[:2])
        assert batch.source_latent.dtype == batch.driving_latent.dtype == torch.float32
        assert torch.equal(batch.source_latent, source)
        assert torch.equal(batch.driving_latent, driving)
        assert torch.equal(loss(batch, source, driving), loss(batch, batch.source_latent, batch.driving_latent))


def test_an_autoencoder_gives_the_same_loss(shards: Path, autoencoder: str) -> None:
    """Convolutions round differently by the number of pictures at a time."""
    assert run(shards, "--codec", autoencoder) == 0
    codec = load_codec(autoencoder)
    for batch in batches(data(shards)):
        source = codec.encode(batch.source)
        driving = codec.encode(batch.driving.flatten(0, 1)).unflatten(0, batch.driving.shape[:2])
        torch.testing.assert_close(batch.driving_latent, driving, atol=1e-6, rtol=1e-5)
        cached = loss(batch, batch.source_latent, batch.driving_latent)
        torch.testing.assert_close(cached, loss(batch, source, driving), atol=1e-6, rtol=1e-6)


def test_half_keeps_three_digits_on_half_the_disk(shards: Path) -> None:
    assert run(shards, "--codec", CODEC, "--out", shards / "whole") == 0
    assert run(shards, "--codec", CODEC, "--out", shards / "half", "--half") == 0
    whole, half = (batches(data(shards, latents=name), 1)[0].driving_latent for name in ("whole", "half"))
    torch.testing.assert_close(half, whole, atol=0, rtol=2**-11)
    used = [sum(path.stat().st_size for path in (shards / name).glob("*.safetensors")) for name in ("whole", "half")]
    assert used[1] < 0.6 * used[0]


def test_loader_processes_and_validation_read_it_too(shards: Path) -> None:
    assert run(shards, "--codec", CODEC) == 0
    made = data(shards, workers=1, val_fraction=0.25)
    for batch in (*batches(made, 2), *map(lambda raw: made.on_after_batch_transfer(raw, 0), made.val_dataloader())):
        assert torch.equal(batch.source_latent, load_codec(CODEC).encode(batch.source))


def test_without_a_cache_batches_carry_none(shards: Path) -> None:
    batch = batches(data(shards, latents=None), 1)[0]
    assert batch.source_latent is None
    assert batch.driving_latent is None


# ---- runs that were interrupted, shards that changed -----------------------------------------------------------------


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.safetensors")}


def test_a_second_run_goes_on(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shards, "--codec", CODEC) == 0
    whole = states(shards / "latents")
    assert len(whole) > 1
    lost = sorted(whole)[1]
    (shards / "latents" / lost).unlink()
    torn = shards / "latents" / f".{lost}.4711.tmp"  # of a process that was killed
    torn.write_bytes(b"torn")
    with pytest.raises(ShardError, match=f"no latents of {Path(lost).stem}.tar. Run `python -m data_prep.latents"):
        data(shards)
    assert run(shards, "--codec", CODEC) == 0
    assert "1 made now" in capsys.readouterr().out
    after = states(shards / "latents")
    assert {name: state[1] for name, state in after.items()} == {name: state[1] for name, state in whole.items()}
    assert [name for name in after if after[name] != whole[name]] == [lost]
    assert not torn.exists()


def test_changed_shards_are_refused_and_mended_by_the_command(shards: Path) -> None:
    assert run(shards, "--codec", CODEC) == 0
    index = json.loads((shards / "index.json").read_text())
    first, second = (shards / shard["name"] for shard in index["shards"][:2])
    shutil.copy(second, first)
    index["shards"][0]["sha256"] = index["shards"][1]["sha256"]
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"made from another .*sha256.*Run `python -m data_prep.latents .* --codec"):
        data(shards)
    assert run(shards, "--codec", CODEC) == 0
    assert data(shards).latent_cache is not None


def test_a_shard_that_is_not_the_indexs_is_not_encoded(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(shards / ShardIndex.load(shards).shards[0].name, "ab") as file:
        file.write(b"\0")
    assert run(shards, "--codec", CODEC) == 1
    assert "not what index.json says" in capsys.readouterr().err
    assert not list((shards / "latents").glob("*.safetensors"))


def test_a_damaged_clip_is_left_out(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its place in the file is taken by the next one; the loader passes over it as it does anyway."""
    index = json.loads((shards / "index.json").read_text())
    path = shards / index["shards"][0]["name"]
    clip = next(packed_clips(shards))
    video = clip.members["mp4"]()
    data_of = path.read_bytes()
    assert data_of.count(video) == 1
    path.write_bytes(data_of.replace(video, bytes(len(video))))
    index["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (shards / "index.json").write_text(json.dumps(index))
    assert run(shards, "--codec", CODEC) == 0
    assert f"1 damaged clips left out, the first is {clip.meta.key}" in capsys.readouterr().out
    held = load_file(shards / "latents" / f"{path.stem}.safetensors")
    assert clip.meta.key not in held
    with safe_open(shards / "latents" / f"{path.stem}.safetensors", "np") as file:
        assert file.metadata()["codec"] == CODEC
    for batch in batches(data(shards, mode="clip")):
        assert torch.equal(batch.driving_latent[:, 0], load_codec(CODEC).encode(batch.driving[:, 0]))
    assert all(np.isfinite(latents).all() and len(latents) == FRAMES for latents in held.values())


def test_only_latents_of_shards_that_are_gone_are_removed(shards: Path) -> None:
    assert run(shards, "--codec", CODEC) == 0
    first, second = sorted(states(shards / "latents"))[:2]
    (shards / "latents" / first).rename(shards / "latents" / "train-000099.safetensors")
    save_file({"weight": np.zeros(3)}, shards / "latents" / "decoder.safetensors")
    assert run(shards, "--codec", CODEC) == 0
    assert {first, second, "decoder.safetensors"} <= set(states(shards / "latents"))
    assert "train-000099.safetensors" not in states(shards / "latents")


def test_two_folders_of_shards_may_share_one_of_latents(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither takes away what is the other's: shards of other names stand beside them, of the same name are refused."""
    shared = tmp_path / "latents"
    for split in ("test", "val"):
        write_shards(list(packed_clips(shards)), tmp_path / split, split)
        assert run(tmp_path / split, "--codec", CODEC, "--out", shared) == 0
    made = states(shared)
    assert set(made) == {"test-000000.safetensors", "val-000000.safetensors"}
    write_shards(list(packed_clips(shards))[:4], tmp_path / "other", "val")
    assert run(tmp_path / "other", "--codec", CODEC, "--out", shared) == 1
    assert "val-000000.safetensors: made from another val-000000.tar" in capsys.readouterr().err
    assert states(shared) == made


def test_shards_may_be_named_in_any_way(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(shards, "--codec", CODEC) == 0
    monkeypatch.chdir(shards.parent)
    last = len(ShardIndex.load(shards).shards) - 1
    assert batches(data(f"./shards/train-{{000000..{last:06d}}}.tar"))[0].driving_latent is not None


# ---- mismatches ------------------------------------------------------------------------------------------------------


def test_another_codec_is_refused_on_both_sides(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shards, "--codec", CODEC) == 0
    cache = data(shards).latent_cache
    assert isinstance(cache, LatentCache)
    codec = load_codec(CODEC)
    cache.check_codec(codec.name, codec.hash)
    other = load_codec("space-to-depth:2")
    with pytest.raises(ShardError, match=r"codec 'space-to-depth:4'.*Delete .* run `python -m .* --codec .*:2`"):
        cache.check_codec(other.name, other.hash)
    assert run(shards, "--codec", "space-to-depth:2") == 1
    assert "another codec_hash" in capsys.readouterr().err
    assert run(shards, "--codec", CODEC, "--size", 16) == 1
    assert "another size (32 " in capsys.readouterr().err


def test_another_size_is_refused(shards: Path) -> None:
    assert run(shards, "--codec", CODEC, "--size", 16) == 0
    with pytest.raises(ShardError, match=r"latents of 16² pictures, data\.size is 32"):
        data(shards)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--codec", "nowhere"], "no such folder"),
        (["--codec", CODEC, "--size", "30"], "multiple of 4"),
        (["--codec", CODEC, "--size", "64"], "up to 32"),
        (["--codec", CODEC, "--device", "toaster"], "toaster"),
    ],
)
def test_wrong_options_end_in_one_line(
    shards: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shards, *arguments) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert why in said


def test_a_torn_file_says_so(shards: Path) -> None:
    assert run(shards, "--codec", CODEC) == 0
    path = next((shards / "latents").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ShardError, match="cannot be read"):
        data(shards)
    path.write_bytes(b"")
    with pytest.raises(ShardError, match="cannot be read"):
        data(shards)
