"""Whose face it is: embeddings of aligned faces, compared by their cosine."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from dex import weights
from dex.metrics.extractors import source_of
from dex.metrics.extractors.faces import check_frames
from dex.metrics.motion import MotionDistance

SIDE = 112
# ArcFace's template (insightface): pixels of eyes, nose and corners of the mouth in the aligned chip.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_AT_ONCE = 32


class ArcFace:
    """MobileFaceNet trained with the ArcFace loss on MS1M, 128 numbers."""

    id = "mobilefacenet_arcface"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """`device`: that reads. Raises `WeightsError`."""
        self.source = source_of(self.id)
        self._device = device
        self._network = weights.load_torchscript(self.id, device)

    @torch.inference_mode()
    def embed(self, frames: Shaped[np.ndarray, "F H W 3"], points: Float[Tensor, "F 5 2"]) -> Float[Tensor, "F 128"]:
        """Unit rows, float64, of uint8 RGB frames with their five points in pixels; NaN where these are NaN."""
        check_frames(frames)
        rows = points.isfinite().flatten(1).all(dim=1)
        embedding = torch.full((len(frames), 128), torch.nan, dtype=torch.float64)
        if rows.any():
            kept = rows.nonzero().flatten().tolist()
            chips = torch.from_numpy(np.stack([align(frames[i], points[i].numpy()) for i in kept]))
            parts = [self._network(part.movedim(-1, 1).float().to(self._device)) for part in chips.split(_AT_ONCE)]
            embedding[rows] = F.normalize(torch.cat(parts).cpu().double(), dim=1)
        return embedding


def align(picture: Shaped[np.ndarray, "H W 3"], points: Float[np.ndarray, "5 2"]) -> Shaped[np.ndarray, "112 112 3"]:
    """The face at ArcFace's template, by the similarity that fits the five points best (Umeyama 1991)."""
    import cv2  # of the extra "prep", as is the reader that gave the points

    affine = similarity(points, TEMPLATE)
    factor = max(1, int(1 / np.sqrt(np.linalg.det(affine[:, :2]))))  # averaged down from a multiple: no aliasing
    chip = cv2.warpAffine(picture, affine * factor, (SIDE * factor,) * 2, flags=cv2.INTER_LINEAR)
    return chip if factor == 1 else cv2.resize(chip, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def similarity(points: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"]:
    """The rotation, scale and shift, without shear or mirror, that takes `points` nearest to `target` in least squares:
    with complex numbers z → a z + b."""
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (points, target))
    centred = z - z.mean()
    a = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


class IdentityCosine(MotionDistance):
    """CSIM, `csim.EXTRACTOR.v1`: mean cosine of the embeddings (F, D) of output and reference, unit rows, in [-1, 1].
    The reference is the driving frame in self-reenactment, else the source, repeated."""

    higher_is_better = True
    names = ("csim",)

    def per_frame(self, output: Float[Tensor, "F D"], driver: Float[Tensor, "F D"]) -> Float[Tensor, "F 1"]:
        return (output * driver).sum(dim=1, keepdim=True)
