"""{source}--{driving}.motion.safetensors: the motion of a video, to be fed back as a driver, edited, or mixed.

Two tensors, `pose` (T, 3, 4) and `expression` (T, E), float32, and in safetensors' header one entry `motion`, JSON:
`schema`, `fps` (a fraction), `crop` (the crop contract of the pictures it was read from), `encoders` (sha256 of the
encoders that made the codes: those of another training run speak another language) and `provenance`. Poses are those
that were shown: absolute, in the source's crop.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dex.data.shards import CropContract
from dex.files import write_atomic

SUFFIX = ".motion.safetensors"
SCHEMA = 1


class MotionError(ValueError):
    """A motion file that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Motion:
    pose: Float[Tensor, "T 3 4"]
    expression: Float[Tensor, "T E"]
    fps: Fraction
    crop: CropContract | None
    encoders: str
    provenance: dict[str, Any]

    @property
    def still(self) -> bool:
        """One moment, which holds for ever."""
        return len(self.pose) == 1

    def save(self, path: Path) -> None:
        """The same motion gives the same bytes."""
        header = {
            "schema": SCHEMA,
            "fps": str(self.fps),
            "crop": self.crop and dataclasses.asdict(self.crop),
            "encoders": self.encoders,
            "provenance": self.provenance,
        }
        tensors = {"pose": self.pose.float().contiguous(), "expression": self.expression.float().contiguous()}
        # One entry: safetensors writes several in an order of chance.
        write_atomic(path, save(tensors, {"motion": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Motion:
        """Raises `MotionError` where the file is damaged, of another kind, or was edited into something impossible."""
        if not path.is_file():
            raise MotionError(f"{path}: no such motion file")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("motion", "{}"))
                if header.get("schema") != SCHEMA:
                    found = header.get("schema")
                    raise MotionError(f"{path}: no motion file (schema {found}, needed is {SCHEMA})")
                motion = cls(
                    pose=file.get_tensor("pose"),
                    expression=file.get_tensor("expression"),
                    fps=Fraction(header["fps"]),
                    crop=header["crop"] and CropContract(**header["crop"]),
                    encoders=header["encoders"],
                    provenance=header["provenance"],
                )
        except MotionError:
            raise
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise MotionError(f"{path}: cannot be read as a motion file ({error})") from error
        motion._check(path)
        return motion

    def _check(self, path: Path) -> None:
        frames = len(self.pose)
        if self.pose.shape != (frames, 3, 4) or self.expression.shape[:-1] != (frames,) or not frames or self.fps <= 0:
            shapes = f"pose {tuple(self.pose.shape)}, expression {tuple(self.expression.shape)} at {self.fps} frames/s"
            raise MotionError(f"{path}: {shapes}; need (T, 3, 4), (T, E) and a rate above 0")
        if not (torch.isfinite(self.pose).all() and torch.isfinite(self.expression).all()):
            raise MotionError(f"{path}: holds numbers that are not finite")
        if (torch.linalg.det(self.pose[:, :, :3].double()) <= 0).any():
            raise MotionError(f"{path}: holds poses without scale, or mirrored: det(sR) must be above 0")
