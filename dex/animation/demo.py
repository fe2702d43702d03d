"""`python -m dex.animate --demo`: a drawn portrait moved by two drawn drivers, through the models in dex/assets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dex.animation.backends import load_backend
from dex.animation.reenact import Request, Result, reenact
from dex.data.synthetic.head import make_head
from dex.data.synthetic.motion import motion_track
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import identity_seed
from dex.video import write_clip

ASSETS = Path(__file__).parents[1] / "assets"
MODELS = {"motion": ASSETS / "demo", "diffusion": ASSETS / "demo_animator"}  # by backend
FRAMES = 75  # three seconds
SIZE = 128  # of the material; the model's own is enlarged to it
PORTRAIT, POSE_DRIVER, EXPRESSION_DRIVER = 1, 4, 10  # identities of the test split


def run(out: Path, kind: str, warn: Callable[[str], None]) -> Iterator[Result]:
    """Pose from one driver and expression from the other; then the pose alone; then the expression alone.

    `kind`: "motion" or "diffusion". Writes its three inputs to `out` first, so that they can be driven again by hand.
    Raises ValueError and OSError.
    """
    backend = load_backend(MODELS[kind], kind, None, 0, None, None)
    portrait, pose, expression = write_material(out)
    for poses, expressions in ((pose, expression), (pose, None), (None, expression)):
        yield reenact(
            Request(portrait, poses, expressions, absolute=True, out=out, size=SIZE, crop=False), backend, warn
        )


def write_material(out: Path) -> tuple[Path, Path, Path]:
    """portrait.png, pose.mp4 and expression.mp4: three people whom no training saw."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "portrait.png", out / "pose.mp4", out / "expression.mp4"
    for path, number in zip(paths, (PORTRAIT, POSE_DRIVER, EXPRESSION_DRIVER), strict=True):
        poses, expressions = motion_track(np.random.default_rng(number), FRAMES, framing="close")
        count = 1 if path.suffix == ".png" else FRAMES
        frames = render(make_head(identity_seed("test", number)), expressions[:count], poses[:count], SIZE).image
        if count == 1:
            Image.fromarray(frames[0]).save(path)
        else:
            write_clip(path, frames)
    return paths
