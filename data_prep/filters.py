"""Why an instant or a clip is not taken. Each filter is a few lines; the reasons are the words of report.json."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from data_prep.settings import Settings
from dex.faces import crop
from dex.faces.boxes import bounds, centre_inside, grown, larger_side

NO_FACE = "no face"
SEVERAL = "several faces"
SMALL = "face too small"
CUT_OFF = "face leaves the picture"
UNSURE = "low confidence"
UNSTEADY = "unsteady track"
BLURRED = "blurred"
BORDER = "head too close to the picture's border"
SHORT = "too short"
SLOW = "frame rate too low"
DECODERS = "decoders disagree"
UNREADABLE = "not a readable video"
DUPLICATE = "duplicate"
CRASHED = "decoder crashed"
STALLED = "decoder stalled"
FAULT = "fault of data_prep"

_MIN_SCORE = 0.5  # of the detector for the followed face
_MIN_OTHER = 0.5  # a second face counts when it is this large beside the first, or inside the crop
_OUTSIDE = 0.04  # share of landmarks that may lie outside the picture, or the crop


def instant_reasons(
    rows: Shaped[np.ndarray, "T"], width: int, height: int, settings: Settings
) -> Shaped[np.ndarray, "T"]:
    """One reason for each row, "" where it may be used."""
    box = bounds(rows["landmarks"])
    face = larger_side(box)
    points = rows["landmarks"]
    outside = ((points < 0) | (points > [width, height])).any(-1).mean(-1)
    others = rows["others"]
    intrudes = (larger_side(others) >= _MIN_OTHER * face[:, None]) | centre_inside(
        others, grown(box, crop.MARGIN)[:, None]
    )
    present = larger_side(others) > 0
    several = np.where(rows["found"], (intrudes & present).sum(-1) > 0, present.sum(-1) > 1)
    unmeasured = ~rows["found"] & (present.sum(-1) == 1)
    enough = settings.min_face_share * min(width, height)
    small = (face < settings.min_face) | (face < min(enough, settings.size / 4))
    unsure = rows["score"] < _MIN_SCORE
    conditions = [several, unmeasured, ~rows["found"], small, outside > _OUTSIDE, unsure]
    return np.select(conditions, [SEVERAL, UNSURE, NO_FACE, SMALL, CUT_OFF, UNSURE], default="")


def span_detail(reason: str, rows: Shaped[np.ndarray, "T"], settings: Settings) -> str:
    """Figures to a reason that `instant_reasons` gave to a stretch of rows."""
    found = rows[rows["found"]]
    if reason == SMALL:
        face = np.median(larger_side(bounds(found["landmarks"])))
        return (
            f"{face:.0f} pixels, need {settings.min_face:g} (--min-face) and {settings.min_face_share:.0%} of the "
            f"picture's shorter side (--min-face-share) or {settings.size / 4:g}"
        )
    if reason == SEVERAL:
        others = (larger_side(rows["others"]) > 0).sum(-1) + rows["found"]
        return f"{int(np.median(others))} at a time"
    if reason == UNSURE and len(found) == 0:
        return "a face is found, but its landmarks are not"
    if reason == UNSURE:
        return f"detector's score {np.median(found['score']):.2f}, need {_MIN_SCORE}"
    return ""


def clip_reason(
    rows: Shaped[np.ndarray, "T"], squares: Float[np.ndarray, "T 3"], width: int, height: int, settings: Settings
) -> tuple[str, str] | None:
    """Why a whole clip is refused, as (reason, figures); None when it is good."""
    if (sharp := float(np.median(rows["sharpness"]))) < settings.min_sharpness:
        return BLURRED, f"sharpness {sharp:.1f}, need {settings.min_sharpness:g} (--min-sharpness)"
    if (share := crop.padding(squares, width, height)) > crop.MAX_PADDING:
        return BORDER, f"{share:.0%} of the crop would lie outside, at most {crop.MAX_PADDING:.0%} may"
    low, high = squares[:, None, :2], squares[:, None, :2] + squares[:, None, 2:]
    points = rows["landmarks"]
    outside = ((points < low) | (points > high)).any(-1).mean(-1)
    if (share := float(outside.max())) > _OUTSIDE:
        return (
            UNSTEADY,
            f"{share:.0%} of the landmarks leave the crop, at most {_OUTSIDE:.0%} may",
        )
    return None
