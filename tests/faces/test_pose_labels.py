"""MediaPipe's matrix → P: signs, reprojection, crops, and the confidence."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dex.faces import pose_labels
from dex.pose import euler_from_matrix, split_pose

SIDE = 320


def mediapipe_matrix(turn: Rotation, position: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn.as_matrix(), position
    return matrix


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """MediaPipe's camera, written independently: OpenGL axes, vertical field of view 63°, pixels from the top left."""
    camera = points @ matrix[:3, :3].T + matrix[:3, 3]
    tangent = np.tan(np.radians(63) / 2)
    clip = camera[:, :2] / (-camera[:, 2:] * tangent)  # -1 … 1, y up
    return (clip * [1, -1] + 1) * SIDE / 2


def angles(pose: np.ndarray) -> list[float]:
    rotation, _, _ = split_pose(torch.tensor(pose))
    return [float(angle.rad2deg()) for angle in euler_from_matrix(rotation)]


def test_signs():
    """OpenGL's y points up and z to the viewer: a positive turn about y moves the nose to the picture's right."""
    right = pose_labels.from_mediapipe(
        mediapipe_matrix(Rotation.from_euler("y", 20, degrees=True), (0, 0, -40)), SIDE, SIDE
    )
    assert angles(right) == pytest.approx([-20, 0, 0], abs=1e-4)
    nose = np.array([0, 0, -0.7])  # canonical, ours: towards the camera
    assert (right[:, :3] @ nose)[0] > 0
    down = pose_labels.from_mediapipe(
        mediapipe_matrix(Rotation.from_euler("x", 20, degrees=True), (0, 0, -40)), SIDE, SIDE
    )
    assert angles(down) == pytest.approx([0, 20, 0], abs=1e-4)
    assert (down[:, :3] @ nose)[1] > 0
    tilted = pose_labels.from_mediapipe(
        mediapipe_matrix(Rotation.from_euler("z", 20, degrees=True), (0, 0, -40)), SIDE, SIDE
    )
    assert angles(tilted) == pytest.approx([0, 0, -20], abs=1e-4)  # anticlockwise as seen


def test_reprojection_agrees_with_the_camera():
    """Points of a face under P lie where the perspective camera sees them, ever closer as the head is farther away."""
    points = np.random.default_rng(0).uniform([-7, -8, -1], [7, 8, 7], (50, 3))  # cm, MediaPipe's axes
    turn = Rotation.from_euler("yxz", [25, -10, 5], degrees=True)
    errors = []
    for distance in (40, 160):
        matrix = mediapipe_matrix(turn, (2, -1, -distance))
        pose = pose_labels.from_mediapipe(matrix, SIDE, SIDE)
        ours = points * [1, -1, -1] / 10
        got = ours @ pose[:2, :3].T + pose[:2, 3]
        seen = project(matrix, points)
        errors.append(np.abs(got - seen).max() / np.ptp(seen, axis=0).max())
    assert errors[0] < 0.12
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def test_crop_moves_pose_with_the_picture():
    rng = np.random.default_rng(0)
    pose = pose_labels.from_mediapipe(
        mediapipe_matrix(Rotation.from_euler("y", 30, degrees=True), (1, 2, -40)), SIDE, SIDE
    )
    points = rng.normal(size=(10, 3))
    scale, shift = 0.37, np.array([12.0, -5.0])
    moved = pose_labels.apply_affine(pose, scale, shift)
    before = points @ pose[:2, :3].T + pose[:2, 3]
    np.testing.assert_allclose(points @ moved[:2, :3].T + moved[:2, 3], before * scale + shift, atol=1e-9)
    assert moved[2, 3] == 0
    assert angles(moved) == pytest.approx(angles(pose), abs=1e-3)


def head_in_motion(frames: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    head = rng.uniform([-0.8, -0.9, -0.7], [0.8, 0.9, 0.2], (478, 3))
    turns = Rotation.from_euler("yxz", rng.uniform(-25, 25, (frames, 3)), degrees=True).as_matrix()
    scales = rng.uniform(0.5, 0.6, frames)[:, None, None]
    poses = np.concatenate([scales * turns, rng.uniform(-0.1, 0.1, (frames, 3, 1))], axis=-1)
    poses[:, 2, 3] = 0
    landmarks = np.einsum("tij,lj->tli", poses[:, :2, :3], head) + poses[:, None, :2, 3]
    return poses, landmarks


def test_rigid_head_is_certain_and_wrong_poses_are_not():
    poses, landmarks = head_in_motion()
    seen = np.ones(len(poses))
    assert pose_labels.rigidity(poses, landmarks, seen).max() < 1e-6
    wrong = poses.copy()
    wrong[7, :, :3] = wrong[7, :, :3] @ Rotation.from_euler("y", 25, degrees=True).as_matrix()
    seen[3] = 0
    confidence = pose_labels.confidence(wrong, landmarks, seen)
    assert confidence[3] == 0
    assert confidence[7] < 0.15
    assert np.delete(confidence, [3, 7]).min() > 0.8


def test_mirrored_axes_would_be_noticed():
    """The same landmarks under poses of the wrong handedness in yaw do not fit one head."""
    poses, landmarks = head_in_motion()
    wrong = poses.copy()
    wrong[:, :, :3] = np.stack(
        [Rotation.from_matrix(p / np.cbrt(np.linalg.det(p))).inv().as_matrix() for p in poses[:, :, :3]]
    )
    assert np.median(pose_labels.rigidity(wrong, landmarks, np.ones(len(poses)))) > 0.1


def test_report_angles_are_those_of_dex_pose():
    poses, _ = head_in_motion()
    yaw, pitch = pose_labels.yaw_pitch(poses)
    want = [angles(pose) for pose in poses]
    np.testing.assert_allclose(np.stack([yaw, pitch], -1), np.array(want)[:, :2], atol=1e-3)
