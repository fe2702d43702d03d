"""Footage seen through the squares that the network works on: cut around a face, or taken as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from tqdm import tqdm

from dex.animation.footage import Footage
from dex.data.shards import CropContract
from dex.faces import RULE, FaceError

if TYPE_CHECKING:  # loads MediaPipe
    from dex.faces.follow import Choice


@dataclass(frozen=True)
class Shot:
    """A picture, and the square in it: x0, y0 and side in pixels."""

    image: Shaped[np.ndarray, "H W 3"]
    square: Float[np.ndarray, "3"]
    whole: bool  # --no-crop: the square is the picture, or its middle

    def cut(self, size: int) -> Shaped[np.ndarray, "size size 3"]:
        x, y, side = self.square
        if self.whole:
            box = (x, y, x + side, y + side)
            return np.asarray(Image.fromarray(self.image).resize((size, size), Image.Resampling.BICUBIC, box))
        from dex.faces.boxes import cut_square

        return cut_square(self.image, np.array([x, y]), float(side), size)


@dataclass(frozen=True)
class View:
    """Footage at even instants, with its squares."""

    footage: Footage
    fps: Fraction
    squares: Float[np.ndarray, "T 3"] | None  # None: each picture's own middle

    @property
    def count(self) -> int:
        """Frames; for --no-crop as many as the file says that it has."""
        return len(self.squares) if self.squares is not None else max(1, round(self.footage.seconds * self.fps))

    def shots(self) -> Iterator[Shot]:
        """Decodes as it goes."""
        for number, instant in enumerate(self.footage.instants(self.fps)):
            if self.squares is None:
                yield Shot(instant.image, _middle(instant.image), whole=True)
            else:
                yield Shot(instant.image, self.squares[number], whole=False)


def make_view(footage: Footage, fps: Fraction, contract: CropContract | None, crop: bool, face: Choice) -> View:
    """Finds the face in every frame by the rule of the training data. `contract`: of the checkpoint; None: unknown.

    Raises ValueError where there is no face, where there are several and none is chosen, or where MediaPipe, OpenCV or
    their weights are missing.
    """
    if not crop:
        return View(footage, fps, None)
    try:
        with quiet_libraries():
            from dex.faces.follow import follow

            framing = {} if contract is None else {"margin": contract.margin, "shift_up": contract.shift_up}
            expected = max(1, round(footage.seconds * fps))
            with tqdm(
                footage.instants(fps), f"faces of {footage.name}", expected, leave=False, disable=footage.still
            ) as instants:
                return View(footage, fps, follow(instants, float(fps), face, **framing))
    except FaceError as error:
        raise FaceError(f"{footage.path}: {error}") from error
    except (ImportError, OSError) as error:
        raise ValueError(
            f"finding faces needs MediaPipe and OpenCV ({str(error).splitlines()[0]}): "
            "pip install -e '.[prep]', then python -m dex.doctor --install; or pass --no-crop for pictures "
            "that are already cut"
        ) from error


def contract_warning(contract: CropContract | None) -> str | None:
    """What a user should know when a checkpoint was not trained on crops such as this program cuts."""
    cure = "Train on shards of `python -m data_prep`, or cut the pictures alike and pass --no-crop"
    if contract is None:
        return f"the checkpoint does not say how its training pictures were cut; cutting by {RULE}. {cure}"
    if contract.rule != RULE:
        return (
            f"the checkpoint was trained on pictures cut by {contract.rule!r}; cutting by {RULE} with its margin "
            f"{contract.margin:g} and shift {contract.shift_up:g}. {cure}"
        )
    return None


def _middle(image: Shaped[np.ndarray, "H W 3"]) -> Float[np.ndarray, "3"]:
    height, width = image.shape[:2]
    side = min(height, width)
    return np.array([(width - side) / 2, (height - side) / 2, side])


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """MediaPipe, TFLite and libav write to file descriptor 2 whatever they are told; Python's own messages go on."""
    own, kept = sys.stderr, os.dup(2)
    with open(os.devnull, "w") as nowhere, os.fdopen(os.dup(2), "w", buffering=1) as aside:
        if own is sys.__stderr__:
            sys.stderr = aside
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sys.stderr = own
