"""The image codec: round trips, scaling, hashes, and what is said where one cannot be loaded."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor

from dex.animator.codec import WEIGHTS, CodecError, SpaceToDepth, decode_frames, load_codec


def vae(**changes: object) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    small = {
        "block_out_channels": (4, 8),
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 2,
    }
    return diffusers.AutoencoderKL(**{**small, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vae().save_pretrained(tmp_path / "vae-folder")
    return tmp_path / "vae-folder"


def pictures(count: int = 5, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side) * 2 - 1


# ---- space to depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_space_to_depth_loses_no_bit(factor: int) -> None:
    codec = load_codec(f"space-to-depth:{factor}")
    seen = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8).float().div_(127.5).sub_(1)
    latents = codec.encode(seen)
    assert latents.shape == (2, codec.channels, 16 // factor, 16 // factor)
    assert torch.equal(codec.decode(latents), seen)


def test_a_cell_holds_its_square() -> None:
    seen = pictures()
    latents = SpaceToDepth(4).encode(seen)
    want = torch.stack([seen[:, c, 4 * 2 + y, 4 * 3 + x] for c in range(3) for y in range(4) for x in range(4)], dim=1)
    torch.testing.assert_close(latents[:, :, 2, 3] * 2, want)


def test_noise_is_four_times_a_portraits_spread(talking_heads: Path) -> None:
    spread = []
    for path in sorted((talking_heads / "portraits").glob("*.jpg"), key=lambda path: path.stat().st_size)[:8]:
        with Image.open(path) as image:
            picture = to_tensor(image.convert("RGB").resize((64, 64)))
        spread.append(SpaceToDepth(4).encode(picture[None] * 2 - 1).std())
    assert len(spread) > 4
    assert 0.17 < torch.stack(spread).mean() < 0.33


# ---- autoencoders ----------------------------------------------------------------------------------------------------


def test_autoencoder_scales_as_diffusers_pipelines_do(folder: Path) -> None:
    codec, plain, seen = load_codec(str(folder)), vae().eval(), pictures()
    latents = codec.encode(seen)
    assert latents.shape == (5, 4, 8, 8)
    assert (codec.channels, codec.factor) == (4, 2)
    with torch.no_grad():
        torch.testing.assert_close(latents, plain.encode(seen).latent_dist.mode() * 0.18215)
        torch.testing.assert_close(codec.decode(latents), plain.decode(latents / 0.18215).sample)


def test_draws_follow_the_generator(folder: Path) -> None:
    codec, seen = load_codec(str(folder)), pictures()
    one, again, other = (codec.encode(seen, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(codec.encode(seen), codec.encode(seen))
    spread = codec.vae.encode(seen).latent_dist.std * 0.18215
    assert ((one - codec.encode(seen)) / spread).std() == pytest.approx(1, abs=0.1)


def test_frozen_and_outside_autocast(folder: Path) -> None:
    codec, seen = load_codec(str(folder)), pictures()
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not codec.vae.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(seen.requires_grad_()), codec.encode(seen))
    assert not codec.encode(seen).requires_grad


def test_tiny_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    tiny.save_pretrained(tmp_path)
    codec, seen = load_codec(str(tmp_path)), pictures()
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(seen), tiny.encode(seen).latents)
    assert codec.decode(codec.encode(seen)).shape == seen.shape
    assert codec.factor == 2


def test_a_pipeline_folder_is_taken_by_its_vae(tmp_path: Path, folder: Path) -> None:
    vae().save_pretrained(tmp_path / "pipeline" / "vae")
    assert load_codec(str(tmp_path / "pipeline")).hash == load_codec(str(folder)).hash


def test_hash_follows_settings_and_weights(folder: Path, tmp_path: Path) -> None:
    hashes = {load_codec(f"space-to-depth:{factor}").hash for factor in (2, 4)} | {load_codec(str(folder)).hash}
    assert len(hashes) == 3
    vae(scaling_factor=0.5).save_pretrained(tmp_path / "other-scale")
    weights = load_file(folder / WEIGHTS)
    weights["quant_conv.bias"] = weights["quant_conv.bias"] + 1e-3
    save_file(weights, folder / WEIGHTS)
    hashes |= {load_codec(str(tmp_path / "other-scale")).hash, load_codec(str(folder)).hash}
    assert len(hashes) == 5


def test_streams_are_decoded_in_chunks() -> None:
    codec, seen, taken = SpaceToDepth(2), pictures(7), []
    stream = (taken.append(i) or latent for i, latent in enumerate(codec.encode(seen)))
    for done, picture in enumerate(decode_frames(codec, stream, chunk=3)):
        assert torch.equal(picture, seen[done])
        assert len(taken) <= done + 3
    assert done == 6


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("space-to-depth:0", "at least 1"),
        ("space-to-depth", "whole factor"),
        ("space-to-depth:x", "whole factor"),
        ("./nowhere", "no such folder"),
        ("nowhere", "no such folder"),
    ],
)
def test_unknown_names(name: str, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        load_codec(name)


def test_damaged_folders_say_so_in_one_line(folder: Path) -> None:
    def said() -> str:
        with pytest.raises(CodecError) as error:
            load_codec(str(folder))
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = (folder / WEIGHTS).read_bytes()
    weights = load_file(folder / WEIGHTS)
    save_file({key: value for key, value in weights.items() if key != "quant_conv.bias"}, folder / WEIGHTS)
    assert "quant_conv.bias" in said()
    save_file(weights | {"foreign": torch.zeros(1)}, folder / WEIGHTS)
    assert "foreign" in said()
    save_file(weights | {"quant_conv.bias": torch.zeros(3)}, folder / WEIGHTS)
    assert "quant_conv.bias" in said()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in said()
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    assert "no pickle is read" in said()
    (folder / WEIGHTS).write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DConditionModel"}))
    assert "UNet2DConditionModel" in said()
    (folder / "config.json").write_text("{")
    assert "no JSON" in said()


def test_pictures_of_another_size() -> None:
    with pytest.raises(CodecError, match="10×16: codec space-to-depth:4 needs multiples of 4"):
        SpaceToDepth(4).encode(torch.zeros(1, 3, 10, 16))
