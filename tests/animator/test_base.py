"""Base weights through the real loading path, from every form they come in, and parity with plain diffusers."""

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from dex.animator.base import LDM_PREFIX, WEIGHTS, BaseWeightsError, load_base
from dex.animator.config import AnimatorConfig
from dex.animator.unet import AnimatorUNet
from tests.animator.conftest import TINY, TINY_UNET, random_conditions

BASE_KEYS = 686  # tensors of Stable Diffusion 1.5's UNet
TEXT_KEYS = 16 * 7  # 16 blocks: norm2 (2), to_q, to_k, to_v, to_out (2)
TAIL_KEYS = 4 + 2 + 11  # conv_norm_out, conv_out; proj_out; attn1 (5), norm3 (2), ff (4) of the last block


def to_ldm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original layout's names, written down from its own numbering of the 12 input, 3 middle, 12 output blocks."""
    stages = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    stages["mid_block.resnets.1"] = "middle_block.2"
    for level in range(4):
        for layer in range(2):
            stages[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{3 * level + layer + 1}.0"
            stages[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{3 * level + layer + 1}.1"
        stages[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{3 * level + 3}.0.op"
        for layer in range(3):
            stages[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{3 * level + layer}.0"
            stages[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{3 * level + layer}.1"
        # The first level up has no attention, so its upsampler stands second.
        stages[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.conv"
    single = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
    }
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }

    def rename(key: str) -> str:
        for here, there in (stages | single).items():
            if key.startswith(here + "."):
                rest = key.removeprefix(here + ".")
                if ".resnets." in here:
                    part, _, name = rest.partition(".")
                    rest = f"{resnet[part]}.{name}"
                return f"{LDM_PREFIX}{there}.{rest}"
        raise KeyError(key)

    return {rename(key): tensor for key, tensor in state.items()}


@pytest.fixture(scope="module")
def plain() -> UNet2DConditionModel:
    """A random checkpoint in Stable Diffusion 1.5's layout, its text attention's output zeroed."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(TINY_UNET).eval()
    for name, parameter in unet.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
        if "attn2.to_out" in name:
            torch.nn.init.zeros_(parameter)
    return unet


def as_pipeline_folder(unet: UNet2DConditionModel, folder: Path) -> Path:
    unet.save_pretrained(folder / "unet")
    return folder


def as_unet_folder(unet: UNet2DConditionModel, folder: Path) -> Path:
    unet.save_pretrained(folder)
    return folder


def as_file(unet: UNet2DConditionModel, folder: Path) -> Path:
    save_file(unet.state_dict(), folder / "unet.safetensors")
    return folder / "unet.safetensors"


def as_ldm_file(unet: UNet2DConditionModel, folder: Path) -> Path:
    """With a text encoder and a VAE beside it, as such files have."""
    state = to_ldm({key: tensor.contiguous() for key, tensor in unet.state_dict().items()})
    others = {"first_stage_model.decoder.conv_in.weight": torch.ones(1), "betas": torch.ones(3)}
    save_file(state | others, folder / "v1-5.safetensors")
    return folder / "v1-5.safetensors"


def as_bare_ldm_file(unet: UNet2DConditionModel, folder: Path) -> Path:
    state = {key.removeprefix(LDM_PREFIX): tensor for key, tensor in to_ldm(unet.state_dict()).items()}
    save_file(state, folder / "bare.safetensors")
    return folder / "bare.safetensors"


@pytest.mark.parametrize("form", [as_pipeline_folder, as_unet_folder, as_file, as_ldm_file, as_bare_ldm_file])
@torch.no_grad()
def test_at_initialisation_it_is_stable_diffusion(
    plain: UNet2DConditionModel, form: Callable[[UNet2DConditionModel, Path], Path], tmp_path: Path
) -> None:
    """With any ray map, expression and reference, with the temporal attention and without."""
    network = AnimatorUNet(TINY)
    load_base(network, form(plain, tmp_path))
    z, timestep = torch.randn(2, 3, 4, 16, 16), torch.tensor([10, 900])
    text = torch.randn(6, 5, TINY_UNET["cross_attention_dim"])
    expected = plain(z.flatten(0, 1), timestep.repeat_interleave(3), text).sample.unflatten(0, (2, 3))
    assert expected.std() > 0.1
    for conditions in (random_conditions(network), random_conditions(network), None):
        for temporal in (False, True):
            torch.testing.assert_close(network(z, timestep, conditions, temporal), expected, atol=1e-5, rtol=0)


def test_every_base_key_is_used_or_dropped_on_purpose(plain: UNet2DConditionModel, tmp_path: Path) -> None:
    base = plain.state_dict()
    network = AnimatorUNet(TINY)
    load_base(network, as_pipeline_folder(plain, tmp_path))
    denoiser, reference = network.denoiser.state_dict(), network.reference.state_dict()
    text = {key for key in base if ".attn2." in key or ".transformer_blocks.0.norm2." in key}
    assert (len(base), len(text)) == (BASE_KEYS, TEXT_KEYS)

    used = base.keys() & denoiser.keys()
    assert base.keys() - used == text
    assert len(used) == BASE_KEYS - TEXT_KEYS
    for key in used:
        found = denoiser[key][:, :4] if key == "conv_in.weight" else denoiser[key]
        assert torch.equal(found, base[key]), key
    assert not denoiser["conv_in.weight"][:, 4:].any()

    used = base.keys() & reference.keys()
    assert used == reference.keys()
    last = "up_blocks.3.attentions.2."
    tail = base.keys() - used - text
    assert len(tail) == TAIL_KEYS
    assert all(key.startswith((last, "conv_norm_out.", "conv_out.")) and ".norm1." not in key for key in tail)
    for key in used:
        assert torch.equal(reference[key], base[key]), key


def test_half_precision_weights_arrive_in_the_networks_own(plain: UNet2DConditionModel, tmp_path: Path) -> None:
    save_file({key: tensor.half() for key, tensor in plain.state_dict().items()}, tmp_path / "half.safetensors")
    network = AnimatorUNet(TINY)
    load_base(network, tmp_path / "half.safetensors")
    weight = network.denoiser.state_dict()["conv_out.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, plain.conv_out.weight.detach().half().float())


@pytest.mark.parametrize("form", [as_file, as_ldm_file])
def test_partial_weights_are_listed(
    plain: UNet2DConditionModel, form: Callable[[UNet2DConditionModel, Path], Path], tmp_path: Path
) -> None:
    file = form(plain, tmp_path)
    state = load_file(file)
    lost = next(key for key in state if key.endswith(("conv_out.weight", "out.2.weight")))
    prefix = LDM_PREFIX if form is as_ldm_file else ""
    shape = state[lost].shape
    save_file({**state, f"{prefix}lost.tensor": torch.ones(1)} | {lost: torch.ones(2, *shape[1:])}, file)
    with pytest.raises(BaseWeightsError, match=r"1 unexpected: \S*lost\.tensor; 1 of another shape: conv_out\.weight"):
        load_base(AnimatorUNet(TINY), file)
    del state[lost]
    save_file(state, file)
    with pytest.raises(BaseWeightsError, match=r"1 missing: conv_out\.weight$"):
        load_base(AnimatorUNet(TINY), file)


def test_weights_of_something_else_are_counted_and_change_nothing(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "vae.safetensors")
    network = AnimatorUNet(TINY)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(BaseWeightsError, match=r"686 missing: conv_in\.bias, .* …; 1 unexpected: encoder\.weight"):
        load_base(network, tmp_path / "vae.safetensors")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_settings_that_leave_no_trace_in_shapes_are_compared(plain: UNet2DConditionModel, tmp_path: Path) -> None:
    folder = as_pipeline_folder(plain, tmp_path)
    heads = AnimatorConfig(unet={**TINY_UNET, "attention_head_dim": 2, "sample_size": 99})
    with pytest.raises(BaseWeightsError, match=r"attention_head_dim is 4, the network's is 2\. Set unet"):
        load_base(AnimatorUNet(heads), folder)


def test_wrong_paths_and_files(plain: UNet2DConditionModel, tmp_path: Path) -> None:
    network = AnimatorUNet(TINY)
    with pytest.raises(BaseWeightsError, match="no such file or folder"):
        load_base(network, tmp_path / "nowhere")
    with pytest.raises(BaseWeightsError, match=r"config\.json: not found, the folder holds nothing"):
        load_base(network, tmp_path)
    pickled = tmp_path / "model.ckpt"
    torch.save({}, pickled)
    with pytest.raises(BaseWeightsError, match="pickle can run code"):
        load_base(network, pickled)
    plain.save_pretrained(tmp_path / "unet", safe_serialization=False)
    with pytest.raises(BaseWeightsError, match=r"safetensors: not found, the folder holds config\.json, \S+\.bin"):
        load_base(network, tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BaseWeightsError, match="no readable safetensors"):
        load_base(network, tmp_path / "cut.safetensors")
    (tmp_path / "unet" / WEIGHTS).touch()
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(BaseWeightsError, match="no valid JSON"):
        load_base(network, tmp_path)


def test_hub_id_offline(plain: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's local cache where it is there; a message that names the remedy where it is not."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    network = AnimatorUNet(TINY)
    with pytest.raises(BaseWeightsError, match=r"someone/tiny: .*HF_HUB_OFFLINE unset"):
        load_base(network, "someone/tiny")
    cached = tmp_path / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    plain.save_pretrained(cached / "snapshots" / ("0" * 40) / "unet")
    load_base(network, "someone/tiny")
    assert torch.equal(network.denoiser.conv_out.weight, plain.conv_out.weight)


def test_the_default_configuration_is_stable_diffusions(tmp_path: Path) -> None:
    """What diffusers itself fills in for the published config.json is no other network than ours."""
    published = json.loads(json.dumps(AnimatorConfig().unet))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(published)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert len(unet.state_dict()) == BASE_KEYS
