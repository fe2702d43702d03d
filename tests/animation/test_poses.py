"""Relative motion against mathematics written down independently, and what --pose understands."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dex.animation.poses import PoseEdit, relative_motion
from dex.pose import make_pose

RNG = np.random.default_rng(0)


def parts() -> tuple[np.ndarray, np.ndarray, float]:
    turn = Rotation.from_euler("zyx", RNG.uniform(-40, 40, 3), degrees=True).as_matrix()
    return turn, np.array([*RNG.uniform(-0.3, 0.3, 2), 0]), RNG.uniform(0.5, 1.2)


def pose(turn: np.ndarray, shift: np.ndarray, scale: float) -> torch.Tensor:
    return torch.tensor(np.column_stack([scale * turn, shift]), dtype=torch.float32)


def test_relative_motion_is_what_its_formula_says() -> None:
    for _ in range(20):
        source, first, driving = parts(), parts(), parts()
        turn = driving[0] @ first[0].T @ source[0]
        scale = source[2] * driving[2] / first[2]
        shift = source[1] + (driving[1] - first[1]) * source[2] / first[2]
        got = relative_motion(pose(*source), pose(*first), pose(*driving))
        torch.testing.assert_close(got, pose(turn, shift, scale), atol=1e-5, rtol=1e-5)


def test_first_frame_and_own_motion_are_exact() -> None:
    """To the last bit: a motion file fed back gives the same frames."""
    for _ in range(20):
        source, first, driving = pose(*parts()), pose(*parts()), pose(*parts())
        assert torch.equal(relative_motion(source, first, first), source)
        assert torch.equal(relative_motion(source, source, driving), driving)


def test_second_hand_motion_moves_as_the_first_driver_would() -> None:
    for _ in range(20):
        other, source, first, driving = (pose(*parts()) for _ in range(4))
        track = [relative_motion(other, first, step) for step in (first, driving)]
        direct = relative_motion(source, first, driving)
        torch.testing.assert_close(relative_motion(source, *track), direct, atol=1e-5, rtol=1e-5)


def test_head_turns_about_its_own_middle() -> None:
    """A driver that turns on the spot, far off the picture's middle, leaves the source's head where it is."""
    still = np.array([0.4, -0.2, 0])
    first, driving = (pose(Rotation.from_euler("y", a, degrees=True).as_matrix(), still, 0.8) for a in (0, 35))
    source = pose(*parts())
    assert torch.equal(relative_motion(source, first, driving)[:, 3], source[:, 3])


def test_keyframes() -> None:
    edit = PoseEdit.parse("0:yaw=0,scale=1; 1:pitch=10 ;1.5:yaw=30,scale=1.3")
    assert edit.seconds == 1.5
    assert edit.at(0) == {"yaw": 0, "scale": 1, "pitch": 10}
    assert edit.at(0.5) == pytest.approx({"yaw": 10, "scale": 1.1, "pitch": 10})
    assert edit.at(9) == pytest.approx({"yaw": 30, "scale": 1.3, "pitch": 10})
    assert PoseEdit.parse("yaw=20,pitch=-5,scale=1.1").at(3) == {"yaw": 20, "pitch": -5, "scale": 1.1}


def test_edit_relative() -> None:
    turn, shift, scale = parts()
    edit = PoseEdit.parse("yaw=20,pitch=-5,roll=3,scale=1.1,tx=0.2")
    offset = Rotation.from_euler("ZYX", [3, 20, -5], degrees=True).as_matrix()
    want = pose(offset @ turn, shift + [0.2, 0, 0], 1.1 * scale)
    torch.testing.assert_close(edit.pose(pose(turn, shift, scale), 0.0, absolute=False), want, atol=1e-6, rtol=1e-5)


def test_edit_absolute_sets_only_what_is_named() -> None:
    angles, shift = [10.0, -15.0, 5.0], np.array([0.1, 0.2, 0])  # roll, yaw, pitch
    source = pose(Rotation.from_euler("ZYX", angles, degrees=True).as_matrix(), shift, 0.8)
    want = pose(Rotation.from_euler("ZYX", [10, 20, 5], degrees=True).as_matrix(), np.array([0.1, -0.3, 0]), 0.8)
    got = PoseEdit.parse("yaw=20,ty=-0.3").pose(source, 0.0, absolute=True)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    both = make_pose(torch.eye(3), torch.zeros(3), torch.tensor(1.0))
    everything = PoseEdit.parse("yaw=0,pitch=0,roll=0,tx=0,ty=0,scale=1").pose(source, 0.0, absolute=True)
    torch.testing.assert_close(everything, both, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "need NAME=VALUE"),
        ("yaw", "yaw, pitch, roll, tx, ty, scale"),
        ("jaw=3", "'jaw=3'"),
        ("yaw=left", "yaw is 'left'"),
        ("yaw=nan", "need a number"),
        ("yaw=1,yaw=2", "twice"),
        ("scale=0", "above 0"),
        ("0:yaw=1;yaw=2", "SECONDS"),
        ("1:yaw=1;1:yaw=2", "rise"),
        ("-1:yaw=1", "rise"),
        ("x:yaw=1", "seconds is 'x'"),
    ],
)
def test_what_pose_does_not_understand(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        PoseEdit.parse(text)
    assert "\n" not in str(caught.value)
