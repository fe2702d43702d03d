"""What a user may choose. Everything here changes the clips, so a run is only ever resumed with the same settings."""

from __future__ import annotations

from dataclasses import dataclass

from dex.data.shards import CropContract
from dex.faces import RULE, crop

FPS = 25


@dataclass(frozen=True)
class Settings:
    size: int = 512  # pixels of the square crop, both sides
    min_seconds: float = 4.0  # shortest clip
    max_seconds: float = 10.0  # longest clip; longer shots are split evenly
    min_face: float = 48.0  # pixels: smallest face, larger side of the landmarks' box
    min_face_share: float = 0.15  # the same over the picture's shorter side; not asked of faces >= size / 4
    min_sharpness: float = 5.0  # median variance of the Laplacian (see dex/faces/detect.py)
    min_fps: float = 7.0  # slowest source; sources below 25 frames/s repeat frames
    licence: str = ""  # overrides what the layout states

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 2:
            raise ValueError(f"--size {self.size}: need an even number of pixels, at least 32")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"--min-seconds {self.min_seconds:g} --max-seconds {self.max_seconds:g}: need 0 < min <= max"
            )
        if self.max_seconds > 60:  # one clip's labels are held in memory
            raise ValueError(f"--max-seconds {self.max_seconds:g}: clips may last at most 60 s")

    @property
    def contract(self) -> CropContract:
        return CropContract(rule=RULE, size=self.size, margin=crop.MARGIN, shift_up=crop.SHIFT_UP)

    @property
    def min_frames(self) -> int:
        return max(2, round(self.min_seconds * FPS))

    @property
    def max_frames(self) -> int:
        return max(2, round(self.max_seconds * FPS))
