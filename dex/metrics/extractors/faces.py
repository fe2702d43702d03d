"""Head pose, expression and five points of the face in each frame of a clip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
import yaml
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dex.files import file_sha256
from dex.metrics import MetricError
from dex.metrics.extractors import Source, source_of, together
from dex.weights import open_torchscript

if TYPE_CHECKING:  # loads MediaPipe and OpenCV
    from dex.faces.detect import Face, FaceTracker

# Landmarks whose means are the points of ArcFace's template: eyes (corners), tip of the nose, corners of the mouth.
_POINTS = ((33, 133), (263, 362), (1,), (61,), (291,))


class FaceReading(NamedTuple):
    """F frames; rows of NaN where no face was found."""

    pose: Float[Tensor, "F 3 4"]  # P = [sR | t] in normalised image coordinates, float64
    expression: Float[Tensor, "F E"]
    points: Float[Tensor, "F 5 2"]  # pixels: eyes left and right in the picture, nose, corners of the mouth

    @property
    def found(self) -> Bool[Tensor, "F"]:
        return self.pose.isfinite().flatten(1).all(dim=1)


class Names(NamedTuple):
    """By what each kind of number is read, as the names of metrics say it; `MediaPipeReader.sources` has them."""

    expression: str
    rotation: str
    place: str  # translation and scale
    both: str  # what takes pose and expression


class MediaPipeReader:
    """MediaPipe's Face Landmarker on the face that YuNet finds: 52 blendshapes, and the head's transform.

    Use it in a `with` block. Raises ValueError where MediaPipe, OpenCV or their weights are missing.
    """

    names = Names("mp_blendshapes", "mp", "mp", "mp")

    def __init__(self) -> None:
        self.sources = dict.fromkeys(self.names, source_of("face_landmarker", "yunet"))
        try:
            from dex.faces.detect import FaceTracker
        except (ImportError, OSError) as error:
            raise ValueError(
                f"reading faces needs MediaPipe and OpenCV ({str(error).splitlines()[0]}): "
                "pip install -e '.[prep]', then python -m dex.doctor --install"
            ) from error
        self._tracker: FaceTracker = FaceTracker()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tracker.close()

    @property
    def blendshape_names(self) -> list[str]:
        """Of the coefficients; empty before the first face was seen."""
        return self._tracker.blendshape_names

    def read(self, frames: Shaped[np.ndarray, "F H W 3"]) -> FaceReading:
        """uint8 RGB frames of one clip. Raises `MetricError` for others."""
        return _reading(self.track(frames), frames.shape[1:3])

    def track(self, frames: Shaped[np.ndarray, "F H W 3"]) -> list[Face | None]:
        """The largest face of each frame; what was seen in other clips does not matter."""
        check_frames(frames)
        self._tracker.restart()
        return [self._tracker.track(np.ascontiguousarray(frame)).face for frame in frames]


def _reading(faces: list[Face | None], size: tuple[int, int]) -> FaceReading:
    from dex.faces import pose_labels

    height, width = size
    pose = np.full((len(faces), 3, 4), np.nan)
    expression, points = np.full((len(faces), 52), np.nan), np.full((len(faces), 5, 2), np.nan)
    for row, face in enumerate(faces):
        if face is not None:
            # Square pictures: [-1, 1] both ways; of others the wider side.
            scale = 2 / max(height, width)
            pose[row] = pose_labels.apply_affine(face.pose, scale, -np.array([width, height]) * scale / 2)
            expression[row] = face.blendshapes
            points[row] = [face.landmarks[list(which)].mean(axis=0) for which in _POINTS]
    return FaceReading(torch.from_numpy(pose), torch.from_numpy(expression), torch.from_numpy(points))


_KEYS = {"name", "file", "sha256", "licence", "size", "range", "margin", "expression", "rotation"}
_RANGES = {"0..1": (1 / 255, 0.0), "0..255": (1.0, 0.0), "-1..1": (1 / 127.5, -1.0)}


class ScriptReader(MediaPipeReader):
    """A network of your own (SMIRK, EMOCA, Deep3DFaceRecon, … exported as TorchScript) in the place of MediaPipe's
    coefficients, on squares around MediaPipe's landmarks. (N, 3, size, size) RGB → (N, M) numbers, of which some are
    the expression and, where it says so, three are the rotation as axis × angle in radians.
    """

    def __init__(self, settings: dict[str, Any], file: Path, device: torch.device | str) -> None:
        super().__init__()
        self._device = device
        self._settings = settings
        name, landmarks = settings["name"], self.names.place
        of_both = name if "rotation" in settings else f"{name}_{landmarks}"
        self.names = Names(name, name if "rotation" in settings else landmarks, landmarks, of_both)
        own = Source(name, settings["sha256"], settings["licence"])
        self.sources[name] = own
        self.sources.setdefault(of_both, together(own, self.sources[landmarks]))
        self._network = open_torchscript(file, device)

    @classmethod
    def from_file(cls, path: Path, device: torch.device | str = "cpu") -> Self:
        """A YAML file: name, file (beside it), sha256, licence, size (pixels), range ("0..1", "0..255", "-1..1"),
        margin (side of the square / larger side of the landmarks' box), expression: [first, last + 1], and, where there
        is one, rotation: [first, last + 1]. `device`: of the network; MediaPipe, which finds its faces, reads on the
        CPU.

        TorchScript runs code: a file of another hash is not opened. Raises `MetricError` naming what is wrong, and
        `WeightsError` for a file that is no TorchScript.
        """
        try:
            settings = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise MetricError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(settings, dict) or (wrong := set(settings) ^ _KEYS - ({"rotation"} - set(settings))):
            found = sorted(wrong) if isinstance(settings, dict) else settings
            raise MetricError(f"{path}: keys missing or unknown: {found}; need {', '.join(sorted(_KEYS))}")
        if not re.fullmatch("[a-z0-9_]+", str(settings["name"])) or settings["name"] in MediaPipeReader.names:
            raise MetricError(
                f"{path}: name {settings['name']!r} becomes part of metrics' names: need small letters, digits and "
                f"underscores, and none of {', '.join(sorted(set(MediaPipeReader.names)))}"
            )
        if settings["range"] not in _RANGES:
            raise MetricError(f"{path}: range {settings['range']!r}, need one of {', '.join(_RANGES)}")
        for key, kind, number in (("size", int, "whole number"), ("margin", int | float, "number")):
            if not isinstance(settings[key], kind) or settings[key] <= 0:
                raise MetricError(f"{path}: {key} is {settings[key]!r}, need a {number} above 0")
        for key in ("expression", "rotation"):
            match settings.get(key, [0, 3]):
                case [int(first), int(last)] if 0 <= first < last and (key == "expression" or last == first + 3):
                    pass
                case found:
                    much = "[first, last + 1]" if key == "expression" else "[first, first + 3]"
                    raise MetricError(f"{path}: {key} is {found!r}, need {much}")
        file = path.parent / settings["file"]
        if not file.is_file():
            raise MetricError(f"{path}: {file} is missing")
        digest = file_sha256(file)
        if digest != settings["sha256"]:
            raise MetricError(f"{path}: {file} has sha256 {digest}, not the one that stands there; it was not opened")
        return cls(settings, file, device)

    @property
    def blendshape_names(self) -> list[str]:
        return []  # coefficients of another model have other names

    def read(self, frames: Shaped[np.ndarray, "F H W 3"]) -> FaceReading:
        """As `MediaPipeReader.read`. Raises `MetricError` where the network gives fewer numbers than its file says."""
        from dex.faces.boxes import bounds, cut_square, larger_side

        faces = self.track(frames)
        reading = _reading(faces, frames.shape[1:3])
        rows = [row for row, face in enumerate(faces) if face is not None]
        first, last = self._settings["expression"]
        expression = torch.full((len(frames), last - first), torch.nan, dtype=torch.float64)
        if rows:
            squares = []
            for row in rows:
                box = bounds(faces[row].landmarks)  # type: ignore[union-attr]
                side = round(float(larger_side(box)) * self._settings["margin"])
                corner = np.rint((box[:2] + box[2:]) / 2 - side / 2)
                squares.append(cut_square(frames[row], corner, side, self._settings["size"]))
            scale, shift = _RANGES[self._settings["range"]]
            pictures = torch.from_numpy(np.stack(squares)).movedim(-1, 1).float() * scale + shift
            with torch.inference_mode():
                numbers = self._network(pictures.to(self._device)).cpu().double()
            ends = [last, *self._settings.get("rotation", [])[1:]]
            if numbers.ndim != 2 or numbers.shape[1] < max(ends):
                raise MetricError(
                    f"{self.names.expression}: gives {tuple(numbers.shape)}, need frames × {max(ends)} or more"
                )
            expression[rows] = numbers[:, first:last]
            if "rotation" in self._settings:
                a, b = self._settings["rotation"]
                scales = torch.linalg.det(reading.pose[rows, :, :3]) ** (1 / 3)
                turned = torch.linalg.matrix_exp(_skew(numbers[:, a:b]))
                reading.pose[rows, :, :3] = scales[:, None, None] * turned
        return reading._replace(expression=expression)


def _skew(v: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3 3"]:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def check_frames(frames: Shaped[np.ndarray, "F H W 3"]) -> None:
    """Raises `MetricError` for all but uint8 (F, H, W, 3)."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise MetricError(f"frames are {frames.dtype} {frames.shape}, need uint8 frames × height × width × 3 (RGB)")
