"""Faces in a stream of frames: YuNet finds them, MediaPipe's Face Landmarker measures the one that is followed.

The landmarker's own detector is made for faces near the camera. So it never sees the whole picture where YuNet has
found a face: it is given a square around the face, in the next frames around where the face was last. Its state does
not reach from frame to frame, hence the same frames give the same labels wherever a run was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import cv2
import mediapipe as mp
import numpy as np
from jaxtyping import Float, Shaped
from mediapipe.tasks.python import BaseOptions, vision

from dex import weights
from dex.faces import pose_labels
from dex.faces.boxes import area, bounds, centre_inside, cut_square, larger_side, overlap

_SEARCH_EVERY = 5  # frames between two looks at the whole picture
_SEARCH_SIDE = 480  # pixels: YuNet sees the picture scaled down to this
_MIN_SCORE = 0.6  # of YuNet, for the face that is followed
_FADE = 0.8  # of the score, at a look that misses the face
_MIN_OTHER_SCORE = 0.8  # for a second face: posters and hands score lower
_WINDOW = 1.8  # side of the landmarker's square / larger side of the landmarks' box
_MIN_WINDOW = 8  # pixels of the picture
_WINDOW_SIDE = 320  # pixels of that square; the landmarks network looks at 256 of a smaller one
_SAME_FACE = 0.3  # IoU of two boxes of one face

Box = Float[np.ndarray, "4"]  # x0, y0, x1, y1 in pixels


@dataclass(frozen=True)
class Face:
    """One face in pixels of the picture, (0, 0) the picture's corner."""

    landmarks: Float[np.ndarray, "478 2"]
    pose: Float[np.ndarray, "3 4"]
    blendshapes: Float[np.ndarray, "52"]
    sharpness: float  # variance of the Laplacian of the luma, the face scaled to 178 pixels


@dataclass(frozen=True)
class Seen:
    face: Face | None  # the one that is followed
    score: float  # YuNet's for that face in the last look at the whole picture, fading where it misses it
    others: Float[np.ndarray, "N 4"]  # boxes of other faces in that look


