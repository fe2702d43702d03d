"""Finding faces and cutting squares around them: one rule for training data and for animation.

Needs `pip install -e '.[prep]'` (MediaPipe, OpenCV). Only `detect` loads MediaPipe.
"""

RULE = "smoothed-face-square.v1"  # name and version of the crop rule, see crop.py


class FaceError(ValueError):
    """No face, several, or one that is lost."""
