"""What the monitor shows: the influence matrix as a heat-map, and the tuples beside what they should have become."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from dex.metrics.influence import FACTORS
from dex.motion.pictures import crossed
from dex.reading.measure import Animate, Measured, animated
from dex.reading.tuples import EDITS, Asked, Tuples

CELL = 96  # pixels of the heat-map


def influence_picture(figures: Mapping[str, float]) -> Float[Tensor, "3 H W"]:
    """Rows: what is measured, pose and expression; columns: what was edited. White 0, full colour 1: blue on the
    diagonal, where it should be, red off it."""
    picture = Image.new("RGB", (3 * CELL, 3 * CELL), "white")
    pen = ImageDraw.Draw(picture)
    big, small = ImageFont.load_default(26), ImageFont.load_default(13)
    names = {"p": "pose", "e": "expression"}
    for x, factor in enumerate(FACTORS):
        pen.text(((x + 1.5) * CELL, 0.6 * CELL), f"edit\n{names[factor]}", "black", small, "mm", align="center")
        pen.text((0.5 * CELL, (x + 1.5) * CELL), names[factor], "black", small, "mm")
        for y, measured in enumerate(FACTORS):
            value = figures[f"I_{measured}{factor}"]
            strength = float(np.clip(np.nan_to_num(value), 0, 1))
            full = np.array((40, 90, 200) if measured == factor else (210, 50, 40))
            colour = tuple(int(c) for c in 255 + strength * (full - 255))
            corner = ((x + 1) * CELL, (y + 1) * CELL)
            pen.rectangle((*corner, corner[0] + CELL - 2, corner[1] + CELL - 2), fill=colour)
            middle = (corner[0] + CELL / 2, corner[1] + CELL / 2)
            pen.text(middle, f"{value:.2f}", "white" if strength > 0.5 else "black", big, "mm")
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def tuples_picture(tuples: Asked, found: Measured, count: int = 6) -> Float[Tensor, "3 H W"]:
    """Rows of source | a | b, and for each edit output | truth where it is known: a's pose and expression, b's pose,
    b's expression. Of the tuples of one source the first."""
    columns = [pictures.float() / 255 for pictures in (tuples.source, *tuples.driver)]
    for number, edit in enumerate(EDITS):
        columns.append(found.outputs[edit].nan_to_num())
        if isinstance(tuples, Tuples):
            columns.append(tuples.truth[number].float() / 255)
    each = tuples.each if isinstance(tuples, Tuples) else 1
    columns = [pictures[::each][:count] for pictures in columns]
    return make_grid(torch.stack(columns, dim=1).flatten(0, 1), nrow=len(columns))


def swap_grid(animate: Animate, tuples: Tuples, device: torch.device, count: int = 3) -> Float[Tensor, "3 H W"]:
    """One source (corner); row i takes the pose of driver a of a source's first tuple (left column), column j
    the expression of driver b of one (top row)."""
    source, (a, b) = tuples.source[:1], tuples.driver[:, :: tuples.each][:, :count]
    count = len(a)
    sources = source.expand(count**2, -1, -1, -1)
    made = animated(animate, sources, a.repeat_interleave(count, 0), b.repeat(count, 1, 1, 1), device)
    corner, left, top = (pictures.float() / 255 for pictures in (source[0], a, b))
    return crossed(corner, left, top, made.nan_to_num().unflatten(0, (count, count)))


def film(
    animate: Animate, source: Shaped[Tensor, "3 H W"], clip: Shaped[Tensor, "F 3 H W"], device: torch.device
) -> Float[Tensor, "F 3 H W"]:
    """Frames of driver | both | pose alone | expression alone; what is not driven stays the source's."""
    still = source.expand_as(clip)
    columns = [clip.float() / 255]
    for pose, expression in ((clip, clip), (clip, still), (still, clip)):
        columns.append(animated(animate, still, pose, expression, device).nan_to_num())
    return torch.cat(columns, dim=3)


def as_gif(frames: Float[Tensor, "F 3 H W"], fps: float = 12.5) -> bytes:
    """An animated picture, which TensorBoard plays without further packages."""
    levels = (frames * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    first, *others = (Image.fromarray(frame) for frame in levels)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()
