"""From one reason an instant to spans of time: which may become clips, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Shaped

from data_prep import filters
from data_prep.settings import FPS, Settings
from dex.faces.boxes import bounds, overlap

BRIDGE = 5  # instants: a shorter lapse of the detector inside a steady track is forgiven
_TRIM = 2  # instants on either side of a cut: encoders blend frames there
_STEADY = 0.4  # IoU of the face's box from one instant to the next


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of one source; `reason` is "" for a clip."""

    start: int
    stop: int
    reason: str = ""
    detail: str = ""

    def __len__(self) -> int:
        return self.stop - self.start


def spans(
    rows: Shaped[np.ndarray, "T"],
    reasons: Shaped[np.ndarray, "T"],
    cuts: list[int],
    settings: Settings,
    multi_view: bool,
) -> list[Span]:
    """Clips of the lengths asked for, and what is between them with its reason, in the order of time.

    Rows trimmed beside a cut are in no span. A clip may begin or end in a lapse that was bridged: the measured rows on
    either side of the lapse are at most `BRIDGE` rows away, but one of them lies outside of the clip.
    """
    breaks = sorted({0, len(rows), *cuts, *(np.flatnonzero(np.diff(rows["index"]) != 1) + 1).tolist()})
    found: list[Span] = []
    for start, stop in pairwise(breaks):
        first = start + _TRIM * (start in cuts)
        last = stop - _TRIM * (stop in cuts)
        for run in _runs(rows, reasons, first, last):
            if run.reason:
                found.append(run)
            elif multi_view:
                found += _windows(run, rows, settings)
            else:
                found += _pieces(run, settings)
    return found


def _runs(rows: Shaped[np.ndarray, "T"], reasons: Shaped[np.ndarray, "T"], start: int, stop: int) -> Iterator[Span]:
    """Stretches of one reason inside one shot, short lapses bridged, split where the face jumps."""
    if stop <= start:
        return
    box = bounds(rows["landmarks"][start:stop])
    bridged = _bridge(reasons[start:stop].copy(), box)
    jumps = overlap(box[1:], box[:-1]) < _STEADY
    measured = rows["found"][start:stop]
    jumps &= measured[1:] & measured[:-1] & (bridged[1:] == "") & (bridged[:-1] == "")
    edges = np.flatnonzero(jumps | (bridged[1:] != bridged[:-1])) + 1
    for first, last in pairwise([0, *edges.tolist(), stop - start]):
        yield Span(start + first, start + last, str(bridged[first]))


def _bridge(reasons: Shaped[np.ndarray, "T"], box: Shaped[np.ndarray, "T 4"]) -> Shaped[np.ndarray, "T"]:
    bad: Bool[np.ndarray, "T"] = reasons != ""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        inside = first > 0 and last < len(reasons)
        if inside and last - first <= BRIDGE and overlap(box[first - 1], box[last]) >= _STEADY:
            reasons[first:last] = ""
    return reasons


def _pieces(run: Span, settings: Settings) -> list[Span]:
    """Equal pieces no longer than asked for."""
    if len(run) < settings.min_frames:
        return [_short(run, settings)]
    count = -(-len(run) // settings.max_frames)
    if len(run) // count >= settings.min_frames:
        edges = [run.start + len(run) * i // count for i in range(count + 1)]
        return [Span(*edge) for edge in pairwise(edges)]
    edges = [run.start + settings.max_frames * i for i in range(count)]
    return [*(Span(*edge) for edge in pairwise(edges)), _short(Span(edges[-1], run.stop), settings)]


def _windows(run: Span, rows: Shaped[np.ndarray, "T"], settings: Settings) -> list[Span]:
    """Whole windows of `min_frames` on a grid that starts at instant 0, the same in every camera of a recording."""
    length, offset = settings.min_frames, int(rows["index"][run.start]) - run.start
    first = -(-(run.start + offset) // length) * length - offset
    last = (run.stop + offset) // length * length - offset
    if last <= first:
        return [Span(run.start, run.stop, filters.SHORT, "does not fill a window that all cameras share")]
    edges = [Span(run.start, first), Span(last, run.stop)]
    rest = [Span(e.start, e.stop, filters.SHORT, "part of a window that all cameras share") for e in edges if len(e)]
    return rest[:1] + [Span(at, at + length) for at in range(first, last, length)] + rest[1:]


def _short(run: Span, settings: Settings) -> Span:
    detail = f"{len(run) / FPS:.2f} s, need {settings.min_seconds:g} s (--min-seconds)"
    return Span(run.start, run.stop, filters.SHORT, detail)


def window_of(index: int, settings: Settings) -> int:
    """Number of the shared window that begins at instant `index`."""
    return index // settings.min_frames
