"""Head-pose labels: MediaPipe's 4×4 face transform → our weak-perspective P = [sR | t], with a confidence.

MediaPipe places a metric face model (centimetres; x right, y up, z towards the camera) before a pinhole camera of 63°
vertical field of view. Ours: x right, y down, z away from the camera, one unit = 10 cm, orthographic. The axes differ
by D = diag(1, -1, -1), so R = D R_mp D. Scale and translation are the first-order expansion of the pinhole projection
about the middle of the face (not about the model's origin, which lies 4 cm behind it): then P agrees with the
landmarks themselves. Positive yaw turns the face towards the picture's left edge, positive pitch turns it down… as the
formula of dex.pose gives it; positive roll turns the head clockwise as seen in the picture.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

FIELD_OF_VIEW = 63.0  # degrees, vertical: the camera that MediaPipe's face geometry assumes
_AXES = np.diag([1.0, -1.0, -1.0])
_CM_PER_UNIT = 10.0
# Middle of the face in MediaPipe's canonical model, cm: the weighted mean of the 33 points that its pose fit uses.
_FACE_CENTRE = np.array([0.0, -0.26, 3.74])
# The same points: they move least with the expression.
RIGID = np.array(
    [4, 6, 10, 33, 54, 67, 117, 119, 121, 127, 129, 132, 133, 136, 143, 147, 198]
    + [205, 263, 284, 297, 346, 348, 350, 356, 358, 361, 362, 365, 372, 376, 420, 425]
)
# A frame whose rigid landmarks miss the head by this much (rms, in units of 10 cm) has confidence 1/2.
_HALF_CONFIDENCE = 0.03


def from_mediapipe(matrix: Float[np.ndarray, "4 4"], width: int, height: int) -> Float[np.ndarray, "3 4"]:
    """P in pixels of the width×height picture that MediaPipe saw: x right, y down, (0, 0) the picture's corner."""
    rotation = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    centre = rotation @ _FACE_CENTRE + matrix[:3, 3]
    focal = height / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
    depth = -centre[2]
    scale = focal / depth * _CM_PER_UNIT
    projected = np.array([width / 2 + focal * centre[0] / depth, height / 2 - focal * centre[1] / depth])
    ours = _AXES @ rotation @ _AXES
    offset = scale * ours @ (_AXES @ _FACE_CENTRE / _CM_PER_UNIT)
    return np.column_stack([scale * ours, [*(projected - offset[:2]), 0.0]])


def apply_affine(
    poses: Float[np.ndarray, "*b 3 4"], scale: Float[np.ndarray, "*b"] | float, shift: Float[np.ndarray, "*b 2"]
) -> Float[np.ndarray, "*b 3 4"]:
    """The same poses in coordinates x' = scale · x + shift (isotropic: a crop and a resize)."""
    moved = poses * np.asarray(scale)[..., None, None]
    moved[..., :2, 3] += shift
    return moved


def rigidity(
    poses: Float[np.ndarray, "T 3 4"], landmarks: Float[np.ndarray, "T L 2"], weight: Float[np.ndarray, "T"]
) -> Float[np.ndarray, "T"]:
    """How far (rms, in canonical units) each frame's rigid landmarks lie from one head seen under all the poses.

    The head's points are solved by least squares over the frames, each of `weight` 0 or more. Wrong poses and jumping
    landmarks both show. Poses and landmarks in the same coordinates.
    """
    points = landmarks[:, RIGID].astype(np.float64)
    maps = poses[:, :2, :3].astype(np.float64)
    seen = (points - poses[:, None, :2, 3]).transpose(0, 2, 1)  # T 2 33
    root = np.sqrt(weight)[:, None, None]
    head = np.linalg.lstsq((maps * root).reshape(-1, 3), (seen * root).reshape(-1, len(RIGID)), rcond=None)[0]
    error = np.sqrt(((maps @ head - seen) ** 2).sum(1).mean(-1))
    return error / np.cbrt(np.linalg.det(poses[:, :, :3].astype(np.float64)))


def confidence(
    poses: Float[np.ndarray, "T 3 4"], landmarks: Float[np.ndarray, "T L 2"], seen: Float[np.ndarray, "T"]
) -> Float[np.ndarray, "T"]:
    """In [0, 1]: 1 where a frame fits one rigid head, 1/2 at an error of 3 mm, 0 where `seen` is 0 (no detection)."""
    error = rigidity(poses, landmarks, (seen > 0).astype(np.float64))
    return (seen / (1 + (error / _HALF_CONFIDENCE) ** 2)).astype(np.float32)


def yaw_pitch(poses: Float[np.ndarray, "*b 3 4"]) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Degrees, for reports: `dex.pose.euler_from_matrix` without torch in every worker."""
    yaw = np.arctan2(-poses[..., 2, 0], np.hypot(poses[..., 0, 0], poses[..., 1, 0]))
    return np.degrees(yaw), np.degrees(np.arctan2(poses[..., 2, 1], poses[..., 2, 2]))
