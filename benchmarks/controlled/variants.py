"""What the controlled experiment compares: the method, the forms of it that lack a part, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dex.reading.tuples import STRATA

_UNMOVED = {  # nothing is turned, moved or scaled in the picture that the expression encoder sees
    f"model.init_args.pose_augmentation.{name}": 0 for name in ("rotation", "scale", "translation", "perspective")
}
_ONE_CAMERA = {"data.init_args.second_view": False}  # and that picture is the driving frame itself
_NO_POSE_AUGMENTATION = _UNMOVED | _ONE_CAMERA
_NO_EXPRESSION_AUGMENTATION = {
    f"model.init_args.expression_augmentation.{name}": 0 for name in ("warp", "mask_probability")
}
# Nearer to the paper, which has no labels: they teach first, then pictures, by warps of the encoder's own poses. Faces
# are brought upright by the labels to the end.
_FADING_LABELS = {
    "model.init_args.loss.anchor_floor": 0,
    "model.init_args.loss.anchor_half_life": 500,
    "model.init_args.optimisation.teacher_poses": 1000,
}


@dataclass(frozen=True)
class Variant:
    """A form of the method: settings of `dex.fit` that differ, and of the sampler."""

    letter: str  # as the paper's ablations are counted here
    words: str
    stage: int = 1
    change: Mapping[str, Any] | None = None
    of: str | None = None  # the variant whose training it shares
    sampler: Mapping[str, int] | None = None

    @property
    def wave(self) -> int:
        """1, 2 or 3: what it stands on was made in a wave before."""
        return self.stage + (self.of is not None)


VARIANTS: dict[str, Variant] = {
    "everything": Variant("a", "the method"),
    "no-pose-augmentation": Variant("b", "without pose augmentation", change=_NO_POSE_AUGMENTATION),
    "no-image-transforms": Variant("b1", "without its transforms alone", change=_UNMOVED),
    "no-second-camera": Variant("b2", "without its second camera alone", change=_ONE_CAMERA),
    "no-expression-augmentation": Variant("c", "without expression augmentation", change=_NO_EXPRESSION_AUGMENTATION),
    "no-augmentation": Variant("d", "without both", change=_NO_POSE_AUGMENTATION | _NO_EXPRESSION_AUGMENTATION),
    "joint-motion-code": Variant(
        "e",
        "one code for pose and expression",
        change=_NO_POSE_AUGMENTATION | _NO_EXPRESSION_AUGMENTATION | {"model.init_args.network.joint_code": True},
    ),
    "fading-labels": Variant("a1", "the method, labels fading", change=_FADING_LABELS),
    "fading-labels-no-expression-augmentation": Variant(
        "c1", "labels fading, without expression augmentation", change=_FADING_LABELS | _NO_EXPRESSION_AUGMENTATION
    ),
    "animator": Variant("a2", "stage 2, the method", stage=2),
    "no-ray-map": Variant("f", "stage 2 without ray map", stage=2, change={"model.init_args.network.ray_map": False}),
    "no-reference-warping": Variant(
        "g",
        "stage 2 without reference warping",
        stage=2,
        change={"model.init_args.network.reference_warping": False},
    ),
    "standard-guidance": Variant(
        "h", "stage 2, standard guidance", stage=2, of="animator", sampler={"delay": 0, "blend": 0}
    ),
    "progressive-0": Variant(
        "h", "stage 2, expression joins after 0 of 35 steps", stage=2, of="animator", sampler={"delay": 0, "blend": 5}
    ),
    "progressive-10": Variant(
        "h", "stage 2, expression joins after 10 of 35 steps", stage=2, of="animator", sampler={"delay": 10, "blend": 5}
    ),
}


@dataclass(frozen=True)
class Preset:
    """How large, and which variants. Configurations are given to `dex.fit` in turn, each over those before it."""

    motion: tuple[str, ...]
    animator: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    tuples: int = 64
    drivers: int = 2  # of each source; of more all pairs: see `make_tuples`
    strata: tuple[str, ...] = STRATA  # of yaw, as many tuples in each
    identities: int = 64


PRESETS = {
    "small": Preset(
        ("controlled_small.yaml",), ("animator_quick.yaml", "controlled_small_animator.yaml"), (0, 1), tuple(VARIANTS)
    ),
    "full": Preset(
        ("controlled_small.yaml", "controlled_full.yaml"),
        ("animator_quick.yaml", "controlled_full_animator.yaml"),
        (0,),
        ("everything", "no-augmentation", "joint-motion-code", "animator"),
    ),
    # The demo, which it begins with, has seen what seed 0 draws.
    "long": Preset(("controlled_small.yaml", "controlled_long.yaml"), (), (1,), ("everything",)),
}
