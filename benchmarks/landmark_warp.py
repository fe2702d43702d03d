"""A classical method without learning: the source picture is warped by its facial landmarks.

The landmarks of a frame are to lie where those of the pose driver do, and from there move as the expression driver's
differ from them once an affine map has taken one face to the other. A thin-plate spline carries the picture along, the
border stays. It makes nothing that the source does not show: no teeth, no far side of a head. And an affine map of the
picture is no turn of a head: where the drivers' yaws differ, the pose follows the expression driver too.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped
from scipy.interpolate import RBFInterpolator

from benchmarks.material import Frames, each_once
from dex.faces.detect import FaceTracker
from dex.faces.pose_labels import RIGID

_EVERY = 3  # of 478 landmarks: the warp is smooth, more cost time only
_GRID = 48  # the spline is evaluated on so many points a side and interpolated between them
_SMOOTHING = 1e-3

Landmarks = Float[np.ndarray, "L 2"]


class LandmarkWarp:
    """Close it, or use it in a `with` block. Frames without a face repeat the one before."""

    def __init__(self) -> None:
        self._tracker = FaceTracker()

    def __enter__(self) -> LandmarkWarp:
        return self

    def __exit__(self, *_: object) -> None:
        self._tracker.close()

    def animate(self, source: Frames, pose: Frames, expression: Frames) -> Frames:
        (own, *_), poses, expressions = each_once(self._landmarks, source, pose, expression)
        made = [source[0]]
        for p, e in zip(poses, expressions, strict=True):
            if own is None or p is None or e is None:
                made.append(made[-1])
            else:
                made.append(warp(source[0], own, p + moved(e, p)))
        return np.stack(made[1:])

    def _landmarks(self, frames: Frames) -> list[Landmarks | None]:
        self._tracker.restart()
        faces = [self._tracker.track(frame).face for frame in frames]
        return [None if face is None else face.landmarks for face in faces]


def moved(expression: Landmarks, pose: Landmarks) -> Landmarks:
    """What the expression driver's face does that the pose driver's does not, in pixels of the pose driver's picture:
    an affine map fitted on points that expressions do not move takes one to the other, the rest is expression (and the
    shape of another face, which this method cannot tell from it)."""
    ones = np.ones((len(expression), 1))
    homogeneous = np.hstack([expression, ones])
    affine = np.linalg.lstsq(homogeneous[RIGID], pose[RIGID], rcond=None)[0]
    return homogeneous @ affine - pose


def warp(picture: Shaped[np.ndarray, "H W 3"], own: Landmarks, target: Landmarks) -> Shaped[np.ndarray, "H W 3"]:
    """The picture with its landmarks at `target`; its border stays."""
    height, width = picture.shape[:2]
    edge = np.linspace(0, 1, 5)
    border = np.array([(x, y) for x in edge for y in edge if x in (0, 1) or y in (0, 1)]) * [width, height]
    places, shifts = np.vstack([target[::_EVERY], border]), np.vstack([(own - target)[::_EVERY], border * 0])
    # Equal points make the spline singular: MediaPipe's landmarks may meet on a closed mouth.
    places, kept = np.unique(np.round(places, 2), axis=0, return_index=True)
    scale = max(height, width)
    spline = RBFInterpolator(places / scale, shifts[kept] / scale, kernel="thin_plate_spline", smoothing=_SMOOTHING)
    side = (np.arange(_GRID) + 0.5) / _GRID
    grid = np.stack(np.meshgrid(side * width / scale, side * height / scale), axis=-1)
    shift = (spline(grid.reshape(-1, 2)) * scale).reshape(_GRID, _GRID, 2).astype(np.float32)
    shift = cv2.resize(shift, (width, height), interpolation=cv2.INTER_LINEAR)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(picture, x + shift[..., 0], y + shift[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
