"""One face followed through a video, and the crop rule's squares around it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from dex.faces import FaceError, crop
from dex.faces.boxes import bounds, larger_side
from dex.faces.detect import FaceTracker
from dex.resample import Instant

# Of several faces; a number counts from the left, from 0; None: there must be one.
Choice = Literal["largest", "left"] | int | None

_RIVAL = 0.5  # a second face counts when it is this large beside the largest
_LONGEST_LAPSE = 1.0  # seconds that may go by without the face
_JUMP = 0.75  # of the face's larger side: a step farther than this between two sightings is another face
_GROWTH = 2.0


def follow(
    instants: Iterable[Instant],
    fps: float,
    choice: Choice,
    margin: float = crop.MARGIN,
    shift_up: float = crop.SHIFT_UP,
) -> Float[np.ndarray, "T 3"]:
    """x0, y0 and side, in pixels, of each instant's square (dex.faces.crop). Lapses of up to a second are bridged.

    Raises `FaceError`.
    """
    boxes: list[Float[np.ndarray, "4"]] = []
    last: Float[np.ndarray, "4"] | None = None
    shape: tuple[int, ...] = ()
    with FaceTracker() as tracker:
        for _, image, fresh in instants:
            if shape not in ((), image.shape[:2]):
                raise FaceError(f"pictures of different sizes, {shape} and {image.shape[:2]}; make them alike")
            shape = image.shape[:2]
            if not fresh:
                boxes.append(boxes[-1])
                continue
            if last is None and (last := _choose(tracker.faces(image), choice)) is not None:
                tracker.aim(last)
            face = tracker.track(image).face
            box = None if face is None else bounds(face.landmarks)
            if box is None or (last is not None and _is_another(box, last)):
                tracker.restart()
                if last is not None:
                    tracker.aim(last)
                boxes.append(np.full(4, np.nan))
            else:
                last = box
                boxes.append(box)
    corners = _bridged(np.array(boxes), fps).reshape(-1, 2, 2)
    return crop.squares(corners, shape[1], shape[0], fps, margin, shift_up)


def _choose(found: Float[np.ndarray, "N 4"], choice: Choice) -> Float[np.ndarray, "4"] | None:
    """Of boxes, the largest first. None: the tracker finds it alone."""
    if choice is None:
        if (larger_side(found) >= _RIVAL * larger_side(found[:1])).sum() > 1:
            raise FaceError(
                f"{len(found)} faces; choose one with --face largest, left or 0…{len(found) - 1} from the left"
            )
        return None
    if not len(found):
        return None
    if choice == "largest":
        return found[0]
    number = 0 if choice == "left" or len(found) == 1 else int(choice)
    if number >= len(found):
        raise FaceError(f"--face {number}: {len(found)} found, they are counted from 0 at the left")
    return found[np.argsort(found[:, 0] + found[:, 2], kind="stable")[number]]


def _is_another(box: Float[np.ndarray, "4"], last: Float[np.ndarray, "4"]) -> bool:
    size, before = larger_side(box), larger_side(last)
    step = np.abs((box[:2] + box[2:]) - (last[:2] + last[2:])).max() / 2
    return bool(step > _JUMP * before or not 1 / _GROWTH < size / before < _GROWTH)


def _bridged(boxes: Shaped[np.ndarray, "T 4"], fps: float) -> Float[np.ndarray, "T 4"]:
    """Lapses filled between their neighbours. Raises `FaceError` naming the first that is too long."""
    seen = np.flatnonzero(~np.isnan(boxes).any(-1))
    if not len(seen):
        raise FaceError("no face found; pictures that are already cut around a face can be taken with --no-crop")
    edges = np.concatenate([[-1], seen, [len(boxes)]])
    for before, after in itertools.pairwise(edges):
        if after - before - 1 > _LONGEST_LAPSE * fps:
            raise FaceError(
                f"the face is not there, or jumps, from {(before + 1) / fps:.2f} to {after / fps:.2f} s; cut that out"
            )
    return np.stack([np.interp(np.arange(len(boxes)), seen, column[seen]) for column in boxes.T], axis=-1)
