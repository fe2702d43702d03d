"""Features of pictures and videos, whose distributions FID, KID and FVD compare."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dex import weights
from dex.files import file_sha256
from dex.metrics import MetricError
from dex.metrics.extractors import Source, source_of
from dex.metrics.pictures import check_pictures

_AT_ONCE = 16
VIDEO_FRAMES = 16
VIDEO_LEAST = 256  # videos: below, an FVD says more about their number than about them


class Features:
    """`inception`: pytorch-fid's network, 2048 numbers, comparable with published FID. `effnet_lite0`:
    EfficientNet-Lite0, 1280 numbers, where Inception is not to be had; not comparable with anything but itself."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """`device`: that reads. Raises `MetricError` for another name, `WeightsError` where the weights are missing."""
        if name not in ("inception", "effnet_lite0"):
            raise MetricError(f"features {name!r}: need inception or effnet_lite0")
        self.id, self._device = name, device
        self.dimensions = 2048 if name == "inception" else 1280
        self.source: Source = source_of("inception_fid" if name == "inception" else "efficientnet_lite0")
        self._network: nn.Module = (
            load_inception().to(device)
            if name == "inception"
            else weights.load_torchscript("efficientnet_lite0", device)
        )

    @torch.inference_mode()
    def features(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Of pictures in [0, 1]. Inception scales them to 299² itself, without antialiasing, as pytorch-fid does;
        EfficientNet gets 224² with antialiasing. Raises `MetricError`."""
        check_pictures("pictures", pictures)
        return torch.cat([self._part(part.float().to(self._device)).cpu() for part in pictures.split(_AT_ONCE)])

    def _part(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n D"]:
        if self.id == "inception":
            return self._network(pictures)[0].flatten(1)
        resized = F.interpolate(pictures, (224, 224), mode="bilinear", antialias=True)
        return self._network(resized * 255)[0]


def load_inception() -> nn.Module:
    """pytorch-fid's InceptionV3 up to its pooled features, from the registered weights instead of its download. Raises
    `WeightsError`."""
    from pytorch_fid import inception

    state = weights.load_state_dict("inception_fid")
    with mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
        return inception.InceptionV3([3]).eval().requires_grad_(False)


class I3d:
    """FVD's network: I3D trained on Kinetics-400, as TorchScript, 400 logits (Unterthiner et al. 2018). No registered
    address serves it: give your file, and the hash that you trust."""

    id = "i3d_16f_resize224"
    dimensions = 400

    def __init__(self, file: Path, sha256: str, device: torch.device | str = "cpu") -> None:
        """TorchScript runs code: a file of another hash is not opened. Raises `MetricError`, and `WeightsError` for a
        file that is none."""
        if not file.is_file():
            raise MetricError(f"{file}: no such file. FVD needs an I3D TorchScript file")
        found = file_sha256(file)
        if found != sha256:
            raise MetricError(f"{file}: has sha256 {found}, {sha256} was given; it was not opened")
        self.source, self._device = Source("i3d", sha256, "as its publisher states"), device
        self._network = weights.open_torchscript(file, device)

    @torch.inference_mode()
    def features(self, videos: Float[Tensor, "N 16 3 H W"]) -> Float[Tensor, "N 400"]:
        """Of 16 consecutive frames in [0, 1], scaled to 224² (bilinear, antialiased) and to [-1, 1], given to the
        network as (N, 3, 16, 224, 224). Raises `MetricError`."""
        if videos.ndim != 5 or videos.shape[1] != VIDEO_FRAMES:
            raise MetricError(f"videos of shape {tuple(videos.shape)}, need N × {VIDEO_FRAMES} × 3 × height × width")
        rows = []
        for video in videos:
            check_pictures("video", video)
            resized = F.interpolate(video.float().to(self._device), (224, 224), mode="bilinear", antialias=True)
            row = self._network((resized * 2 - 1).movedim(0, 1)[None])
            if row.shape != (1, self.dimensions):
                raise MetricError(f"the I3D file gives {tuple(row.shape)} a video, need (1, {self.dimensions})")
            rows.append(row.cpu())
        return torch.cat(rows)


def check_count(videos: int, force: bool) -> None:
    """Raises `MetricError` for fewer than VIDEO_LEAST videos, unless forced."""
    if videos < VIDEO_LEAST and not force:
        raise MetricError(
            f"FVD of {videos} videos: below {VIDEO_LEAST} it is mostly the estimator's bias. Score more of them, "
            "or pass --force"
        )
