"""Base weights: Stable Diffusion 1.5's UNet from a folder, the hub or a single file, into both UNets of the animator.

Safetensors only: a pickle can run code. Nothing is fetched unless a hub id is given; HF_HUB_OFFLINE=1 then keeps to the
hub's local cache.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dex.animator.config import AnimatorConfig
from dex.animator.unet import AnimatorUNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
LDM_PREFIX = "model.diffusion_model."  # of the UNet in a file of the original layout, beside text encoder and VAE
# Settings that change no weight and no result at a given latent size.
HARMLESS = ("sample_size",)
LISTED = 20  # keys named in a message before it only counts


class BaseWeightsError(ValueError):
    """Base weights that are absent or do not fit; the message names what was found and the remedy."""


def load_base(network: AnimatorUNet, base: str | Path) -> None:
    """Loads `base` (see `read_base`) into the reference and the denoising UNet, in the network's own precision.

    Left out is what the animator has no place for: the text attention of both (attn2, norm2), and of the reference UNet
    what follows the entrance of its last transformer block. The ray map's channels of the first convolution and all
    other additions stay as they are. Raises `BaseWeightsError`.
    """
    state = read_base(base, network.config)
    for unet in (network.reference, network.denoiser):
        unet.load_state_dict(fitting(unet, state), strict=False)


def fitting(unet: UNet2DConditionModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a checked base state the UNet has a place for. What conv_in reads beside latents stays."""
    own = unet.state_dict()
    first, latent = own["conv_in.weight"].clone(), state["conv_in.weight"]
    first[:, : latent.shape[1]] = latent
    return {key: tensor for key, tensor in state.items() if key in own} | {"conv_in.weight": first}


def read_base(base: str | Path, config: AnimatorConfig) -> dict[str, Tensor]:
    """The UNet's weights in diffusers' layout, complete and of the shapes that `config.unet` asks for.

    `base` is a diffusers folder (of a pipeline or of the UNet alone), a .safetensors file in diffusers' or in the
    original LDM layout, or a hub id such as `owner/name`. Raises `BaseWeightsError` with the settings or the missing,
    unexpected and differently shaped keys.
    """
    file, described = locate(base)
    if described is not None:
        check_settings(described, config.unet)
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise BaseWeightsError(f"{file}: no readable safetensors file ({error}). Fetch it again.") from error
    if any(key.removeprefix(LDM_PREFIX).startswith("input_blocks.") for key in state):
        state = from_ldm(state, config)
    check_keys(file, state, config)
    return state


def locate(base: str | Path) -> tuple[Path, Path | None]:
    """The weight file, and where there is one the config.json beside it."""
    path = Path(base)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise BaseWeightsError(f"{path}: only .safetensors is read, a pickle can run code. Convert it first.")
        return path, None
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        for name in ("config.json", WEIGHTS):
            if not (folder / name).is_file():
                held = ", ".join(sorted(each.name for each in folder.iterdir())[:LISTED]) or "nothing"
                raise BaseWeightsError(
                    f"{folder / name}: not found, the folder holds {held}. Needed is a diffusers folder in safetensors."
                )
        return folder / WEIGHTS, folder / "config.json"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(base)):
        raise BaseWeightsError(
            f"{base}: no such file or folder. Give a diffusers folder, a .safetensors file or a hub id."
        )
    return from_hub(str(base))


def from_hub(repository: str) -> tuple[Path, Path]:
    try:
        described = hf_hub_download(repository, "config.json", subfolder="unet")
        return Path(hf_hub_download(repository, WEIGHTS, subfolder="unet")), Path(described)
    except (OSError, ValueError) as error:  # of every kind that the hub's client knows
        reason = str(error).strip().split("\n")[0]
        raise BaseWeightsError(
            f"{repository}: no such folder here, and not to be had as a hub id ({reason}). Give a diffusers folder or "
            "a .safetensors file, or fetch it once with the hub reachable and HF_HUB_OFFLINE unset."
        ) from error


def check_settings(described: Path, wanted: dict[str, Any]) -> None:
    """Settings such as the number of heads leave no trace in the shapes of weights, so they are compared by name."""
    try:
        found = json.loads(described.read_text())
    except json.JSONDecodeError as error:
        raise BaseWeightsError(f"{described}: no valid JSON ({error}). Fetch it again.") from error
    differ = []
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items():
        default = parameter.default
        there, here = (json.dumps(settings.get(name, default), default=str) for settings in (found, wanted))
        if name not in (*HARMLESS, "self") and there != here:
            differ.append(f"{name} is {there}, the network's is {here}")
    if differ:
        raise BaseWeightsError(f"{described}: {'; '.join(differ)}. Set unet in the network's configuration to match.")


def from_ldm(state: dict[str, Tensor], config: AnimatorConfig) -> dict[str, Tensor]:
    """diffusers' names for a file in the original layout, whose text encoder and VAE, if any, are left alone."""
    if not any(key.startswith(LDM_PREFIX) for key in state):
        state = {LDM_PREFIX + key: tensor for key, tensor in state.items()}
    unet = {key: tensor for key, tensor in state.items() if key.startswith(LDM_PREFIX)}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(unet, {"layers_per_block": 2, **config.unet})
    # The converter passes over what it does not know; its own names are kept, so that the check can list them.
    known = {id(tensor) for tensor in converted.values()}
    return converted | {key: tensor for key, tensor in unet.items() if id(tensor) not in known}


def check_keys(file: Path, state: dict[str, Tensor], config: AnimatorConfig) -> None:
    with torch.device("meta"):
        wanted = UNet2DConditionModel.from_config(config.unet).state_dict()
    complaints = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unexpected": sorted(state.keys() - wanted.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
            for key in sorted(wanted.keys() & state.keys())
            if state[key].shape != wanted[key].shape
        ],
    }
    told = [
        f"{len(keys)} {what}: {', '.join(keys[:LISTED])}{' …' if len(keys) > LISTED else ''}"
        for what, keys in complaints.items()
        if keys
    ]
    if told:
        raise BaseWeightsError(f"{file}: not the weights of the UNet configured, {'; '.join(told)}")
