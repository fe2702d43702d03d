"""Frames that come at any times → frames at even instants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple


class Instant(NamedTuple):
    index: int  # type: ignore[assignment]  # the instant is index / fps seconds
    image: Any  # of the frame nearest in time
    fresh: bool  # False: the same frame as at the instant before


def resample(frames: Iterator[tuple[float, Any]], fps: float | Fraction, reach: float = math.inf) -> Iterator[Instant]:
    """For every instant i / fps the frame nearest in time; `frames` are (seconds, anything), times rising.

    Faster sources lose frames, slower ones repeat them, variable rates come out even: sound stays in step. Instants
    farther than `reach` seconds from any frame are left out. Holds two frames.
    """
    held: tuple[float, Any] | None = None
    rate = float(fps)
    index, step = 0, 1 / rate
    last_shown: Any = None
    for time, image in frames:
        if held is None:
            index = math.ceil(time * rate - 0.5)
        else:
            step = time - held[0]
            for instant in _until(index, (held[0] + time) / 2, held, last_shown, rate, reach):
                yield instant
                last_shown = instant.image
            index = max(index, math.ceil((held[0] + time) / 2 * rate - 1e-6))
        held = (time, image)
    if held is not None:  # the last frame is shown as long as the one before it; in all, round(length · fps) instants
        yield from _until(index, held[0] + min(step, reach) - 0.5 / rate, held, last_shown, rate, reach)


def _until(
    index: int, end: float, held: tuple[float, Any], last_shown: Any, fps: float, reach: float
) -> Iterator[Instant]:
    time, image = held
    while index / fps < end - 1e-6:
        if abs(index / fps - time) <= reach:
            yield Instant(index, image, fresh=image is not last_shown)
            last_shown = image
        index += 1
