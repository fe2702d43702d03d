"""Batches of synthetic heads: how they are framed and which expressions they have."""

import pytest
import torch

from dex.batch import BLENDSHAPES, Batch
from dex.data.synthetic.module import SyntheticHeads
from dex.data.synthetic.motion import FRAMINGS, FramingName
from dex.pose import euler_from_matrix, split_pose

SIDES = [(name, name.replace("Left", "Right")) for name in ("mouthSmileLeft", "browDownLeft", "eyeBlinkLeft")]


def batch_of(framing: FramingName, **settings: str) -> Batch:
    heads = SyntheticHeads(size=32, batch_size=4, drivers=3, workers=0, framing=framing, **settings)
    assert heads.crop.margin == FRAMINGS[framing].margin
    return next(iter(heads.train_dataloader()))


def test_heads_are_framed_as_asked() -> None:
    share = {}
    for name, framing in FRAMINGS.items():
        batch = batch_of(name)
        for pose in (batch.driving_pose.flatten(0, 1), batch.source_pose, batch.view_pose.flatten(0, 1)):
            rotation, shift, scale = split_pose(pose)
            assert ((scale >= framing.scale[0] - 1e-4) & (scale <= framing.scale[1] + 1e-4)).all()
            assert (shift[:, :2] - torch.tensor(framing.centre)).abs().max() <= framing.shift + 1e-4
            angles = torch.stack(euler_from_matrix(rotation), dim=-1).rad2deg().abs()
            assert (angles <= torch.tensor(framing.degrees) + 1e-3).all()
        share[name] = (batch.driving_region > 1).float().mean()
    assert share["close"] > 1.4 * share["wide"]  # of the face


def test_symmetric_expressions_have_two_like_halves() -> None:
    for expressions, alike in (("symmetric", True), ("all", False)):
        rows = batch_of("close", expressions=expressions).driving_blendshapes.flatten(0, 1)
        sides = [rows[:, [BLENDSHAPES.index(name) for name in names]] for names in SIDES]
        assert all(torch.equal(side[:, 0], side[:, 1]) for side in sides) == alike


@pytest.mark.parametrize(("name", "least"), [("batch_size", 1), ("drivers", 1), ("size", 16), ("workers", 0)])
def test_a_number_that_is_too_small_is_refused_by_name(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"data.{name} is {least - 1}, need at least {least}"):
        SyntheticHeads(**{name: least - 1})
