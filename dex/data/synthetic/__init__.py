"""Procedural 3D heads with exact ground truth: seeded identity, ARKit-named expression, pose (BENCHMARK.md, controlled set)."""

from dex.data.synthetic.blendshapes import BLENDSHAPES
from dex.data.synthetic.head import IDENTITY_MODES, Head, make_head, parameters_hash
from dex.data.synthetic.motion import pose_matrix, sample_expression, sample_pose
from dex.data.synthetic.render import Rendered, render

__all__ = [
    "BLENDSHAPES",
    "IDENTITY_MODES",
    "Head",
    "Rendered",
    "make_head",
    "parameters_hash",
    "pose_matrix",
    "render",
    "sample_expression",
    "sample_pose",
]
