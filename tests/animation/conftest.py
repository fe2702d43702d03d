"""Checkpoints too small to draw anything, and small material: what is tested is what reaches them and what leaves."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dex.motion.encoders import save_generator
from dex.motion.generator import MotionGenerator
from dex.video import write_clip
from tests.motion.conftest import TINY

SIZE, RATE = TINY.size, 44_100
CROP = {"rule": "smoothed-face-square.v1", "size": SIZE, "margin": 1.9, "shift_up": 0.06}


def tiny_generator() -> MotionGenerator:
    """Random, with poses that do depend on the picture."""
    torch.manual_seed(0)
    generator = MotionGenerator(TINY)
    torch.nn.init.normal_(generator.pose_encoder.head.weight, std=0.01)
    return generator


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_generator(folder, TINY, tiny_generator().state_dict(), {"step": 7}, CROP)
    return folder


def scene(seed: int, size: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 1), dtype=np.uint8).repeat(3, axis=2)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def moving(seed: int, count: int) -> Iterator[np.ndarray]:
    base = scene(seed)
    return (np.roll(base, (i, 2 * i), (0, 1)) for i in range(count))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """portrait.png; a.mp4 (20 frames of 30000/1001 a second, with a tone), b.mp4 (12 frames of 25); pictures/."""
    folder = tmp_path_factory.mktemp("material")
    Image.fromarray(scene(0)).save(folder / "portrait.png")
    write_clip(folder / "silent.mp4", moving(1, 20), fps=Fraction(30000, 1001))
    write_clip(folder / "b.mp4", moving(2, 12))
    (folder / "pictures").mkdir()
    for i, image in enumerate(moving(3, 11)):
        Image.fromarray(image).save(folder / "pictures" / f"{i}.png")
    with av.open(str(folder / "silent.mp4")) as silent, av.open(str(folder / "a.mp4"), "w") as container:
        video = container.add_stream_from_template(silent.streams.video[0])
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        tone = (np.sin(np.arange(RATE) * 0.1) * 20_000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
        frame.rate = RATE
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        for packet in silent.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                container.mux(packet)
    (folder / "silent.mp4").unlink()
    return folder
