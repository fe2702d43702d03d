"""Small videos of all sorts, written with PyAV for the tests."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path, frames: Iterable[np.ndarray], times: Sequence[Fraction] | None = None, fps: int = 25
) -> None:
    """mpeg4 in mp4; `times` in seconds make a variable frame rate."""
    with av.open(str(path), "w") as container:
        stream = None
        for number, image in enumerate(frames):
            if stream is None:
                stream = container.add_stream("mpeg4", rate=fps)
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
                stream.codec_context.time_base = Fraction(1, 1000)
                stream.codec_context.gop_size = 1
                stream.codec_context.bit_rate = 8_000_000
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (times[number] if times else Fraction(number, fps)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_sound(path: Path, seconds: float = 1.0) -> None:
    """A file with an audio stream alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, int(16000 * seconds)), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def scene(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((height // 4, -(-width // 5), 1), np.uint8))[:, :width]
