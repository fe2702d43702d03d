"""Perceptual distances of pictures."""

from __future__ import annotations

import lpips
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dex import weights
from dex.metrics import MetricError
from dex.metrics.extractors import Source, source_of
from dex.metrics.pictures import check_pictures

_AT_ONCE = 4
IDS = {"vgg16": "lpips.vgg.v1", "stlpips_alex": "stlpips.alex.v1", "stlpips_vgg": "stlpips.vgg.v1"}


class Perceptual:
    """`lpips.vgg.v1`: LPIPS (Zhang et al. 2018) as the `lpips` package computes it. `stlpips.*`: its shift-tolerant
    version (Ghildyal & Liu 2022), another distance with another name."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """`name`: of the registered weights; `device`: that reads. Raises `MetricError` for another name,
        `WeightsError` where they are missing."""
        if name not in IDS:
            raise MetricError(f"perceptual network {name!r}: need one of {', '.join(IDS)}")
        self.id, self._device = IDS[name], device
        self.source: Source = source_of(name)
        self._network: nn.Module = (
            load_lpips().to(device) if name == "vgg16" else weights.load_torchscript(name, device)
        )

    @torch.inference_mode()
    def distance(self, a: Float[Tensor, "F 3 H W"], b: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
        """Of pictures in [0, 1]; ≥ 0, 0 for equal ones. Raises `MetricError`."""
        check_pictures("output", a)
        check_pictures("truth", b)
        if a.shape != b.shape:
            raise MetricError(f"output is {tuple(a.shape)}, truth {tuple(b.shape)}: need the same frames")
        parts = zip(a.split(_AT_ONCE), b.split(_AT_ONCE), strict=True)
        found = [self._network(*(x.float().to(self._device) * 2 - 1 for x in part)).flatten().cpu() for part in parts]
        return torch.cat(found)


def load_lpips() -> lpips.LPIPS:
    """LPIPS on VGG-16, frozen, from the registered weights instead of the package's download. Raises `WeightsError`."""
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = weights.load_state_dict("vgg16")
    convolutions = [m for m in network.net.modules() if isinstance(m, nn.Conv2d)]
    stored = [k.removesuffix(".weight") for k in state if k.startswith("features") and k.endswith("weight")]
    for module, prefix in zip(convolutions, stored, strict=True):
        module.load_state_dict({"weight": state[f"{prefix}.weight"], "bias": state[f"{prefix}.bias"]})
    return network.requires_grad_(False).eval()