class FaceTracker:
    """Follows the largest face. Close it, or use it in a `with` block."""

    def __init__(self) -> None:
        # MediaPipe's profiler arms a SIGPROF timer in every thread and ignores the signal, but Python and Lightning's
        # Trainer know nothing of that: a Trainer's end restores the default, death. At frequency 0 there is no timer.
        os.environ.setdefault("CPUPROFILE_FREQUENCY", "0")
        options = vision.FaceLandmarkerOptions(
            # The bytes, not the path: MediaPipe resolves relative paths against its own folder.
            base_options=BaseOptions(model_asset_buffer=weights.path("face_landmarker").read_bytes()),
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        cv2.setNumThreads(1)  # callers work in processes, one core each
        detector = str(weights.path("yunet"))
        self._landmarker = vision.FaceLandmarker.create_from_options(options)
        self._detector = cv2.FaceDetectorYN.create(detector, "", (_SEARCH_SIDE, _SEARCH_SIDE), _MIN_SCORE)
        self.blendshape_names: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget the face: another shot or another file begins."""
        self._box: Box | None = None
        self._score, self._others, self._age = 0.0, np.zeros((0, 4), np.float32), 0

    def aim(self, box: Box) -> None:
        """Take the face in `box` for the one that is followed."""
        self._box, self._age = box, 0

    def faces(self, image: Shaped[np.ndarray, "H W 3"]) -> Float[np.ndarray, "N 4"]:
        """Boxes of the faces in a picture, the largest first; unsure ones only where there is nothing better."""
        found = self._find(image)
        return found[found[:, 4] >= min(_MIN_OTHER_SCORE, found[:, 4].max(initial=0)), :4]

    def close(self) -> None:
        self._landmarker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def track(self, image: Shaped[np.ndarray, "H W 3"]) -> Seen:
        """The followed face in the next frame, a uint8 RGB picture."""
        if self._box is None or self._age >= _SEARCH_EVERY:
            return self._search(image)
        self._age += 1
        face = self._measure(image, self._box)
        if face is None:
            return self._search(image)
        self._box = bounds(face.landmarks)
        return Seen(face, self._score, self._others)

    def _search(self, image: Shaped[np.ndarray, "H W 3"]) -> Seen:
        found = self._find(image)
        boxes, scores = found[:, :4], found[:, 4]
        face = next(filter(None, (self._measure(image, box) for box in self._candidates(image, boxes))), None)
        if face is None:
            self.restart()
            return Seen(None, 0.0, boxes[scores >= _MIN_OTHER_SCORE])
        self._age, self._box = 0, bounds(face.landmarks)
        same = (overlap(self._box, boxes) >= _SAME_FACE) | centre_inside(boxes, self._box)
        # Three looks in a row that miss a followed face (0.6 s) make it unsure; one is an odd angle or a hand.
        self._score = float(scores[same].max(initial=_FADE * self._score))
        self._others = boxes[~same & (scores >= _MIN_OTHER_SCORE)]
        return Seen(face, self._score, self._others)

    def _candidates(self, image: Shaped[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "N 4"]) -> Iterator[Box]:
        """Where to look: where the face was, then the largest found, then the whole picture."""
        if self._box is not None:
            yield self._box
        yield from boxes[:2]
        size = np.array(image.shape[1::-1])
        yield np.concatenate([size - size / _WINDOW, size + size / _WINDOW]) / 2

    def _find(self, image: Shaped[np.ndarray, "H W 3"]) -> Float[np.ndarray, "N 5"]:
        """Boxes and scores of the faces in the whole picture by YuNet, the largest first."""
        height, width = image.shape[:2]
        scale = min(1.0, _SEARCH_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._detector.setInputSize(size)
        faces = self._detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
        if faces is None:
            return np.zeros((0, 5), np.float32)
        corner = faces[:, :2]
        found = np.concatenate([corner / scale, (corner + faces[:, 2:4]) / scale, faces[:, -1:]], axis=1)
        return found[np.argsort(-area(found[:, :4]), kind="stable")]

    def _measure(self, image: Shaped[np.ndarray, "H W 3"], box: Box) -> Face | None:
        """The face in a square around `box`."""
        side = round(float(larger_side(box)) * _WINDOW)
        if side < _MIN_WINDOW:
            return None
        corner = np.rint((box[:2] + box[2:]) / 2 - side / 2)
        window = cut_square(image, corner, side, _WINDOW_SIDE)
        result = self._landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=window))
        if not result.face_landmarks or not result.facial_transformation_matrixes:
            return None
        points = np.array([(point.x, point.y) for point in result.face_landmarks[0]])
        blendshapes = result.face_blendshapes[0]
        self.blendshape_names = self.blendshape_names or [shape.category_name for shape in blendshapes]
        pose = pose_labels.from_mediapipe(
            np.asarray(result.facial_transformation_matrixes[0]), _WINDOW_SIDE, _WINDOW_SIDE
        )
        return Face(
            landmarks=points * side + corner,
            pose=pose_labels.apply_affine(pose, side / _WINDOW_SIDE, corner),
            blendshapes=np.array([shape.score for shape in blendshapes]),
            sharpness=_sharpness(window, points * _WINDOW_SIDE),
        )


def _sharpness(window: Shaped[np.ndarray, "H W 3"], points: Float[np.ndarray, "L 2"]) -> float:
    x0, y0, x1, y1 = np.clip(bounds(points), 0, _WINDOW_SIDE).astype(int)
    luma = cv2.cvtColor(window[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY) if x1 > x0 and y1 > y0 else np.zeros((1, 1), np.uint8)
    return float(cv2.Laplacian(luma, cv2.CV_32F).var())
