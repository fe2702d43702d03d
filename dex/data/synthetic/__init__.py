"""Procedural 3D heads with exact ground truth: seeded identity, ARKit-named expression, pose (as in `dex.pose`).

`make_head(seed)` decides an identity, `render(head, expression, pose, size)` draws it, and `landmarks` projects named
vertices of it. `python -m dex.data.synthetic` writes shards, a picture sheet, or the renderer's speed.
"""

from dex.data.synthetic.blendshapes import BLENDSHAPES
from dex.data.synthetic.head import IDENTITY_MODES, Head, make_head, parameters_hash
from dex.data.synthetic.landmarks import LANDMARK_GROUPS, LANDMARK_NAMES, landmarks
from dex.data.synthetic.motion import motion_track, pose_matrix, sample_expression, sample_pose
from dex.data.synthetic.render import Rendered, render
from dex.data.synthetic.splits import SPLITS, YAW_STRATA, factorial, identity_seed, single, yaw_stratum

__all__ = [
    "BLENDSHAPES",
    "IDENTITY_MODES",
    "LANDMARK_GROUPS",
    "LANDMARK_NAMES",
    "SPLITS",
    "YAW_STRATA",
    "Head",
    "Rendered",
    "factorial",
    "identity_seed",
    "landmarks",
    "make_head",
    "motion_track",
    "parameters_hash",
    "pose_matrix",
    "render",
    "sample_expression",
    "sample_pose",
    "single",
    "yaw_stratum",
]
